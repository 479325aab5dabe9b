"""Every example is accepted: manifests by the API server, values by the chart."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from llmengine.architecture import Architecture
from llmengine_operator.resources.autoscaler import (
    REQUESTS_PER_SLOT,
    REQUESTS_WAITING_PER_SLOT,
)
from llmengine_operator.resources.deployment import deployment_name
from tests.cluster.cluster import Cluster
from tests.cluster.paths import ClusterError
from tests.contract.charts.helm import CHARTS, CRDS, OPERATOR, Helm
from tests.contract.charts.schemas import kubeconform
from tests.tools.build import ToolError
from tests.tools.crds import MODULES, crds

EXAMPLES = CHARTS.parent / "examples"
FOLDERS = sorted(path.parent for path in EXAMPLES.rglob("kustomization.yaml"))
MANIFESTS = sorted(
    path
    for pattern in ("*.yaml", "gitops/**/*.yaml")
    for path in EXAMPLES.glob(pattern)
    if path.parent not in FOLDERS
)
VALUES = sorted(EXAMPLES.glob("values/*.yaml"))
# Values of somebody else's chart.
ADAPTER = EXAMPLES / "autoscaling/prometheus-adapter.yaml"
# Of tools that an example is written for: no schema of Kubernetes has them.
FOREIGN = "GitRepository,Kustomization,HelmRelease,Application,ScaledObject"


def name_of(path: Path) -> str:
    return str(path.relative_to(EXAMPLES).with_suffix(""))


@pytest.fixture(scope="module")
def with_foreign_kinds(chart_cluster: Cluster) -> Cluster:
    """A cluster that has the tools' kinds, and the namespaces that examples name."""
    for crd in crds():
        chart_cluster.kubectl("apply", "--server-side", "--filename", str(crd))
    chart_cluster.kubectl("wait", "crd", "--all", "--for=condition=Established", "--timeout=60s")
    present = {n["metadata"]["name"] for n in chart_cluster.api.items("/api/v1/namespaces")}
    for namespace in {"argocd", "flux-system", "demo"} - present:
        chart_cluster.kubectl("create", "namespace", namespace)
    return chart_cluster


def test_there_are_examples() -> None:
    assert {"first-engine", "hf", "pvc", "autoscaling", "gpu"} <= {path.stem for path in MANIFESTS}
    assert {"gitops/flux/engines", "gitops/argocd/engines"} <= {name_of(p) for p in MANIFESTS}
    assert {"minimal", "demo", "tenants", "gpus"} <= {path.stem for path in VALUES}
    pages = EXAMPLES.rglob("README.md")
    parts = (part for folder in FOLDERS for part in folder.iterdir())
    assert {path for path in EXAMPLES.rglob("*") if path.is_file()} == {
        *MANIFESTS,
        *VALUES,
        ADAPTER,
        *pages,
        *parts,
    }


@pytest.mark.controlplane
@pytest.mark.parametrize("path", MANIFESTS, ids=name_of)
def test_the_api_server_accepts_a_manifest(
    with_foreign_kinds: Cluster, cluster_helm: Helm, path: Path
) -> None:
    cluster_helm.run("upgrade", "--install", "llmengine-crds", str(CRDS))
    said = with_foreign_kinds.kubectl("apply", "--dry-run=server", "--filename", str(path))
    assert said.count("created (server dry run)") == len(list(yaml.safe_load_all(path.read_text())))


@pytest.mark.controlplane
@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_the_api_server_accepts_a_folder(
    with_foreign_kinds: Cluster, cluster_helm: Helm, folder: Path
) -> None:
    cluster_helm.run("upgrade", "--install", "llmengine-crds", str(CRDS))
    said = with_foreign_kinds.kubectl("apply", "--dry-run=server", "--kustomize", str(folder))
    assert said == "llmengine.llmengine.io/smollm2 created (server dry run)\n"


