"""Watches that can be ended without a trace: kopf's leave their sockets to the garbage collector,
which the process that it runs in does not live to see, but a test run does.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from llmengine_operator.kinds import Kind
from llmengine_operator.kube import label_selector
from llmengine_operator.watch_audit import Watch
from tests.cluster.cluster import Cluster

Deliver = Callable[[Kind, str, dict[str, Any]], None]


class Watches:
    """Tells of every object that is there, and of every change, from start() to stop()."""

    def __init__(
        self,
        cluster: Cluster,
        watches: Iterable[Watch],
        namespaces: Sequence[str],
        deliver: Deliver,
    ) -> None:
        self._streams = [
            _Stream(cluster, watch, namespace, deliver)
            for watch in watches
            for namespace in ((namespaces if watch.kind.namespaced else ()) or (None,))
        ]

    def start(self) -> None:
        for stream in self._streams:
            stream.start()

    def stop(self) -> None:
        for stream in self._streams:
            stream.stop()


class _Stream(threading.Thread):
    """One watch. Its connection is made before the thread runs, so that it can be cut."""

    def __init__(
        self, cluster: Cluster, watch: Watch, namespace: str | None, deliver: Deliver
    ) -> None:
        super().__init__(name=f"watch-{watch.kind}", daemon=True)
        pki = cluster.state.pki
        context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        self._connection = http.client.HTTPSConnection(
            "127.0.0.1", cluster.api.port, context=context
        )
        query = {"watch": "true"}
        if watch.labels:
            query["labelSelector"] = label_selector(watch.labels)
        self._path = f"{watch.kind.path(namespace)}?{urlencode(query)}"
        self._kind = watch.kind
        self._deliver = deliver
        self._connection.connect()

    def run(self) -> None:
        with suppress(OSError, ValueError, http.client.HTTPException):
            self._connection.request("GET", self._path)
            with self._connection.getresponse() as response:
                for line in response:
                    event = json.loads(line)
                    self._deliver(self._kind, event["type"], event["object"])

    def stop(self) -> None:
        connected = self._connection.sock
        if connected is not None:
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)
        self.join(10)
        self._connection.close()
