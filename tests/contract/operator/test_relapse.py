"""An engine that served, and whose pods then crash: what users and tools read, and when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llmengine_operator.kinds import DEPLOYMENT, POD
from llmengine_operator.strategy import rolled_out
from tests.contract.operator.builder import Builder
from tests.contract.operator.kubelet import Kubelet
from tests.contract.operator.running import Clock, LiveOperator
from tests.contract.operator.stage import Stage

pytestmark = pytest.mark.controlplane

WORDS = "illegal memory access"
# Longer than a test's look takes: a pod that is ready for a moment has not proved itself.
PROOF = 10


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def operator(stage: Stage, clock: Clock) -> Iterator[LiveOperator]:
    config = stage.config(rollouts={"minReadySeconds": PROOF})
    with LiveOperator(stage, config=config, clock=clock) as running:
        yield running


@pytest.fixture
def kubelet(stage: Stage) -> Kubelet:
    return Kubelet(stage)


def serve(stage: Stage, builder: Builder, kubelet: Kubelet, replicas: int) -> list[str]:
    """An engine whose rollout has gone through: the names of its pods."""
    stage.create(serving={"replicas": replicas})
    builder.finish(stage.until_job())
    stage.until_reason("Serving")
    stage.until("its rollout to be over", lambda: rolled_out(deployment(stage)))
    return [pod["metadata"]["name"] for pod in kubelet.pods()]


def deployment(stage: Stage) -> dict[str, Any]:
    found = stage.get(DEPLOYMENT, "chat-amd64")
    assert found is not None
    return found


def progress(stage: Stage) -> str:
    found = {c["type"]: c for c in deployment(stage)["status"]["conditions"]}
    return str(found["Progressing"]["reason"])


def told(stage: Stage) -> list[tuple[str, str]]:
    return [(event["type"], event["reason"]) for event in stage.events()]


def test_it_is_work_at_first_then_stalled_and_serves_again_by_itself(
    stage: Stage, builder: Builder, kubelet: Kubelet, operator: LiveOperator, clock: Clock
) -> None:
    (pod,) = serve(stage, builder, kubelet, 1)
    said = f"amd64: no pod serves; pod {pod}: Error, exit code 7: {WORDS}"
    kubelet.crash(pod, WORDS)
    stage.until("its words", lambda: stage.message() == said)
    assert stage.conditions()["Ready"] == ("Unknown", "CrashLooping")
    assert stage.conditions()["Available"] == ("False", "NoPodReady")
    # To its Deployment's controller nothing is due any more: nobody else will ever say so.
    assert progress(stage) == "NewReplicaSetAvailable"
    # It gets ready for a moment, and is no nearer to serving.
    kubelet.start(pod)
    stage.until("it to answer", lambda: stage.conditions()["Available"] == ("True", "Serving"))
    assert stage.conditions()["Ready"] == ("Unknown", "CrashLooping")
    kubelet.crash(pod, WORDS)
    stage.until("it to be down", lambda: stage.conditions()["Available"][0] == "False")
    clock.advance(seconds=601)
    operator.resync()
    stage.until("it to stall", lambda: stage.conditions().get("Stalled"))
    found = stage.conditions()
    assert found["Ready"] == ("False", "CrashLooping")
    assert found["Stalled"] == ("True", "CrashLooping")
    assert "Reconciling" not in found
    assert stage.message(type_="Stalled") == said
    stage.until("the event", lambda: ("Warning", "CrashLooping") in told(stage))
    writes, passes = operator.writes, operator.passes.count((stage.team, "chat"))
    operator.resync()
    stage.until("a pass", lambda: operator.passes.count((stage.team, "chat")) > passes)
    assert operator.writes == writes
    kubelet.start(pod)
    assert stage.until_reason("Serving")["observedGeneration"] == 1
    assert "Stalled" not in stage.conditions()
    assert ("Normal", "CrashLooping") in told(stage)


def test_where_another_serves_it_says_so_and_a_new_pod_in_its_place_ends_it(
    stage: Stage, builder: Builder, kubelet: Kubelet, operator: LiveOperator, clock: Clock
) -> None:
    _, bad = serve(stage, builder, kubelet, 2)
    kubelet.crash(bad, WORDS)
    said = f"amd64: 1 of 2 pods serve; pod {bad}: Error, exit code 7: {WORDS}"
    stage.until("its words", lambda: stage.message() == said)
    assert stage.conditions()["Ready"] == ("Unknown", "CrashLooping")
    clock.advance(seconds=601)
    operator.resync()
    stage.until("it to stall", lambda: stage.conditions().get("Stalled"))
    assert stage.message() == said
    assert stage.conditions()["Available"] == ("True", "Serving")
    stage.remove(POD, bad)
    stage.until_reason("Serving")
    assert "Stalled" not in stage.conditions()
