"""The API server with the CRDs of this checkout."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import control_plane
from tests.cluster.waiting import wait_for
from tests.contract.crd.objects import Server

__all__ = ["control_plane"]

CRDS = Path(__file__).resolve().parents[3] / "crds"


@pytest.fixture(scope="session")
def installed(control_plane: Cluster) -> Cluster:
    """The cluster, with our kinds served."""
    install(control_plane)
    return control_plane


@pytest.fixture(scope="module")
def server(installed: Cluster) -> Server:
    """The API server, and a namespace of the module's own."""
    namespace = f"crd-{uuid.uuid4().hex[:8]}"
    installed.kubectl("create", "namespace", namespace)
    return Server(installed.api, namespace)


def install(cluster: Cluster) -> None:
    """Applies crds/ and waits until the API server knows the kinds."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    names = ("llmengines.llmengine.io", "engineruntimes.llmengine.io")
    cluster.kubectl(
        "wait", "--for=condition=Established", "--timeout=30s", *(f"crd/{name}" for name in names)
    )

    def served() -> bool:
        document = cluster.api.get("/apis/llmengine.io/v1alpha1")
        return {"llmengines", "engineruntimes"} <= {r["name"] for r in document["resources"]}

    wait_for(served, 30, lambda: json.dumps(cluster.api.get("/apis")))
