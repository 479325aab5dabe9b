"""Requests to the API server as cluster-admin, quick enough to be polled with."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass
from typing import Any

from tests.cluster.namespace import Namespace
from tests.cluster.paths import State


class ApiError(RuntimeError):
    """The API server answered with an error; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class _Connection(http.client.HTTPSConnection):
    def __init__(self, api: Api) -> None:
        super().__init__("127.0.0.1", api.port, timeout=api.timeout)
        self._api = api

    def connect(self) -> None:
        api = self._api
        context = ssl.create_default_context(cafile=str(api.state.pki / "ca.crt"))
        context.load_cert_chain(api.state.pki / "admin.crt", api.state.pki / "admin.key")
        raw = api.namespace.connect(self.host, self.port, api.timeout)
        self.sock = context.wrap_socket(raw, server_hostname=self.host)


@dataclass(frozen=True, slots=True)
class Api:
    """The API server of a cluster. Reached from inside and outside the node's network alike."""

    state: State
    port: int
    namespace: Namespace
    timeout: float = 10

    def request(
        self, method: str, path: str, body: object = None, content_type: str = "application/json"
    ) -> Any:
        """The answer, decoded where it is JSON.

        Raises ApiError for an error status, and OSError when there is no connection.
        """
        connection = _Connection(self)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": content_type})
            response = connection.getresponse()
            text = response.read().decode()
            is_json = response.headers.get_content_type() == "application/json"
        except http.client.HTTPException as error:
            raise ConnectionError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()
        document = json.loads(text) if is_json else text
        if response.status >= 400:
            message = document.get("message", text) if isinstance(document, dict) else text
            raise ApiError(response.status, message.strip())
        return document

    def get(self, path: str) -> Any:
        return self.request("GET", path)

    def items(self, path: str) -> list[dict[str, Any]]:
        """The items of a list, such as /api/v1/namespaces/default/pods."""
        return list(self.get(path)["items"])

    def merge(self, path: str, patch: object) -> Any:
        return self.request("PATCH", path, patch, "application/merge-patch+json")

    def ready(self) -> bool:
        try:
            return bool(self.get("/readyz") == "ok")
        except (OSError, ApiError):
            return False
