"""A real API server, with the rights that the operator has and no more."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmengine_operator.kube import KubeClient
from llmengine_operator.kube_access import Access
from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import control_plane
from tests.cluster.paths import REPOSITORY
from tests.cluster.waiting import wait_for
from tests.contract.kube.proxy import ApiProxy

__all__ = ["control_plane"]

SYSTEM = "llmengine-system"
READ = ["get", "list", "watch"]
RULES = [
    {"apiGroups": ["llmengine.io"], "resources": ["llmengines", "engineruntimes"], "verbs": READ},
    {"apiGroups": [""], "resources": ["pods"], "verbs": READ},
    {"apiGroups": [""], "resources": ["nodes"], "verbs": READ},
    {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": READ},
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": READ},
    {
        "apiGroups": ["apiextensions.k8s.io"],
        "resources": ["customresourcedefinitions"],
        "resourceNames": ["llmengines.llmengine.io", "engineruntimes.llmengine.io"],
        "verbs": ["get"],
    },
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "verbs": ["get", "create", "update"],
    },
]


@dataclass(frozen=True)
class Setting:
    """A cluster with the CRDs, and a service account that has the operator's rights."""

    cluster: Cluster
    token: str

    def kubeconfig(self, folder: Path, port: int | None = None) -> Path:
        """For the operator, which reaches the API server on this port."""
        server = f"https://127.0.0.1:{port or self.cluster.api.port}"
        ca = self.cluster.state.pki / "ca.crt"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "c", "cluster": {"server": server, "certificate-authority": str(ca)}}
            ],
            "users": [{"name": "u", "user": {"token": self.token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        file = folder / f"kubeconfig-{port}"
        file.write_text(json.dumps(config))
        return file

    def allow(self, rules: list[dict[str, Any]]) -> None:
        """Gives the operator these rights instead of those it has."""
        self.cluster.api.merge(
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/llmengine-operator", {"rules": rules}
        )


@pytest.fixture(scope="session")
def setting(control_plane: Cluster) -> Setting:
    cluster = control_plane
    for crd in sorted((REPOSITORY / "crds").glob("*.yaml")):
        cluster.apply(crd.read_text())
    cluster.kubectl("wait", "crd", "--all", "--for=condition=Established", "--timeout=30s")
    meta = {"name": "llmengine-operator", "namespace": SYSTEM}
    role = {"name": "llmengine-operator"}
    group = "rbac.authorization.k8s.io"
    cluster.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": role, "rules": RULES},
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": role,
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role["name"]},
            "subjects": [{"kind": "ServiceAccount", **meta}],
        },
    )
    path = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/llmengine-operator/token"
    answer = cluster.api.request("POST", path, {"spec": {"expirationSeconds": 7200}})
    return Setting(cluster, answer["status"]["token"])


@pytest.fixture
def namespace(setting: Setting) -> Iterator[str]:
    """A namespace of the test's own, in which pods can be made."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    api = setting.cluster.api
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    accounts = f"/api/v1/namespaces/{name}/serviceaccounts"
    wait_for(lambda: api.items(accounts), describe="the default service account")
    yield name
    api.request("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def proxy(setting: Setting) -> Iterator[ApiProxy]:
    """Before the API server."""
    with ApiProxy(setting.cluster.api.port, setting.cluster.state.pki) as running:
        yield running


@pytest.fixture
def kube(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> KubeClient:
    """A client with all rights."""
    return connect(setting.cluster.kubeconfig, monkeypatch)


def connect(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> KubeClient:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    return KubeClient(Access(connections=4))


def an_engine(namespace: str, name: str, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "llmengine.io/v1alpha1",
        "kind": "LLMEngine",
        "metadata": {"namespace": namespace, "name": name, **metadata},
        "spec": {"runtime": "r", "model": {"uri": "s3://models/a/b", "revision": "1"}},
    }


def a_managed_job(namespace: str, name: str, **metadata: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/managed-by": "llmengine-operator", **metadata.pop("labels", {})}
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"namespace": namespace, "name": name, "labels": labels, **metadata},
        "spec": {"suspend": True, "template": {"spec": pod}},
    }
