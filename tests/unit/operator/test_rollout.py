"""How far a rollout is, what it replaces, and when no more is to be expected of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from llmengine.api.v1alpha1 import LLMEngineStatus, ReplacedStatus, ServingStatus
from llmengine_operator.conditions import ConditionType, find, rfc3339
from llmengine_operator.decision import ApplyDeployment
from llmengine_operator.observation import Found, KubeObject
from llmengine_operator.report import report
from llmengine_operator.rollout import image_rolls, silent_pod
from tests.unit.operator.world import NOW, World, make_runtime

V2 = {"model": {"uri": "s3://models/smollm2", "revision": "v2"}}
V3 = {"model": {"uri": "s3://models/smollm2", "revision": "v3"}}
CHAT = "chat-amd64"


def switched(world: World, **spec: Any) -> World:
    """The spec was edited, the engine is there, and the Deployment was told to serve it."""
    world.with_spec(**spec).cached()
    return told(world)


def told(world: World) -> World:
    """What is planned was written: the Deployment's template, and the status."""
    (action,) = (a for a in world.decide().actions if isinstance(a, ApplyDeployment))
    before = world.observation.children["Deployment", CHAT]
    assert isinstance(before, Found)
    generation = before.value["metadata"]["generation"] + 1
    metadata = {**before.value["metadata"], **action.object["metadata"], "generation": generation}
    spec = {**before.value["spec"], **action.object["spec"]}
    found = {**before.value, "metadata": metadata, "spec": spec}
    world.but(children={**world.observation.children, ("Deployment", CHAT): Found(found)})
    return world.with_engine(status=status_of(world, just_applied=True))


def status_of(world: World, *, just_applied: bool = False, now: Any = NOW) -> LLMEngineStatus:
    applied = frozenset({CHAT} if just_applied else set())
    return report(world.observation, world.decide(now), applied=applied, refused=None, now=now)


def row_of(world: World) -> ServingStatus:
    (row,) = status_of(world).serving
    return row


def deployment(world: World) -> KubeObject:
    found = world.observation.children["Deployment", CHAT]
    assert isinstance(found, Found)
    return found.value


def counted(world: World, reason: str = "ReplicaSetUpdated", **status: int) -> World:
    """The Deployment's controller has seen the newest template, and says this."""
    obj = deployment(world)
    said = {"observedGeneration": obj["metadata"]["generation"], **status}
    conditions = [{"type": "Progressing", "status": "True", "reason": reason}]
    found = Found({**obj, "status": {**obj["status"], **said, "conditions": conditions}})
    return world.but(children={**world.observation.children, ("Deployment", CHAT): found})


def new_pod(world: World, *, age: float = 0, ready: bool = False, **container: Any) -> World:
    """A pod of the newest template, with what its server's container says."""
    template = deployment(world)["spec"]["template"]
    created = rfc3339(NOW - timedelta(seconds=age))
    state = {"name": "server", "ready": ready, "restartCount": 0, **container}
    condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": rfc3339(NOW)}
    pod = {
        "metadata": {"name": "new", "creationTimestamp": created, **template["metadata"]},
        "spec": template["spec"],
        "status": {"conditions": [condition], "containerStatuses": [state]},
    }
    return world.but(pods=(*world.observation.pods, pod))


def condition(status: LLMEngineStatus, type_: ConditionType) -> tuple[str, str, str]:
    found = find(status.conditions, type_)
    return (found.status, found.reason, found.message) if found else ("", "", "")


CRASHED: dict[str, Any] = {
    "restartCount": 3,
    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    "lastState": {"terminated": {"exitCode": 3, "reason": "Error", "message": "no such library"}},
}


def test_while_new_pods_come_the_status_names_what_they_replace_and_how_much_of_it_serves() -> None:
    world = World(serving={"replicas": 2}).cached().serving(ready=2, replicas=2)
    old = row_of(world)
    assert old.replaces is None
    switched(world, serving={"replicas": 2}, **V2)
    new_pod(counted(world, replicas=3, updatedReplicas=1, availableReplicas=2))
    row = row_of(world)
    assert row.key == world.target.key != old.key
    assert row.replaces == ReplacedStatus(key=old.key, image=old.image, ready_replicas=2)
    assert row.ready_replicas == 2


def test_the_old_generation_is_gone_from_the_status_when_none_of_its_pods_is_left() -> None:
    world = switched(World().cached().serving(), **V2)
    world.but(pods=())
    new_pod(counted(world, replicas=1, updatedReplicas=1, readyReplicas=1, availableReplicas=1))
    assert row_of(world).replaces is None
    assert condition(status_of(world), ConditionType.READY)[:2] == ("True", "Serving")


def test_a_pod_that_has_just_got_ready_in_the_place_of_an_older_one_does_not_count_yet() -> None:
    world = switched(World().cached().serving(), **V2)
    world.but(pods=())
    counted(world, replicas=1, updatedReplicas=1, readyReplicas=1, availableReplicas=0)
    new_pod(world, ready=True)
    assert row_of(world).replaces is not None
    assert condition(status_of(world), ConditionType.READY)[0] == "Unknown"


def test_the_first_pods_of_all_count_as_soon_as_they_are_ready() -> None:
    world = World().cached().serving()
    counted(world, replicas=1, updatedReplicas=1, readyReplicas=1, availableReplicas=0)
    assert condition(status_of(world), ConditionType.READY)[:2] == ("True", "Serving")


