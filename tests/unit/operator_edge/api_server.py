"""An HTTP server that answers as a test tells it to, and a client that thinks it is Kubernetes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True)
class Request:
    """What was asked."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any


@dataclass(frozen=True)
class Reply:
    """What is answered; `hang_up` closes the connection instead."""

    status: int = 200
    body: Any = field(default_factory=dict)
    hang_up: bool = False


def status(code: int, reason: str, message: str, **details: Any) -> Reply:
    """An error as the API server puts it."""
    body = {"kind": "Status", "code": code, "reason": reason, "message": message}
    return Reply(code, {**body, "details": details} if details else body)


Answers = Callable[[Request], Reply]


class ApiServer:
    """Serves on loopback; `answers` may be replaced while it does."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.requests: list[Request] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                outer._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> ApiServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        data = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        request = Request(
            handler.command,
            url.path,
            dict(parse_qsl(url.query)),
            {name.lower(): value for name, value in handler.headers.items()},
            json.loads(data) if data else None,
        )
        self.requests.append(request)
        reply = self.answers(request)
        if reply.hang_up:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        handler.send_response(reply.status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


@contextmanager
def serving(answers: Answers) -> Iterator[ApiServer]:
    with ApiServer(answers) as server:
        yield server


def write_kubeconfig(path: Path, server: str, user: Mapping[str, Any]) -> Path:
    """A kubeconfig with one context."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": dict(user)}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(config))
    return path
