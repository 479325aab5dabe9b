"""Models from a hub and from a volume, built and served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.contract.builder.hub import COMMIT, TOKEN, Hub, Repository
from tests.demo.ask import ask
from tests.demo.platform import Platform
from tests.e2e.engines import HUB_ADDRESS, Engine, Engines
from tests.models.tiny import TinyModel

pytestmark = pytest.mark.cluster

HELLO = '[{"role":"user","content":"hello"}]'


@pytest.fixture(scope="module")
def hub(in_node_network: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    public = Repository(TinyModel(family="qwen3").write(folder / "public"))
    private = Repository(TinyModel(family="qwen3", seed=1).write(folder / "private"), "private")
    repositories = {"acme/public": public, "acme/private": private}
    _, port = HUB_ADDRESS
    # Both addresses are the node's: large files come from another host, as those of the hub do.
    with Hub(repositories, address=("0.0.0.0", port), files_host="10.244.0.1") as server:
        yield server


def answers(engine: Engine) -> bool:
    return bool(ask(f"{engine.host}:8001", engine.name, HELLO, 4))


def test_a_public_model_of_the_hub_is_shared_by_the_whole_cluster(
    hub: Hub, engines: Engines
) -> None:
    engine = engines.apply("hub", "hf://acme/public", model={"revision": COMMIT})
    engine.wait_ready()
    assert answers(engine)
    assert not engine.status()["serving"][0]["scopeNamespace"]


def test_a_private_model_is_read_with_the_users_token(
    hub: Hub, engines: Engines, platform: Platform
) -> None:
    model = {"revision": COMMIT, "secretName": "hf-token"}
    engine = engines.apply("hub-private", "hf://acme/private", model={"revision": COMMIT})
    assert "acme/private" in engine.wait_stalled("ModelNotFound")
    platform.cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "hf-token", "namespace": engine.namespace},
            "stringData": {"HF_TOKEN": TOKEN},
        }
    )
    engine.edit({"model": model})
    engine.wait_ready()
    assert answers(engine)
    assert engine.status()["serving"][0]["scopeNamespace"] == engine.namespace


def volume(folder: Path, namespace: str) -> list[dict[str, Any]]:
    """A claim on a folder of the node."""
    size = {"storage": "1Gi"}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": "weights"},
            "spec": {
                "capacity": size,
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": "manual",
                "hostPath": {"path": str(folder)},
                "claimRef": {"name": "weights", "namespace": namespace},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "weights", "namespace": namespace},
            "spec": {
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": "manual",
                "resources": {"requests": size},
            },
        },
    ]


def test_a_model_on_a_volume_is_built_beside_it(
    in_node_network: Cluster, engines: Engines, platform: Platform, tmp_path: Path
) -> None:
    # Pods run as nobody: what a test makes for itself they could not enter.
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)
    TinyModel(family="mistral").write(tmp_path / "mistral")
    engine = engines.apply("volume", "pvc://weights/mistral")
    assert "PersistentVolumeClaim weights in namespace team-a" in engine.wait_stalled(
        "ClaimNotFound", 30
    )
    platform.cluster.apply(*volume(tmp_path, engine.namespace))
    engine.annotate(requested_at="now")
    engine.wait_ready()
    assert answers(engine)
    assert [job["metadata"]["namespace"] for job in engine.jobs()] == [engine.namespace]
