"""Faults on the way to a server: Toxiproxy between the client and whatever it talks to."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from tests.cluster.cluster import Cluster
from tests.cluster.paths import ClusterError
from tests.cluster.service import Service
from tests.tools import build as tools

Stream = Literal["downstream", "upstream"]


class Toxiproxy(Service):
    """A Toxiproxy on loopback, or on the node's address in a cluster's network."""

    def __init__(self, cluster: Cluster | None = None, *, name: str = "toxiproxy") -> None:
        super().__init__(name, cluster)

    def command(self) -> tuple[list[str], Mapping[str, str]]:
        server = str(tools.path("toxiproxy"))
        return [server, "-host", self.host, "-port", str(self.port)], {}

    def add(self, name: str, upstream: str) -> Proxy:
        """A proxy in front of `upstream` (HOST:PORT), on a port of its own."""
        listen = f"{self.host}:{self.free_port()}"
        body = {"name": name, "listen": listen, "upstream": upstream, "enabled": True}
        self.request("POST", "/proxies", body)
        return Proxy(self, name, listen)

    def request(self, method: str, path: str, body: object = None) -> Any:
        return self.call(lambda: self._request(method, path, body))

    def _request(self, method: str, path: str, body: object) -> Any:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        if response.status >= 400:
            raise ClusterError(f"toxiproxy {method} {path}: {response.status} {text.decode()}")
        return json.loads(text) if text else None


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy; clients are pointed at `address`."""

    server: Toxiproxy
    name: str
    address: str

    def add_toxic(
        self, kind: str, *, stream: Stream = "downstream", toxicity: float = 1.0, **attributes: int
    ) -> str:
        """Adds a fault, e.g. latency (latency, jitter: ms), timeout (ms; 0 is a black hole),
        limit_data (bytes), bandwidth (rate: KB/s), reset_peer (timeout: ms). Returns its name.
        """
        toxic = {"type": kind, "stream": stream, "toxicity": toxicity, "attributes": attributes}
        made = self.server.request("POST", f"/proxies/{self.name}/toxics", toxic)
        return str(made["name"])

    def remove_toxic(self, name: str) -> None:
        self.server.request("DELETE", f"/proxies/{self.name}/toxics/{name}")

    @contextmanager
    def toxic(self, kind: str, **parameters: Any) -> Iterator[None]:
        name = self.add_toxic(kind, **parameters)
        try:
            yield
        finally:
            self.remove_toxic(name)

    def disable(self) -> None:
        """Refuses connections and cuts those that there are."""
        self.server.request("POST", f"/proxies/{self.name}", {"enabled": False})

    def enable(self) -> None:
        self.server.request("POST", f"/proxies/{self.name}", {"enabled": True})

    @contextmanager
    def down(self) -> Iterator[None]:
        self.disable()
        try:
            yield
        finally:
            self.enable()

    def remove(self) -> None:
        self.server.request("DELETE", f"/proxies/{self.name}")
