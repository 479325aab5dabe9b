"""The operator's core on a real API server, with a real store, and no rights but the chart's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import control_plane, s3_server, toxiproxy
from tests.cluster.paths import REPOSITORY
from tests.cluster.s3 import S3Server
from tests.contract.charts.helm import MINIMAL, OPERATOR, Helm, at, merged
from tests.contract.operator.builder import Builder
from tests.contract.operator.stage import Stage
from tests.contract.store.place import Place

__all__ = ["control_plane", "s3_server", "toxiproxy"]

SYSTEM = "llmengine-system"
# Not the name of another suite's role on the same cluster.
RELEASE = "llmengine-operator-core"
RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")


@pytest.fixture(scope="session")
def core_cluster(control_plane: Cluster) -> Cluster:
    """With the kinds, nodes whose Jobs end when told, and a tainted one of another architecture."""
    cluster = control_plane
    for crd in sorted((REPOSITORY / "crds").glob("*.yaml")):
        cluster.apply(crd.read_text())
    cluster.kubectl("wait", "crd", "--all", "--for=condition=Established", "--timeout=30s")
    nodes = {node["metadata"]["name"] for node in cluster.api.items("/api/v1/nodes")}
    if "manual-core-0" not in nodes:
        cluster.fake_nodes(2, manual=True, prefix="core")
        arm = {"kubernetes.io/arch": "arm64"}
        cluster.fake_nodes(1, manual=True, prefix="arm", labels=arm, taint=True)
    return cluster


@dataclass(frozen=True)
class Identities:
    """Makes kubeconfigs with the rights that the chart gives the operator."""

    cluster: Cluster
    folder: Path

    def make(self, release: str, **values: Any) -> Path:
        """`release` must be new, and contain the chart's name."""
        settings = merged(MINIMAL, at("builds.createNamespace", False), values)
        rendered = Helm(self.folder).render(OPERATOR, settings, release=release, namespace=SYSTEM)
        rights = [document for document in rendered if document["kind"] in RIGHTS]
        self.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})
        self.cluster.apply(*(yaml.safe_dump(document) for document in rights))
        account = next(r["metadata"]["name"] for r in rights if r["kind"] == "ServiceAccount")
        return self._kubeconfig(account)

    def _kubeconfig(self, account: str) -> Path:
        path = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/{account}/token"
        answer = self.cluster.api.request("POST", path, {"spec": {"expirationSeconds": 7200}})
        server = f"https://127.0.0.1:{self.cluster.api.port}"
        authority = str(self.cluster.state.pki / "ca.crt")
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "c", "cluster": {"server": server, "certificate-authority": authority}}
            ],
            "users": [{"name": "u", "user": {"token": answer["status"]["token"]}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        file = self.folder / f"{account}.kubeconfig"
        file.write_text(json.dumps(config))
        return file


@pytest.fixture(scope="session")
def identities(core_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Identities:
    return Identities(core_cluster, tmp_path_factory.mktemp("identities"))


@pytest.fixture(scope="session")
def identity(identities: Identities) -> Path:
    """The rights of an operator of the whole cluster."""
    return identities.make(RELEASE)


@pytest.fixture
def stage(core_cluster: Cluster, s3_server: S3Server, identity: Path) -> Iterator[Stage]:
    made = Stage.new(core_cluster, Place.new(s3_server), identity)
    yield made
    made.close()


@pytest.fixture
def builder(stage: Stage) -> Builder:
    return Builder(stage)
