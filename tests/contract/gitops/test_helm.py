"""A chart of a user's own that has an engine among its templates, with Helm 3."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.charts.helm import Helm
from tests.contract.gitops.desk import Desk
from tests.contract.gitops.judges import kstatus
from tests.contract.gitops.recorder import Recorder, told
from tests.contract.operator.stage import Stage

pytestmark = pytest.mark.controlplane

Upgrade = Callable[..., str]


@pytest.fixture
def upgrade(stage: Stage, desk: Desk, tmp_path: Path) -> Upgrade:
    """`helm upgrade` of the chart, to a version of the model."""
    chart = tmp_path / "app"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: app\nversion: 0.1.0\n")
    engine: dict[str, Any] = desk.manifest()
    engine["metadata"].pop("namespace")
    engine["spec"]["model"]["revision"] = "{{ .Values.revision }}"
    (chart / "templates" / "engine.yaml").write_text(yaml.safe_dump(engine))
    helm = Helm(tmp_path / "helm", stage.cluster.kubeconfig)

    def run(version: str, *flags: str) -> str:
        values = {"revision": desk.model(version)["revision"]}
        place = ("--namespace", stage.team)
        return helm.run("upgrade", "--install", "app", str(chart), *place, *flags, values=values)

    return run


def test_helm_3_does_not_wait_for_engines(desk: Desk, upgrade: Upgrade) -> None:
    """Helm 4 waits by kstatus, which says what it ought to at this moment."""
    said = upgrade("v1", "--wait", "--timeout=60s")
    assert "STATUS: deployed" in said
    assert kstatus(desk.engine()) == ["InProgress"]


@pytest.mark.parametrize("flags", [(), ("--force",)], ids=["upgrade", "upgrade --force"])
def test_an_upgrade_is_an_edit_of_the_engine_that_is_there(
    stage: Stage, desk: Desk, upgrade: Upgrade, flags: tuple[str, ...]
) -> None:
    upgrade("v1")
    desk.build("v1")
    uid, pods = desk.engine()["metadata"]["uid"], desk.pods()
    with Recorder(stage) as recorder:
        upgrade("v1", *flags)
        upgrade("v2", *flags)
        desk.job("v2")
        assert desk.pods() == pods
        desk.build("v2")
    assert told(recorder.moments(), "kstatus") == [
        (1, "Current"),
        (2, "InProgress"),
        (2, "Current"),
    ]
    assert desk.engine()["metadata"]["uid"] == uid
    assert min(seen["status"]["readyReplicas"] for seen in recorder.deployments()) >= 1