@pytest.mark.controlplane
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("Kustomization", id="of Flux"),
        pytest.param("HelmRelease", id="of Flux, whose kind was generated"),
        pytest.param("Application", id="of Argo CD"),
        pytest.param("ScaledObject", id="of KEDA"),
    ],
)
def test_a_mistake_in_an_example_for_a_tool_would_be_seen(
    with_foreign_kinds: Cluster, kind: str
) -> None:
    found = (m for path in MANIFESTS for m in yaml.safe_load_all(path.read_text()))
    manifest = next(m for m in found if m["kind"] == kind)
    manifest["spec"]["healthCheck"] = []
    with pytest.raises(ClusterError, match=re.escape('unknown field "spec.healthCheck"')):
        with_foreign_kinds.kubectl(
            "apply", "--dry-run=server", "--filename", "-", stdin=yaml.safe_dump(manifest)
        )


def test_kinds_of_tools_that_are_not_those_that_were_pinned_are_refused() -> None:
    other = replace(MODULES[1], sum="h1:other")
    with pytest.raises(ToolError, match=rf"{other.path} {other.version} is h1:.+, not h1:other"):
        other.read()


@pytest.mark.parametrize("path", MANIFESTS, ids=name_of)
def test_a_manifest_is_valid(schemas: Path, path: Path) -> None:
    kubeconform(schemas, path.read_text(), skip=FOREIGN)


@pytest.mark.parametrize("tool", ["flux", "argocd"])
def test_the_chart_accepts_the_values_in_an_example_for_a_tool(
    helm: Helm, schemas: Path, tool: str
) -> None:
    text = (EXAMPLES / "gitops" / tool / "platform.yaml").read_text()
    found = {m["metadata"]["name"]: m["spec"] for m in yaml.safe_load_all(text)}
    spec = found["llmengine-operator"]
    values = spec["values"] if tool == "flux" else spec["source"]["helm"]["valuesObject"]
    chart = spec["chart"]["spec"]["chart"] if tool == "flux" else spec["source"]["path"]
    rendered = helm.render(CHARTS.parent / chart, values)
    kubeconform(schemas, yaml.safe_dump_all(rendered), skip="ServiceMonitor,PodMonitor")


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.stem)
def test_the_chart_accepts_values(helm: Helm, schemas: Path, path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    helm.run("lint", "--strict", str(OPERATOR), values=values)
    rendered = helm.render(OPERATOR, values)
    kubeconform(schemas, yaml.safe_dump_all(rendered), skip="ServiceMonitor,PodMonitor")


def test_the_example_for_keda_scales_what_the_operator_makes_and_leaves_alone() -> None:
    engine, scaled = yaml.safe_load_all((EXAMPLES / "keda.yaml").read_text())
    (architecture,) = engine["spec"]["architectures"]
    name = deployment_name(engine["metadata"]["name"], Architecture.parse(architecture))
    assert scaled["spec"]["scaleTargetRef"] == {"kind": "Deployment", "name": name}
    assert not {"replicas", "autoscaling"} & set(engine["spec"].get("serving", {}))
    (trigger,) = scaled["spec"]["triggers"]
    asked = set(re.findall(r"llmengine_\w+", trigger["metadata"]["query"]))
    page = (CHARTS.parent / "docs" / "operations.md").read_text()
    explained = set(re.findall(r"^\| `(\w+)", page, re.MULTILINE))
    assert asked == {"llmengine_slots", "llmengine_queue_depth"}
    assert asked <= explained


def test_the_adapters_rule_passes_on_what_an_autoscaler_asks_for_and_a_server_exports() -> None:
    (rule,) = yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]
    found = re.search('__name__=~"(.+?)"', rule["seriesQuery"])
    assert found is not None
    server = (CHARTS.parent / "builder_image/llmengine_server/metrics.py").read_text()
    exported = set(re.findall('"(llmengine_[a-z_]+)"', server))
    passed = {name for name in exported if re.fullmatch(found[1].strip("^$"), name)}
    assert passed == {REQUESTS_PER_SLOT, REQUESTS_WAITING_PER_SLOT}


def test_the_readme_has_the_smallest_values_as_they_are() -> None:
    smallest = (EXAMPLES / "values" / "minimal.yaml").read_text()
    code = [line for line in smallest.splitlines() if not line.startswith("#")]
    indented = "".join(f"    {line}\n" for line in code)
    assert indented in (OPERATOR / "README.md").read_text()
