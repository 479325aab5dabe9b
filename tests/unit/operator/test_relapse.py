"""An engine that served, and whose pods then fail: what its status says, and from when on."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from llmengine_operator.conditions import ConditionType, find, rfc3339
from llmengine_operator.observation import Found, KubeObject
from llmengine_operator.report import report
from llmengine_operator.rollout import silent_pod
from tests.unit.operator.world import NOW, World

DEADLINE = 60
SPEC = {"rollout": {"progressDeadlineSeconds": DEADLINE}}
CRASHED: dict[str, Any] = {
    "restartCount": 3,
    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    "lastState": {"terminated": {"exitCode": 7, "reason": "Error", "message": "illegal access"}},
}
WORDS = "pod b: Error, exit code 7: illegal access"
CHAT = ("Deployment", "chat-amd64")


class Relapse:
    """Pods that all served once. The Deployment has lacked some for `unavailable` seconds, if so
    many are missing that its controller says so.
    """

    def __init__(self, *pods: KubeObject, unavailable: float | None = None) -> None:
        replicas = len(pods)
        serving = {**SPEC, "replicas": replicas}
        self.world = World(serving=serving).cached().serving(ready=replicas, replicas=replicas)
        found = self.world.observation.children[CHAT]
        assert isinstance(found, Found)
        (template, *_) = self.world.observation.pods
        self.world.but(pods=tuple(_like(template, pod) for pod in pods))
        conditions = [{"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}]
        if unavailable is not None:
            since = rfc3339(NOW - timedelta(seconds=unavailable))
            conditions.append({"type": "Available", "status": "False", "lastTransitionTime": since})
        ready = sum(_is_ready(pod) for pod in pods)
        status = {"readyReplicas": ready, "availableReplicas": ready, "conditions": conditions}
        if unavailable is not None and ready == replicas:
            status["availableReplicas"] = 0
        said = Found({**found.value, "status": {**found.value["status"], **status}})
        self.world.but(children={**self.world.observation.children, CHAT: said})

    @property
    def deployment(self) -> KubeObject:
        found = self.world.observation.children[CHAT]
        assert isinstance(found, Found)
        return found.value

    def said(self, type_: ConditionType = ConditionType.READY) -> tuple[str, str, str]:
        observation = self.world.observation
        decision = self.world.decide()
        status = report(observation, decision, applied=frozenset(), refused=None, now=NOW)
        found = find(status.conditions, type_)
        return (found.status, found.reason, found.message) if found else ("", "", "")

    @property
    def stalls(self) -> bool:
        return self.said(ConditionType.STALLED)[0] == "True"


def _like(template: KubeObject, pod: KubeObject) -> KubeObject:
    return {**template, **pod, "metadata": {**template["metadata"], **pod["metadata"]}}


def _is_ready(pod: KubeObject) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])


def pod(
    name: str,
    *,
    ready: bool = False,
    since: float = 3600,
    age: float = 7200,
    conditions: tuple[dict[str, str], ...] = (),
    phase: str = "Running",
    **container: Any,
) -> KubeObject:
    """Of the engine; ready, or not, for `since` seconds."""
    turned = rfc3339(NOW - timedelta(seconds=since))
    state = {"name": "server", "ready": ready, "restartCount": 0, **container}
    is_ready = {"type": "Ready", "status": str(ready), "lastTransitionTime": turned}
    return {
        "metadata": {"name": name, "creationTimestamp": rfc3339(NOW - timedelta(seconds=age))},
        "status": {
            "phase": phase,
            "conditions": [is_ready, *conditions],
            "containerStatuses": [state],
        },
    }


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
}


def test_a_pod_that_crashes_after_it_served_is_work_at_first_and_says_its_last_words() -> None:
    relapse = Relapse(pod("b", since=5, **CRASHED), unavailable=5)
    assert relapse.said() == ("Unknown", "CrashLooping", f"amd64: no pod serves; {WORDS}")
    assert relapse.said(ConditionType.RECONCILING)[0] == "True"
    assert relapse.said(ConditionType.AVAILABLE)[:2] == ("False", "NoPodReady")


def test_after_the_deadline_it_is_stalled() -> None:
    relapse = Relapse(pod("b", since=DEADLINE + 1, **CRASHED), unavailable=DEADLINE + 1)
    assert relapse.said() == ("False", "CrashLooping", f"amd64: no pod serves; {WORDS}")
    assert relapse.stalls
    assert relapse.said(ConditionType.RECONCILING) == ("", "", "")


@pytest.mark.parametrize("up", [False, True], ids=["between", "up for a moment"])
def test_a_pod_that_gets_ready_for_a_moment_before_each_crash_was_never_up(up: bool) -> None:
    within = Relapse(pod("b", ready=up, since=0, **CRASHED), unavailable=DEADLINE - 1)
    assert within.said()[:2] == ("Unknown", "CrashLooping")
    after = Relapse(pod("b", ready=up, since=0, **CRASHED), unavailable=DEADLINE + 1)
    assert after.said()[:2] == ("False", "CrashLooping")


def test_it_serves_again_by_itself_once_it_has_been_ready_for_long_enough() -> None:
    relapse = Relapse(pod("b", ready=True, since=6, **CRASHED))
    assert relapse.said()[:2] == ("True", "Serving")


def test_a_pod_that_never_ended_counts_as_soon_as_it_is_ready() -> None:
    relapse = Relapse(pod("b", ready=True, since=0), unavailable=DEADLINE + 1)
    assert relapse.said()[:2] == ("True", "Serving")


def test_where_others_serve_it_says_how_many() -> None:
    others = (pod("a", ready=True), pod("c", ready=True))
    bad = pod("b", since=5, **CRASHED)
    relapse = Relapse(*others, bad, unavailable=5)
    assert relapse.said() == ("Unknown", "CrashLooping", f"amd64: 2 of 3 pods serve; {WORDS}")
    assert relapse.said(ConditionType.AVAILABLE)[0] == "True"
    late = Relapse(*others, pod("b", since=DEADLINE + 1, **CRASHED), unavailable=DEADLINE + 1)
    assert late.said() == ("False", "CrashLooping", f"amd64: 2 of 3 pods serve; {WORDS}")
    assert late.said(ConditionType.AVAILABLE)[0] == "True"


def test_where_its_deployment_may_lack_a_pod_the_pods_own_time_counts() -> None:
    assert not Relapse(pod("b", since=5, **CRASHED)).stalls
    assert Relapse(pod("b", since=DEADLINE + 1, **CRASHED)).stalls


def test_a_pod_that_waits_for_room_is_no_failure_however_long() -> None:
    waits = pod("new", since=3600, age=3600, conditions=(UNSCHEDULABLE,), phase="Pending")
    relapse = Relapse(pod("a", ready=True), waits, unavailable=3600)
    assert relapse.said()[:2] == ("Unknown", "Unschedulable")


def test_one_crash_beside_a_pod_that_has_waited_for_room_for_long_is_not_the_end() -> None:
    waits = pod("new", since=3600, age=3600, conditions=(UNSCHEDULABLE,), phase="Pending")
    assert not Relapse(pod("b", since=1, **CRASHED), waits, unavailable=3600).stalls
    # And is not hidden by it either.
    relapse = Relapse(pod("b", since=DEADLINE + 1, **CRASHED), waits, unavailable=3600)
    assert relapse.said() == ("False", "CrashLooping", f"amd64: no pod serves; {WORDS}")


def test_a_new_pod_of_an_engine_that_has_lacked_pods_for_long_has_its_own_time() -> None:
    new = pod("b", since=5, age=5, **{**CRASHED, "restartCount": 1})
    assert not Relapse(pod("a", ready=True), new, unavailable=3600).stalls


@pytest.mark.parametrize(
    "gone", [{"phase": "Failed"}, {"deletionTimestamp": "2026-11-24T13:00:00Z"}]
)
def test_a_pod_that_is_gone_fails_no_more(gone: dict[str, str]) -> None:
    evicted = pod("b", phase=gone.get("phase", "Running"))
    if "deletionTimestamp" in gone:
        evicted = {**evicted, "metadata": {**evicted["metadata"], **gone}}
    starts = pod("new", since=5, age=5)
    assert Relapse(evicted, starts, unavailable=10).said()[:2] == ("Unknown", "RollingOut")


def test_a_pod_that_is_not_ready_and_says_nothing_is_spoken_for_by_its_node() -> None:
    within = Relapse(pod("b", since=5), unavailable=5)
    assert silent_pod(within.deployment, within.world.observation.pods, NOW) is None
    assert within.said()[:2] == ("Unknown", "RollingOut")
    relapse = Relapse(pod("b", since=DEADLINE + 1), unavailable=DEADLINE + 1)
    silent = silent_pod(relapse.deployment, relapse.world.observation.pods, NOW)
    assert silent is not None
    assert silent["metadata"]["name"] == "b"
    assert relapse.said() == ("False", "PodsNotReady", "amd64: no pod serves; pod b is not ready")
    relapse.world.but(complaints={"b": "Readiness probe failed: no answer"})
    words = "pod b: Readiness probe failed: no answer"
    assert relapse.said() == ("False", "PodsNotReady", f"amd64: no pod serves; {words}")


PLACED = {"type": "PodScheduled", "status": "True"}


@pytest.mark.parametrize("crashes", [{}, {**CRASHED, "restartCount": 1}], ids=["silent", "crashed"])
def test_a_pod_that_has_waited_for_a_node_for_long_has_its_time_from_when_it_got_one(
    crashes: dict[str, Any],
) -> None:
    got = {**PLACED, "lastTransitionTime": rfc3339(NOW - timedelta(seconds=20))}
    waited = pod("b", since=3600, age=7200, phase="Pending", **crashes)
    # No kubelet has written a condition of it yet.
    waited["status"]["conditions"] = [got]
    assert not Relapse(waited, unavailable=7200).stalls
    long_ago = {**PLACED, "lastTransitionTime": rfc3339(NOW - timedelta(seconds=DEADLINE + 1))}
    waited["status"]["conditions"] = [long_ago]
    assert Relapse(waited, unavailable=7200).stalls


def test_an_architecture_that_served_is_not_forgotten_when_it_has_failed_for_long() -> None:
    world = World(serving=SPEC).on_both().serving()
    name = ("Deployment", "chat-arm64")
    found = world.observation.children[name]
    assert isinstance(found, Found)
    since = rfc3339(NOW - timedelta(seconds=DEADLINE + 1))
    conditions = [
        {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"},
        {"type": "Available", "status": "False", "lastTransitionTime": since},
    ]
    status = {"readyReplicas": 0, "availableReplicas": 0, "conditions": conditions}
    fallen = {**found.value, "status": {**found.value["status"], **status}}
    up, down = world.observation.pods
    pods = (up, _like(down, pod("b", since=DEADLINE + 1, **CRASHED)))
    world.but(children={**world.observation.children, name: Found(fallen)}, pods=pods)
    said = report(world.observation, world.decide(), applied=frozenset(), refused=None, now=NOW)
    ready = find(said.conditions, ConditionType.READY)
    assert ready is not None
    assert (ready.status, ready.reason) == ("False", "CrashLooping")
    assert ready.message == f"arm64: no pod serves; {WORDS}"
