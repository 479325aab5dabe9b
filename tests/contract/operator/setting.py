"""What an operator needs of a cluster before it works: the kinds, nodes, and its rights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.cluster import Cluster
from tests.cluster.paths import REPOSITORY
from tests.contract.charts.helm import MINIMAL, OPERATOR, Helm, at, merged

SYSTEM = "llmengine-system"
# Not the name of another suite's role on the same cluster.
RELEASE = "llmengine-operator-core"
_RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")


def prepare(cluster: Cluster) -> None:
    """The kinds, nodes whose Jobs end when told, and a tainted node of another architecture."""
    for crd in sorted((REPOSITORY / "crds").glob("*.yaml")):
        cluster.apply(crd.read_text())
    cluster.kubectl("wait", "crd", "--all", "--for=condition=Established", "--timeout=30s")
    nodes = {node["metadata"]["name"] for node in cluster.api.items("/api/v1/nodes")}
    if "manual-core-0" not in nodes:
        cluster.fake_nodes(2, manual=True, prefix="core")
        arm = {"kubernetes.io/arch": "arm64"}
        cluster.fake_nodes(1, manual=True, prefix="arm", labels=arm, taint=True)


@dataclass(frozen=True)
class Identities:
    """Makes kubeconfigs with the rights that the chart gives the operator."""

    cluster: Cluster
    folder: Path

    def make(self, release: str = RELEASE, **values: Any) -> Path:
        """`release` must contain the chart's name, which is then that of all it makes."""
        settings = merged(MINIMAL, at("builds.createNamespace", False), values)
        rendered = Helm(self.folder).render(OPERATOR, settings, release=release, namespace=SYSTEM)
        rights = [document for document in rendered if document["kind"] in _RIGHTS]
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
