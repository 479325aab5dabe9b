"""Stands for prometheus-adapter: an API of custom metrics that the API server passes requests to.

It answers as the adapter does, for the pods that a selector matches; the values are the test's.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.cluster.cluster import Cluster

GROUP = "custom.metrics.k8s.io"
VERSION = "v1beta2"
_API_SERVICES = "/apis/apiregistration.k8s.io/v1/apiservices"


class MetricsAdapter:
    """Registered with the cluster while it is entered. `values`: of each pod, by the metric.

    `asked` has every (namespace, metric) that somebody wanted to know.
    """

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self.values: dict[str, str] = {}
        self.asked: set[tuple[str, str]] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self._answer))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        pki = cluster.state.pki
        context.load_cert_chain(pki / "apiserver.crt", pki / "apiserver.key")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> MetricsAdapter:
        self._thread.start()
        # The API server follows such a Service to a name, and so to a port of this machine.
        service = {
            "metadata": {"name": "adapter"},
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        }
        services = f"/api/v1/namespaces/{self._namespace}/services"
        self._cluster.api.request("POST", services, service)
        name = f"{VERSION}.{GROUP}"
        spec = {
            "group": GROUP,
            "version": VERSION,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "insecureSkipTLSVerify": True,
            "service": {
                "namespace": self._namespace,
                "name": "adapter",
                "port": self._server.server_port,
            },
        }
        self._cluster.api.request("POST", _API_SERVICES, {"metadata": {"name": name}, "spec": spec})
        self._cluster.kubectl(
            "wait", f"apiservice/{name}", "--for=condition=Available", "--timeout=60s"
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._cluster.api.request("DELETE", f"{_API_SERVICES}/{VERSION}.{GROUP}")
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def _answer(self, url: str) -> tuple[int, dict[str, Any]]:
        parts = urlsplit(url)
        path = [unquote(part) for part in parts.path.strip("/").split("/")]
        match path:
            case ["apis"]:
                return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group()]}
            case ["apis", group] if group == GROUP:
                return 200, {"kind": "APIGroup", "apiVersion": "v1", **_group()}
            case ["apis", group, version] if (group, version) == (GROUP, VERSION):
                return 200, _resources(self.values)
            case ["apis", _, _, "namespaces", namespace, "pods", "*", metric]:
                self.asked.add((namespace, metric))
                if metric in self.values:
                    selector = parse_qs(parts.query).get("labelSelector", [""])[0]
                    return 200, self._metrics(namespace, metric, selector)
        return 404, {"kind": "Status", "code": 404, "reason": "NotFound", "message": parts.path}

    def _metrics(self, namespace: str, metric: str, selector: str) -> dict[str, Any]:
        pods = self._cluster.api.items(
            f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector}"
        )
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "kind": "MetricValueList",
            "apiVersion": f"{GROUP}/{VERSION}",
            "metadata": {},
            "items": [
                {
                    "describedObject": {
                        "kind": "Pod",
                        "apiVersion": "/v1",
                        "namespace": namespace,
                        "name": pod["metadata"]["name"],
                    },
                    "metric": {"name": metric},
                    "timestamp": now,
                    "value": self.values[metric],
                }
                for pod in pods
            ],
        }


def _group() -> dict[str, Any]:
    version = {"groupVersion": f"{GROUP}/{VERSION}", "version": VERSION}
    return {"name": GROUP, "versions": [version], "preferredVersion": version}


def _resources(metrics: dict[str, str]) -> dict[str, Any]:
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{GROUP}/{VERSION}",
        "resources": [
            {
                "name": f"pods/{metric}",
                "singularName": "",
                "namespaced": True,
                "kind": "MetricValueList",
                "verbs": ["get"],
            }
            for metric in metrics
        ],
    }


def _handler(
    answer: Callable[[str], tuple[int, dict[str, Any]]],
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, document = answer(self.path)
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """A test run is not for access logs."""

    return Handler
