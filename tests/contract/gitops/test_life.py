"""An engine's whole life, as the tools' own code judges every state of it that there ever was."""

from __future__ import annotations

import pytest

from llmengine_operator.kinds import LLMENGINE
from tests.contract.gitops.desk import Desk
from tests.contract.gitops.judges import argo, kstatus
from tests.contract.gitops.recorder import Recorder, told
from tests.contract.operator.command import OperatorCommand
from tests.contract.operator.stage import Stage

pytestmark = pytest.mark.controlplane


def judged(desk: Desk) -> tuple[str, str]:
    """The engine as it is now, by kstatus and by Argo CD."""
    engine = desk.engine()
    return kstatus(engine)[0], argo(engine)[0].status


def test_done_is_said_when_the_newest_spec_serves_and_at_no_other_moment(
    stage: Stage, desk: Desk, operator: OperatorCommand
) -> None:
    with Recorder(stage) as recorder:
        with operator.paused():
            stage.create(model=desk.model("v1"))
            assert judged(desk) == ("InProgress", "Progressing")
        desk.build("v1")
        assert judged(desk) == ("Current", "Healthy")
        with operator.paused():
            stage.edit(model=desk.model("v2"))
            assert judged(desk) == ("InProgress", "Progressing")
        desk.job("v2")
        stage.until_reason("Building")
        desk.build("v2")
        stage.edit(model=desk.model("v1"))  # a revert
        stage.until_reason("Serving")
        stage.edit(serving={"replicas": 2})
        stage.until("two pods", lambda: stage.status()["summary"]["replicas"] == "2/2")
        stage.until_reason("Serving")
    moments = recorder.moments()
    generations = range(1, 5)
    assert told(moments, "kstatus") == [
        (g, verdict) for g in generations for verdict in ("InProgress", "Current")
    ]
    assert told(moments, "argo") == [
        (g, verdict) for g in generations for verdict in ("Progressing", "Healthy")
    ]
    done = [moment for moment in moments if moment.kstatus == "Current"]
    assert [moment.generation for moment in done if not moment.serves] == []
    assert recorder.built() == desk.revisions("v1", "v2")


def test_a_build_that_fails_for_good_is_a_failure_until_the_spec_is_mended(
    stage: Stage, desk: Desk
) -> None:
    with Recorder(stage) as recorder:
        stage.create(model=desk.model("v1"))
        desk.build("v1")
        stage.edit(model=desk.model("bad"))
        desk.builder.fail(desk.job("bad"), 11, "ModelUnsupported", "no such family")
        stage.until_reason("ModelUnsupported")
        assert stage.conditions()["Available"] == ("True", "Serving")
        stage.edit(model=desk.model("v1"))
        stage.until_reason("Serving")
    moments = recorder.moments()
    assert told(moments, "kstatus") == [
        (1, "InProgress"),
        (1, "Current"),
        (2, "InProgress"),
        (2, "Failed"),
        (3, "InProgress"),
        (3, "Current"),
    ]
    assert told(moments, "argo")[3] == (2, "Degraded")


def test_suspended_is_neither_done_nor_failed_unless_all_serves_as_asked(
    stage: Stage, desk: Desk
) -> None:
    with Recorder(stage) as recorder:
        stage.create(model=desk.model("v1"))
        desk.build("v1")
        stage.edit(suspend=True)
        stage.until_reason("Serving")
        stage.edit(model=desk.model("v2"))
        stage.until_reason("Suspended")
        assert recorder.built() == desk.revisions("v1")
        stage.edit(suspend=False)
        desk.build("v2")
    moments = recorder.moments()
    assert told(moments, "kstatus") == [
        (1, "InProgress"),
        (1, "Current"),
        (2, "InProgress"),
        (2, "Current"),
        (3, "InProgress"),
        (4, "InProgress"),
        (4, "Current"),
    ]
    assert (3, "Suspended") in told(moments, "argo")


def test_a_deletion_in_the_foreground_is_waited_for_and_ends(stage: Stage, desk: Desk) -> None:
    """As Argo CD deletes; a deletion in the background, as kubectl's, is over at once."""
    stage.create(model=desk.model("v1"))
    desk.build("v1")
    with Recorder(stage) as recorder:
        desk.kubectl("delete", "llmengine", "chat", "--cascade=foreground")
        stage.until_gone()
        stage.until("the news", lambda: recorder.seen("DELETED"))
    assert told(recorder.moments(), "kstatus")[-1] == (2, "Terminating")
    assert stage.get(LLMENGINE, "chat") is None
