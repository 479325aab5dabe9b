"""The part of the Hugging Face Hub's HTTP API that its client uses to read models.

Large files come, as there, by a redirect to another host, which must never see a token.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

COMMIT = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
TOKEN = "hf_thisIsTheRightToken"
BAD_TOKEN = "hf_badAndUnknownToken"
WEAK_TOKEN = "hf_knownButWithoutRights"
_API = re.compile(r"/api/models/([^/]+/[^/]+)/revision/([^/?]+)")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_CDN = re.compile(r"/cdn/([^/]+/[^/]+)/(.+)")


@dataclass
class Repository:
    """A model's folder. `private` and `gated` ones are for TOKEN only."""

    folder: Path
    access: Literal["public", "private", "gated"] = "public"
    commit: str = COMMIT

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_file())


@dataclass
class Hub:
    """A server, on loopback unless `address` says otherwise.

    `asked`: method, path and Authorization of each request. The next `failing` ones are answered
    with `status`; the next `cut` whole files break off in the middle; a `damaged` hub flips the
    last bit of large ones. Not `tells_sizes`: it is a poor mirror. `files_host` is this server
    under another name.
    """

    repositories: Mapping[str, Repository]
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    failing: int = 0
    status: int = 503
    cut: int = 0
    damaged: bool = False
    tells_sizes: bool = True
    address: tuple[str, int] = ("127.0.0.1", 0)
    files_host: str = "localhost"

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"server_hub": self})
        self._server = ThreadingHTTPServer(self.address, handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def endpoint(self) -> str:
        return f"http://{self.address[0]}:{self.port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server_hub
        hub.asked.append((self.command, self.path, self.headers.get("Authorization")))
        if hub.failing > 0:
            hub.failing -= 1
            self._refuse(hub.status, "", "not now")
        elif match := _CDN.fullmatch(self.path):
            self._send_file(hub.repositories[match[1]].folder / match[2])
        elif match := _API.match(self.path):
            if (repository := self._allowed(match[1], match[2])) is not None:
                self._send_info(match[1], repository)
        elif match := _RESOLVE.fullmatch(self.path):
            if (repository := self._allowed(match[1], match[2])) is not None:
                self._resolve(match[1], repository, match[3])
        else:
            self._refuse(404, "", "no such page")

    def _allowed(self, name: str, revision: str) -> Repository | None:
        repository = self.server_hub.repositories.get(name)
        authorization = self.headers.get("Authorization")
        known = authorization == f"Bearer {TOKEN}"
        if authorization == f"Bearer {BAD_TOKEN}":
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repository is None or (repository.access == "private" and not known):
            self._refuse(404 if authorization else 401, "RepoNotFound", "Repository not found")
        elif repository.access == "gated" and not known:
            self._refuse(403 if authorization else 401, "GatedRepo", "Access is restricted")
        elif revision != repository.commit:
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
        else:
            return repository
        return None

    def _send_info(self, name: str, repository: Repository) -> None:
        siblings = [
            {
                "rfilename": path.name,
                "size": path.stat().st_size if self.server_hub.tells_sizes else None,
                "blobId": "0" * 40,
                **({"lfs": _lfs(path)} if _is_large(path) else {}),
            }
            for path in repository.files()
        ]
        body = json.dumps(
            {
                "_id": "1",
                "id": name,
                "modelId": name,
                "sha": repository.commit,
                "siblings": siblings,
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _resolve(self, name: str, repository: Repository, file: str) -> None:
        path = repository.folder / file
        if not path.is_file():
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        if not _is_large(path):
            self._send_file(path, repository.commit)
            return
        self.send_response(302)
        # Another host name for the same server: to a client it is another host.
        self.send_header(
            "Location",
            f"http://{self.server_hub.files_host}:{self.server_hub.port}/cdn/{name}/{file}",
        )
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"')
        self.send_header("X-Linked-Size", str(path.stat().st_size))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_file(self, path: Path, commit: str = COMMIT) -> None:
        data = path.read_bytes()
        first, last = 0, len(data) - 1
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or last), last)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "GET":
            self._send(data[first : last + 1], whole=not wanted, large=_is_large(path))

    def _send(self, data: bytes, *, whole: bool, large: bool) -> None:
        hub = self.server_hub
        if hub.damaged and whole and large:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if hub.cut > 0 and whole and large:
            hub.cut -= 1
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.wfile.write(data)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(HTTPStatus(status))
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _is_large(path: Path) -> bool:
    return path.suffix in (".safetensors", ".bin")


def _lfs(path: Path) -> dict[str, object]:
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "size": path.stat().st_size,
        "pointerSize": 130,
    }
