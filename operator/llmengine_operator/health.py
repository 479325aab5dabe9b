"""Two plain HTTP ports: probes for the kubelet, metrics for Prometheus.

A check returns None, or a sentence about what is wrong. They only look at numbers in memory, so
that a probe never waits for anything.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, TypeAlias

Check: TypeAlias = Callable[[], str | None]


@dataclass(frozen=True)
class Answer:
    """What a path is answered with."""

    status: int
    content_type: str
    body: bytes


Route: TypeAlias = Callable[[], Answer]


def probe(checks: Mapping[str, Check]) -> Route:
    """200 when no check finds fault, else 503; the body has a line for each check."""

    def route() -> Answer:
        problems = {name: check() for name, check in checks.items()}
        lines = (f"{name}: {problem or 'ok'}\n" for name, problem in problems.items())
        status = 503 if any(problems.values()) else 200
        return Answer(status, "text/plain; charset=utf-8", "".join(lines).encode())

    return route


class HttpServer:
    """Serves GET for a few paths, in threads. `host`: "" for every address."""

    def __init__(self, host: str, port: int, routes: Mapping[str, Route]) -> None:
        handler = type("Handler", (_Handler,), {"routes": dict(routes)})
        self._server = _server_class(host)((host, port), handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name=f"http-{port}", daemon=True
        )

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    routes: ClassVar[Mapping[str, Route]] = {}
    timeout = 5  # a client that sends nothing must not hold a thread

    def do_GET(self) -> None:
        route = self.routes.get(self.path.partition("?")[0])
        answer = route() if route else Answer(404, "text/plain", b"not found\n")
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:
        """Probes come every few seconds: they are not logged."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True


class _DualStackServer(_Server):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def _server_class(host: str) -> type[_Server]:
    return _DualStackServer if host == "" and socket.has_dualstack_ipv6() else _Server
