"""A store that ignores If-None-Match: a proxy that takes it out and signs every request anew."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.cluster.s3 import REGION
from tests.contract.store.place import Place

# Made anew, or about the connection to the proxy.
_DROPPED = {"authorization", "host", "connection", "expect", "if-none-match", "user-agent"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    place: Place

    def _forward(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        body = self.rfile.read(length)
        kept = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in _DROPPED and not name.lower().startswith(("x-amz-", "amz-"))
        }
        user = self.place.user
        request = AWSRequest(
            self.command, self.place.location.endpoint + self.path, headers=kept, data=body
        )
        S3SigV4Auth(Credentials(user.access_key, user.secret_key), "s3", REGION).add_auth(request)
        address = urlsplit(self.place.location.endpoint)
        connection = http.client.HTTPConnection(str(address.hostname), address.port or 80)
        try:
            headers = {name: str(value) for name, value in request.headers.items()}
            connection.request(self.command, self.path, body, headers)
            self._answer(connection.getresponse())
        finally:
            connection.close()

    def _answer(self, response: http.client.HTTPResponse) -> None:
        data = response.read()
        self.send_response(response.status)
        for name, value in response.headers.items():
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    # The names that http.server looks for.
    do_GET = do_HEAD = do_PUT = do_DELETE = _forward  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""


@contextmanager
def forgetful(place: Place) -> Iterator[Place]:
    """The same place, behind a proxy that forgets conditions."""
    handler = type("Handler", (_Handler,), {"place": place})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, name="forgetful store")
    thread.start()
    try:
        yield place.at(f"127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
