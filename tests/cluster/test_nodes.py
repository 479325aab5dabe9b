"""Nodes that have joined are like the first one: pods reach each other, and end with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster import images
from tests.cluster.api import ApiError
from tests.cluster.cluster import Cluster
from tests.cluster.paths import ClusterError
from tests.cluster.waiting import wait_for
from tests.cluster.workloads import container, deployment, namespace, pod_spec, service

pytestmark = pytest.mark.cluster
SPACE = "work"
NODES = ("node-1", "node-2")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes, each with a server of its own."""
    base = images.base()
    with Cluster.claim("selftest-nodes", nodes=2, images=[base], tied=True) as cluster:
        serve = container(
            base.reference,
            ["python3", "-c", SERVER],
            env=[{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
            readinessProbe={"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
        )
        cluster.apply(namespace(SPACE))
        for node in NODES:
            pinned = pod_spec(serve, nodeSelector={"kubernetes.io/hostname": node})
            cluster.apply(deployment(node, SPACE, 1, pinned), service(node, SPACE, 8080))
        yield cluster


SERVER = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["NODE"].encode())
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""


def test_pods_reach_pods_of_the_other_node_by_address_service_and_name(cluster: Cluster) -> None:
    assert _ready_nodes(cluster) == list(NODES)
    for here, there in (NODES, NODES[::-1]):
        other = _ready_pod(cluster, there)
        assert other["spec"]["nodeName"] == there
        address = cluster.api.get(f"/api/v1/namespaces/{SPACE}/services/{there}")
        _ready_pod(cluster, here)
        for host in (
            f"{other['status']['podIP']}:8080",
            address["spec"]["clusterIP"],
            there,
            f"{there}.{SPACE}.svc.cluster.local",
        ):
            code = (
                f"import urllib.request as u; print(u.urlopen('http://{host}', timeout=5).read())"
            )
            command = ("exec", "-n", SPACE, f"deploy/{here}", "--", "python3", "-c", code)
            assert cluster.kubectl(*command) == f"{there.encode()!r}\n"


def test_a_node_that_died_is_removed_and_another_takes_its_place(cluster: Cluster) -> None:
    lost = _ready_pod(cluster, "node-2")["metadata"]["uid"]
    cluster.kill_node("node-2")
    assert not any(name.startswith("node-2/") for name in cluster.components())
    cluster.remove_node("node-2")
    with pytest.raises(ApiError):
        cluster.api.get("/api/v1/nodes/node-2")
    assert _ready_pod(cluster, "node-1")
    assert cluster.add_node() == "node-2"
    assert _ready_pod(cluster, "node-2")["metadata"]["uid"] != lost
    cluster.restart("node-2/kubelet")
    assert _ready_nodes(cluster) == list(NODES)


def test_the_first_node_is_no_node_that_joined(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="no node node-1 has joined"):
        cluster.remove_node("node-1")


def _ready_nodes(cluster: Cluster) -> list[str]:
    template = "{range .items[*]}{.metadata.name} {end}"
    cluster.kubectl("wait", "--for=condition=Ready", "nodes", "--all", "--timeout=30s")
    return cluster.kubectl("get", "nodes", "-o", f"jsonpath={template}").split()


def _ready_pod(cluster: Cluster, name: str) -> dict[str, Any]:
    """The only pod of a Deployment, once it is ready and no other is left."""

    def ready() -> dict[str, Any] | None:
        (pod,) = cluster.api.items(f"/api/v1/namespaces/{SPACE}/pods?labelSelector=app%3D{name}")
        conditions = pod["status"].get("conditions", [])
        well = any(it["type"] == "Ready" and it["status"] == "True" for it in conditions)
        return pod if well and "deletionTimestamp" not in pod["metadata"] else None

    def one_ready() -> dict[str, Any] | None:
        try:
            return ready()
        except ValueError:
            return None  # none yet, or two

    found = wait_for(one_ready, 60, lambda: cluster.kubectl("get", "pods", "-A", "-o", "wide"))
    assert found is not None
    return found
