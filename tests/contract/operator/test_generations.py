"""Both generations of an engine in its status, while one is built and while it rolls out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llmengine_operator.kinds import POD
from tests.contract.operator.builder import Builder, request_of
from tests.contract.operator.running import LiveOperator
from tests.contract.operator.stage import Stage

pytestmark = pytest.mark.controlplane


@pytest.fixture
def operator(stage: Stage) -> Iterator[LiveOperator]:
    with LiveOperator(stage) as running:
        yield running


@pytest.fixture
def old(stage: Stage, builder: Builder, operator: LiveOperator) -> str:
    """The key of an engine that serves with two pods."""
    stage.create(serving={"replicas": 2})
    job = stage.until_job()
    builder.finish(job)
    stage.until_reason("Serving")
    return request_of(job).key


def rebuild(stage: Stage) -> dict[str, Any]:
    """The model was changed: the new engine's Job, which runs."""
    stage.edit(model={"revision": "v2"})

    def job() -> dict[str, Any] | None:
        return next((j for j in stage.jobs() if request_of(j).revision == "v2"), None)

    return dict(stage.until("the new build", job))


def row(status: dict[str, Any]) -> dict[str, Any]:
    (found,) = status["serving"]
    return dict(found)


def test_both_are_shown_until_the_last_old_pod_has_gone(
    stage: Stage, builder: Builder, old: str
) -> None:
    job = rebuild(stage)
    new = request_of(job).key
    built = stage.until_reason("Building")
    # It is built: what is wanted, what differs, and what serves meanwhile.
    (wanted,) = built["engines"]
    assert (wanted["key"], wanted["state"]) == (new, "Building")
    assert wanted["changed"] == ["model.revision: v1 -> v2"]
    assert (row(built)["key"], row(built)["readyReplicas"]) == (old, 2)
    assert "replaces" not in row(built)
    assert built["summary"] == {"engines": "0/1", "replicas": "2/2"}
    # It rolls out, and its first pod finds no node.
    stage.cordon(True)
    builder.finish(job)
    stage.until("the switch", lambda: row(stage.status())["key"] == new)
    status = stage.until_reason("Unschedulable")
    assert row(status)["replaces"] == {
        "key": old,
        "image": "registry.test/engine:v1",
        "readyReplicas": 2,
    }
    assert status["engines"][0]["changed"] == ["model.revision: v1 -> v2"]
    assert stage.conditions()["Available"] == ("True", "Serving")
    # It serves.
    stage.cordon(False)
    status = stage.until_reason("Serving")
    assert (row(status)["key"], row(status)["readyReplicas"]) == (new, 2)
    assert "replaces" not in row(status)


def test_an_edit_taken_back_in_the_middle_of_its_rollout_leaves_the_old_pods_as_they_were(
    stage: Stage, builder: Builder, old: str, operator: LiveOperator
) -> None:
    pods = uids(stage)
    job = rebuild(stage)
    stage.cordon(True)
    builder.finish(job)
    stage.until("the switch", lambda: row(stage.status())["key"] == request_of(job).key)
    stage.until_reason("Unschedulable")
    stage.edit(model={"revision": "v1"})
    status = stage.until_reason("Serving")
    assert row(status)["key"] == old
    assert "replaces" not in row(status)
    stage.until("the new pod to go", lambda: uids(stage) == pods)
    assert operator.client.requests["create", "Job"] == 2


def uids(stage: Stage) -> set[str]:
    found = stage.items(POD, labels="llmengine.io/engine=chat")
    return {pod["metadata"]["uid"] for pod in found}