def test_an_edit_during_a_rollout_still_replaces_what_serves_not_what_never_did() -> None:
    world = World().cached().serving()
    serves = world.target.key
    switched(world, **V2)
    bad = world.target.key
    switched(world, **V3)
    replaced = row_of(world).replaces
    assert replaced is not None
    assert (replaced.key, replaced.ready_replicas) == (serves, 1)
    # Taken back: what is to go is the one that never served.
    world.with_spec().with_engine(status=status_of(world))
    row = row_of(world)
    assert row.key == serves
    assert row.replaces is not None
    assert row.replaces.key not in (serves, bad)
    assert row.replaces.ready_replicas == 0


def test_an_image_rolls_until_a_new_pod_has_served_although_no_old_one_is_left() -> None:
    world = World(serving={"rollout": {"strategy": "Replace"}}).cached().serving()
    world.but(runtime=Found(make_runtime(image="v2")), may_roll_image=True)
    told(world)
    world.but(pods=(), may_roll_image=False)
    counted(world, replicas=1, updatedReplicas=1, readyReplicas=0, availableReplicas=0)
    new_pod(world, **CRASHED)
    assert image_rolls(status_of(world).serving, world.observation.pods)
    counted(world, replicas=1, updatedReplicas=1, readyReplicas=1, availableReplicas=1)
    assert not image_rolls(status_of(world).serving, world.observation.pods)


@pytest.mark.parametrize(
    ("age", "stalls"),
    [
        pytest.param(40, False, id="within the deadline"),
        pytest.param(70, True, id="after the deadline"),
    ],
)
@pytest.mark.parametrize("ready", [False, True], ids=["down", "up for a moment"])
def test_a_pod_that_crashes_again_and_again_stalls_although_it_gets_ready_in_between(
    age: float, stalls: bool, ready: bool
) -> None:
    serving = {"rollout": {"progressDeadlineSeconds": 60}}
    world = switched(World(serving=serving).cached().serving(), serving=serving, **V2)
    counted(world, replicas=2, updatedReplicas=1, availableReplicas=1)
    new_pod(world, age=age, ready=ready, **CRASHED)
    status = status_of(world)
    if stalls:
        assert condition(status, ConditionType.STALLED)[:2] == ("True", "CrashLooping")
        assert condition(status, ConditionType.READY)[0] == "False"
    else:
        assert condition(status, ConditionType.READY)[:2] == ("Unknown", "CrashLooping")
    words = "amd64: pod new: Error, exit code 3: no such library"
    assert condition(status, ConditionType.READY)[2] == words


def test_an_edit_is_not_stalled_by_the_deadline_of_what_it_takes_the_place_of() -> None:
    world = switched(World().cached().serving(), **V2)
    counted(world, "ProgressDeadlineExceeded", replicas=2, updatedReplicas=1)
    assert condition(status_of(world), ConditionType.STALLED)[0] == "True"
    world.with_spec(**V3).cached()
    for applied in (True, False):
        # In the pass that writes it, and in those before the Deployment's controller has seen it.
        status = status_of(world, just_applied=applied)
        assert condition(status, ConditionType.STALLED)[0] == ""
        assert condition(status, ConditionType.READY)[:2] == ("Unknown", "RollingOut")
        told(world)


def test_a_pod_that_is_overdue_and_says_nothing_is_spoken_for_by_its_node() -> None:
    world = switched(World().cached().serving(), **V2)
    counted(world, replicas=2, updatedReplicas=1, availableReplicas=1)
    new_pod(world)
    assert silent_pod(deployment(world), world.observation.pods, NOW) is None
    counted(world, "ProgressDeadlineExceeded")
    pod = silent_pod(deployment(world), world.observation.pods, NOW)
    assert pod is not None
    assert pod["metadata"]["name"] == "new"
    world.but(complaints={"new": "Startup probe failed: no device"})
    assert condition(status_of(world), ConditionType.STALLED) == (
        "True",
        "RolloutFailed",
        "amd64: pod new: Startup probe failed: no device",
    )


def test_a_pod_with_words_of_its_own_needs_nobody_to_speak_for_it() -> None:
    world = switched(World().cached().serving(), **V2)
    counted(world, "ProgressDeadlineExceeded", replicas=2, updatedReplicas=1)
    new_pod(world, **CRASHED)
    assert silent_pod(deployment(world), world.observation.pods, NOW) is None
    assert "no such library" in condition(status_of(world), ConditionType.STALLED)[2]


def test_an_architecture_is_not_given_up_for_one_whose_old_pods_alone_serve() -> None:
    world = switched(World().cached().serving(), **V2)
    (row,) = world.observation.engine.status.serving
    assert row.replaces is not None
    other = row.model_copy(update={"architecture": "arm64", "replaces": None})
    status = world.observation.engine.status
    world.with_engine(status=status.model_copy(update={"serving": [row, other]}))
    assert [kept.architecture for kept in world.decide().retiring] == ["arm64"]
    none_left = row.replaces.model_copy(update={"ready_replicas": 0})
    done = row.model_copy(update={"replaces": none_left})
    world.with_engine(status=status.model_copy(update={"serving": [done, other]}))
    assert world.decide().retiring == ()
