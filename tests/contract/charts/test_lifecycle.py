"""Install, upgrade, roll back, uninstall and install again, with Helm on a real API server.

No node runs pods here: what is asserted is what the API server has.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmengine.api.v1alpha1 import SCHEMA_REVISION, SCHEMA_REVISION_ANNOTATION
from tests.cluster.cluster import Cluster
from tests.cluster.waiting import wait_for
from tests.contract.charts.alternatives import everything
from tests.contract.charts.helm import CHARTS, CRDS, MINIMAL, OPERATOR, Helm, HelmError, at, merged

pytestmark = pytest.mark.controlplane

SYSTEM = "llmengine-system"
NEWER = str(SCHEMA_REVISION + 1)
KINDS = ("llmengines.llmengine.io", "engineruntimes.llmengine.io")
ENGINE = {
    "apiVersion": "llmengine.io/v1alpha1",
    "kind": "LLMEngine",
    "metadata": {"name": "chat", "namespace": "default"},
    "spec": {
        "runtime": "onnxruntime-1.32.0",
        "model": {"uri": "s3://models/smollm2", "revision": "v1"},
    },
}


@pytest.fixture
def empty(chart_cluster: Cluster, cluster_helm: Helm) -> Iterator[Helm]:
    """Helm, on a cluster without releases and kinds of ours. Namespaces stay: they end slowly."""
    _clear(chart_cluster, cluster_helm)
    yield cluster_helm
    _clear(chart_cluster, cluster_helm)


def _clear(cluster: Cluster, helm: Helm) -> None:
    for release in helm.run("list", "--all-namespaces", "--short", "--all").split():
        namespace = SYSTEM if release == "llmengine-operator" else "default"
        helm.run("uninstall", release, "--namespace", namespace)
    cluster.kubectl("delete", "crd", *KINDS, "--ignore-not-found")


@pytest.fixture
def installed(empty: Helm) -> Helm:
    """Helm, after both charts were installed as the README says."""
    empty.run("upgrade", "--install", "llmengine-crds", str(CRDS))
    _upgrade(empty, MINIMAL)
    return empty


def _upgrade(helm: Helm, values: dict[str, Any], chart: Path = OPERATOR) -> str:
    return helm.run(
        *("upgrade", "--install", "llmengine-operator", str(chart)),
        *("--namespace", SYSTEM, "--create-namespace"),
        values=values,
    )


def _config(cluster: Cluster) -> dict[str, Any]:
    path = f"/api/v1/namespaces/{SYSTEM}/configmaps/llmengine-operator"
    config: dict[str, Any] = yaml.safe_load(cluster.api.get(path)["data"]["config.yaml"])
    return config


def _names(cluster: Cluster, kind: str) -> list[str]:
    return cluster.kubectl("get", kind, "--output=name", "--all-namespaces").split()


def test_without_the_kinds_the_operator_is_not_installed(empty: Helm) -> None:
    with pytest.raises(HelmError) as refused:
        _upgrade(empty, MINIMAL)
    says = str(refused.value)
    assert "the CRD llmengines.llmengine.io is not installed; run: helm upgrade --install" in says
    assert empty.run("list", "--namespace", SYSTEM, "--short", "--deployed").split() == []


def test_with_older_kinds_the_operator_is_not_installed(
    empty: Helm, chart_cluster: Cluster
) -> None:
    empty.run("upgrade", "--install", "llmengine-crds", str(CRDS))
    chart_cluster.kubectl("annotate", "crd", KINDS[1], f"{SCHEMA_REVISION_ANNOTATION}-")
    with pytest.raises(HelmError) as refused:
        _upgrade(empty, MINIMAL)
    says = str(refused.value)
    needed = f"this chart needs {SCHEMA_REVISION}; run:"
    assert f"the CRD engineruntimes.llmengine.io is of revision 0, {needed}" in says


def test_an_install_makes_the_operator_and_its_runtimes(
    installed: Helm, chart_cluster: Cluster
) -> None:
    assert _names(chart_cluster, "engineruntimes") == [
        "engineruntime.llmengine.io/onnxruntime-1.32.0"
    ]
    deployment = chart_cluster.api.get(
        f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/llmengine-operator"
    )
    assert deployment["spec"]["replicas"] == 1
    builds = chart_cluster.api.get("/api/v1/namespaces/llmengine-builds")
    assert builds["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    made = "priorityclass.scheduling.k8s.io/llmengine-operator-build"
    assert _config(chart_cluster)["builds"]["priorityClassName"] == made.partition("/")[2]
    assert made in _names(chart_cluster, "priorityclasses")
    _upgrade(installed, merged(MINIMAL, at("builds.priorityClass.create", False)))
    assert _config(chart_cluster)["builds"]["priorityClassName"] == ""
    assert made not in _names(chart_cluster, "priorityclasses")


def test_everything_is_installed_at_once(installed: Helm, chart_cluster: Cluster) -> None:
    for namespace in ("team-a", "team-b", "team-c", "compile"):
        chart_cluster.kubectl("create", "namespace", namespace)
    try:
        # Kinds that this cluster does not know.
        values = merged(
            everything(),
            at("metrics.serviceMonitor.enabled", False),
            at("metrics.podMonitor.enabled", False),
            at("builds.createNamespace", False),
        )
        _upgrade(installed, values)
        for place in ("team-a/store-scoped", "team-b/store-serve", "compile/model-reader"):
            namespace, name = place.split("/")
            chart_cluster.kubectl("get", "secret", "--namespace", namespace, name)
        assert _config(chart_cluster)["watchNamespaces"] == ["team-a", "team-b", "team-c"]
    finally:
        installed.run("uninstall", "llmengine-operator", "--namespace", SYSTEM)
        chart_cluster.kubectl("delete", "engineruntimes", "--all")
        old = ("team-a", "team-b", "team-c", "compile")
        chart_cluster.kubectl("delete", "namespace", *old, "--wait=false")


def test_pods_of_the_operator_are_admitted_where_only_restricted_ones_are(
    installed: Helm, chart_cluster: Cluster
) -> None:
    level = "pod-security.kubernetes.io/enforce=restricted"
    chart_cluster.kubectl("label", "namespace", SYSTEM, level)
    _upgrade(installed, merged(MINIMAL, at("podLabels", {"again": "yes"})))

    def pods() -> list[dict[str, Any]]:
        return chart_cluster.api.items(f"/api/v1/namespaces/{SYSTEM}/pods?labelSelector=again=yes")

    wait_for(pods, 30, "a pod of the operator")
    warned = chart_cluster.kubectl("get", "events", "--namespace", SYSTEM)
    assert "violates PodSecurity" not in warned


def test_an_upgrade_and_a_rollback_change_the_configuration(
    installed: Helm, chart_cluster: Cluster
) -> None:
    assert _config(chart_cluster)["workers"] == 4
    _upgrade(installed, merged(MINIMAL, {"workers": 8}))
    assert _config(chart_cluster)["workers"] == 8
    installed.run("rollback", "llmengine-operator", "1", "--namespace", SYSTEM)
    assert _config(chart_cluster)["workers"] == 4


def test_a_runtime_cannot_become_another_version_under_the_same_name(installed: Helm) -> None:
    changed = at("runtimes", {"onnxruntime-1.32.0": {"version": "1.33.0"}})
    with pytest.raises(HelmError, match="create another EngineRuntime, and name it in the"):
        _upgrade(installed, merged(MINIMAL, changed))


def test_a_runtime_that_a_newer_chart_lacks_stays(installed: Helm, chart_cluster: Cluster) -> None:
    newer = {
        "onnxruntime-1.32.0": None,
        "onnxruntime-1.33.0": {
            "backend": "onnxruntime",
            "version": "1.33.0",
            "accelerator": "cpu",
            "image": {"repository": "registry.test/engine"},
        },
    }
    _upgrade(installed, {**MINIMAL, "runtimes": newer})
    assert [name.partition("/")[2] for name in _names(chart_cluster, "engineruntimes")] == [
        "onnxruntime-1.32.0",
        "onnxruntime-1.33.0",
    ]


def test_an_uninstalled_operator_leaves_what_others_depend_on(
    installed: Helm, chart_cluster: Cluster
) -> None:
    chart_cluster.apply(ENGINE)
    said = installed.run("uninstall", "llmengine-operator", "--namespace", SYSTEM)
    assert "[EngineRuntime] onnxruntime-1.32.0" in said
    assert "[Namespace] llmengine-builds" in said
    assert _names(chart_cluster, "llmengines") == ["llmengine.llmengine.io/chat"]
    assert chart_cluster.kubectl(
        "get", "deployments,configmaps", "--namespace", SYSTEM, "--output=name"
    ).split() == ["configmap/kube-root-ca.crt"]
    left = chart_cluster.kubectl("get", "clusterroles,clusterrolebindings", "--output=name")
    assert "llmengine" not in left
    # Installed anew, it takes up what it left.
    _upgrade(installed, merged(MINIMAL, {"workers": 8}))
    assert _config(chart_cluster)["workers"] == 8


def test_uninstalled_kinds_stay_with_every_engine_and_are_taken_up_again(
    installed: Helm, chart_cluster: Cluster
) -> None:
    chart_cluster.apply(ENGINE)
    said = installed.run("uninstall", "llmengine-crds")
    assert "[CustomResourceDefinition] llmengines.llmengine.io" in said
    assert _names(chart_cluster, "llmengines") == ["llmengine.llmengine.io/chat"]
    installed.run("install", "llmengine-crds", str(CRDS))
    assert _names(chart_cluster, "llmengines") == ["llmengine.llmengine.io/chat"]


def test_kinds_that_came_otherwise_are_taken_over_only_when_told(
    empty: Helm, chart_cluster: Cluster
) -> None:
    chart_cluster.kubectl("apply", "--filename", str(CHARTS.parent / "crds"))
    with pytest.raises(HelmError, match="invalid ownership metadata"):
        empty.run("install", "llmengine-crds", str(CRDS))
    empty.run("upgrade", "--install", "llmengine-crds", str(CRDS), "--take-ownership")
    owner = chart_cluster.api.get(
        f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{KINDS[0]}"
    )["metadata"]["annotations"]
    assert owner["meta.helm.sh/release-name"] == "llmengine-crds"


def test_an_upgrade_of_the_kinds_reaches_the_cluster(
    installed: Helm, chart_cluster: Cluster, tmp_path: Path
) -> None:
    """What Helm's own crds/ folder never does."""
    newer = tmp_path / "llmengine-crds"
    shutil.copytree(CRDS, newer)
    template = newer / "templates" / f"{KINDS[0]}.yaml"
    crd = yaml.safe_load(template.read_text())
    crd["metadata"]["annotations"][SCHEMA_REVISION_ANNOTATION] = NEWER
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["novel"] = {"type": "string"}
    template.write_text(yaml.safe_dump(crd))
    installed.run("upgrade", "llmengine-crds", str(newer))
    live = chart_cluster.api.get(
        f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{KINDS[0]}"
    )
    assert live["metadata"]["annotations"][SCHEMA_REVISION_ANNOTATION] == NEWER
    assert "novel" in str(live["spec"])


def test_the_notes_say_which_secrets_are_still_to_be_made(installed: Helm) -> None:
    def notes(values: dict[str, Any]) -> str:
        arguments = ("upgrade", "llmengine-operator", str(OPERATOR), "--dry-run=client")
        said = installed.run(*arguments, "--namespace", SYSTEM, values=values)
        return said.partition("NOTES:")[2]

    least = notes(MINIMAL)
    assert "make the Secret llmengine-store-operator in namespace llmengine-system" in least
    assert "make the Secret llmengine-store-write in namespace llmengine-builds" in least
    assert "needs the Secret llmengine-store-read, which you have to make" in least
    unknown = [at(f"metrics.{kind}.enabled", False) for kind in ("serviceMonitor", "podMonitor")]
    full = notes(merged(everything(), *unknown))
    assert "ou have to make" not in full
    assert "in one of the namespaces team-a, team-b, team-c" in full
