"""Every example is accepted: manifests by the API server, values by the chart."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.cluster.cluster import Cluster
from tests.contract.charts.helm import CHARTS, CRDS, OPERATOR, Helm
from tests.contract.charts.schemas import kubeconform

EXAMPLES = CHARTS.parent / "examples"
MANIFESTS = sorted(EXAMPLES.glob("*.yaml"))
VALUES = sorted(EXAMPLES.glob("values/*.yaml"))


def test_there_are_examples() -> None:
    assert {"first-engine", "hf", "pvc", "autoscaling", "gpu"} <= {path.stem for path in MANIFESTS}
    assert {"minimal", "demo", "tenants", "gpus"} <= {path.stem for path in VALUES}
    found = {*MANIFESTS, *VALUES}
    assert {path for path in EXAMPLES.rglob("*") if path.is_file()} == found


@pytest.mark.controlplane
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_api_server_accepts_a_manifest(
    chart_cluster: Cluster, cluster_helm: Helm, path: Path
) -> None:
    cluster_helm.run("upgrade", "--install", "llmengine-crds", str(CRDS))
    said = chart_cluster.kubectl("apply", "--dry-run=server", "--filename", str(path))
    assert said.count("created (server dry run)") == len(list(yaml.safe_load_all(path.read_text())))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_is_valid(schemas: Path, path: Path) -> None:
    kubeconform(schemas, path.read_text())


@pytest.mark.parametrize("path", VALUES, ids=lambda path: path.stem)
def test_the_chart_accepts_values(helm: Helm, schemas: Path, path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    helm.run("lint", "--strict", str(OPERATOR), values=values)
    rendered = helm.render(OPERATOR, values)
    kubeconform(schemas, yaml.safe_dump_all(rendered), skip="ServiceMonitor")


def test_the_readme_has_the_smallest_values_as_they_are() -> None:
    smallest = (EXAMPLES / "values" / "minimal.yaml").read_text()
    code = [line for line in smallest.splitlines() if not line.startswith("#")]
    indented = "".join(f"    {line}\n" for line in code)
    assert indented in (OPERATOR / "README.md").read_text()
