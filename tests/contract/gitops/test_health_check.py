"""Argo CD's health checks as they are shipped: with their own tests, in Argo CD's own format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.charts.schemas import kubeconform, write_schemas
from tests.contract.gitops.judges import CUSTOMIZATIONS, ENGINE_HEALTH, JudgeError, Verdict, argo
from tests.contract.gitops.manifests import example

SCRIPTS = sorted(CUSTOMIZATIONS.rglob("health.lua"))


def cases() -> Iterator[Any]:
    for script in SCRIPTS:
        tests = yaml.safe_load((script.parent / "health_test.yaml").read_text())["tests"]
        for test in tests:
            path = script.parent / test["inputPath"]
            yield pytest.param(
                script, path, test["healthStatus"], id=f"{script.parent.name} {path.stem}"
            )


@pytest.mark.parametrize("builtin", [False, True], ids=["from argocd-cm", "built in"])
@pytest.mark.parametrize(("script", "path", "health"), list(cases()))
def test_a_health_check_passes_its_own_tests(
    script: Path, path: Path, health: dict[str, str], builtin: bool
) -> None:
    obj = yaml.safe_load(path.read_text())
    (said,) = argo(obj, script=script, builtin=builtin)
    assert said == Verdict(health["status"], health["message"])


def test_every_recorded_object_has_a_test_and_is_one_that_the_kinds_take(tmp_path: Path) -> None:
    write_schemas(tmp_path)
    recorded = sorted(CUSTOMIZATIONS.rglob("testdata/*.yaml"))
    assert recorded == sorted(case.values[1] for case in cases())
    kubeconform(tmp_path, "---\n".join(path.read_text() for path in recorded))


def test_the_scripts_lie_where_argo_cd_looks_for_them() -> None:
    places = [str(script.relative_to(CUSTOMIZATIONS)) for script in SCRIPTS]
    assert places == [
        "llmengine.io/EngineRuntime/health.lua",
        "llmengine.io/LLMEngine/health.lua",
    ]


def test_the_example_of_a_configmap_has_the_scripts_as_they_are() -> None:
    data = example("ConfigMap", "argocd-cm")["data"]
    assert data == {
        f"resource.customizations.health.llmengine.io_{script.parent.name}": script.read_text()
        for script in SCRIPTS
    }


def test_a_script_that_needs_a_library_is_refused_unless_argo_cd_ships_it(tmp_path: Path) -> None:
    """As by Argo CD: else a script that passes here would fail there."""
    script = tmp_path / "health.lua"
    script.write_text('return {status = string.format("%s", "Healthy"), message = ""}')
    obj = {"apiVersion": "v1", "kind": "X", "metadata": {"name": "x"}}
    assert argo(obj, script=script, builtin=True) == [Verdict("Healthy", "")]
    with pytest.raises(JudgeError, match="index a non-table object"):
        argo(obj, script=script)


def test_a_health_that_argo_cd_does_not_know_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "health.lua"
    script.write_text('return {status = "Fine"}')
    with pytest.raises(JudgeError, match='no health status "Fine"'):
        argo({"apiVersion": "v1", "kind": "X", "metadata": {"name": "x"}}, script=script)


def test_an_engine_without_any_status_is_waited_for() -> None:
    """Of a cluster whose kinds are older than the default of the status."""
    obj = {"apiVersion": "llmengine.io/v1alpha1", "kind": "LLMEngine", "metadata": {"name": "x"}}
    assert argo(obj, script=ENGINE_HEALTH) == [Verdict("Progressing", "Waiting for the operator")]
