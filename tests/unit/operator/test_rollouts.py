"""Who may follow a runtime's new image, and who is doing so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmengine.api.v1alpha1 import ReplacedStatus
from llmengine_operator.conditions import ConditionType, find
from llmengine_operator.decision import Turn
from llmengine_operator.observation import Found, NotFound
from llmengine_operator.report import report
from llmengine_operator.rollout import image_rolls
from llmengine_operator.rollouts import NEAR, RolloutGate
from tests.unit.operator.world import NOW, World, make_engine, make_runtime

ONE, TWO, THREE = ((make_engine(name).id) for name in ("one", "two", "three"))


def test_one_engine_rolls_at_a_time_and_the_next_when_it_is_done() -> None:
    gate = RolloutGate(1)
    assert gate.enter(ONE)
    assert gate.enter(ONE)
    assert not gate.enter(TWO)
    assert gate.turn(TWO) == Turn(rolling=frozenset({ONE}))
    assert gate.leave(ONE)
    assert not gate.leave(ONE)
    assert gate.enter(TWO)
    assert not gate.enter(THREE)
    assert gate.turn(THREE) == Turn(rolling=frozenset({TWO}))


def test_only_those_who_are_next_are_told_of_others_and_look_when_a_place_is_free() -> None:
    gate = RolloutGate(1)
    first, *line = (make_engine(f"engine-{number}").id for number in range(10))
    assert gate.enter(first)
    for engine in (*line, *line):
        assert not gate.enter(engine)
    told = [gate.turn(engine) for engine in line]
    assert told[:NEAR] == [Turn(rolling=frozenset({first}))] * NEAR
    assert told[NEAR:] == [Turn(more_than=NEAR)] * (len(line) - NEAR)
    # The one that will be near when the first has gone looks too.
    assert gate.next_in_line() == line[: NEAR + 1]
    assert gate.leave(first)
    assert gate.enter(line[0])
    assert [gate.turn(engine) for engine in line[1 : NEAR + 1]] == (
        [Turn(rolling=frozenset({line[0]}))] * NEAR
    )


def test_who_gives_up_makes_the_next_look_where_it_was_one_of_those_who_do() -> None:
    gate = RolloutGate(1)
    first, *line = (make_engine(f"engine-{number}").id for number in range(NEAR + 3))
    assert gate.enter(first)
    for engine in line:
        assert not gate.enter(engine)
    assert not gate.give_up(first)
    assert not gate.give_up(line[-1])
    assert gate.give_up(line[0])
    assert not gate.give_up(line[0])
    assert gate.next_in_line() == line[1:-1]


def test_after_a_start_nobody_enters_before_every_engine_was_looked_at() -> None:
    gate = RolloutGate(1)
    gate.expect([ONE, TWO, THREE])
    assert not gate.enter(ONE)
    assert not gate.seen(ONE)
    assert not gate.seen(TWO)
    # The last one may, since nobody else can be rolling unseen.
    assert gate.enter(THREE)
    assert gate.seen(THREE)
    assert not gate.seen(THREE)


def test_an_engine_that_is_found_rolling_keeps_its_place() -> None:
    gate = RolloutGate(1)
    gate.expect([ONE, TWO])
    gate.seen(ONE)
    gate.resume(TWO)
    gate.seen(TWO)
    assert not gate.enter(ONE)
    assert gate.leave(TWO)
    assert gate.enter(ONE)


@pytest.mark.parametrize(
    ("rolling", "more_than", "after"),
    [
        pytest.param([], 0, "", id="nobody: not every engine was looked at"),
        pytest.param(
            [("team", "b"), ("team", "a")], 0, ", after team/a, team/b", id="its neighbours"
        ),
        pytest.param(
            [("other", "secret"), ("team", "a")],
            0,
            ", after team/a, an engine of another namespace",
            id="one of another namespace",
        ),
        pytest.param(
            [("other", "secret"), ("third", "secret")],
            0,
            ", after 2 engines of other namespaces",
            id="several of other namespaces",
        ),
        pytest.param([], 3, ", after more than 3 others", id="many"),
    ],
)
def test_who_waits_reads_for_whom_but_no_names_of_other_namespaces(
    rolling: list[tuple[str, str]], more_than: int, after: str
) -> None:
    world = World().cached().serving().but(runtime=Found(make_runtime(image="v2")))
    decision = replace(world.decide(), turn=Turn(frozenset(rolling), more_than))
    status = report(world.observation, decision, applied=frozenset(), refused=None, now=NOW)
    ready = find(status.conditions, ConditionType.READY)
    assert ready is not None
    assert ready.reason == "WaitingForRollout"
    assert ready.message == f"amd64: the runtime's new image waits for its turn{after}"


@pytest.mark.parametrize(
    ("image", "more", "phase", "rolls"),
    [
        pytest.param("registry.test/engine:v1", {}, "Running", False, id="the image that serves"),
        pytest.param("registry.test/engine:v0", {}, "Running", True, id="pods of another image"),
        pytest.param("registry.test/engine:v0", {}, "Failed", False, id="that have ended for good"),
        pytest.param(
            "registry.test/engine:v0",
            {"deletionTimestamp": "2026-11-24T12:00:00Z"},
            "Running",
            False,
            id="pods of another image on their way out",
        ),
    ],
)
def test_an_image_rolls_while_pods_of_another_are_there(
    image: str, more: dict[str, Any], phase: str, rolls: bool
) -> None:
    world = World().cached().serving()
    (pod,) = world.observation.pods
    status = {**pod.get("status", {}), "phase": phase}
    pods = [{**pod, "metadata": {**pod["metadata"], **more}, "status": status}]
    pods[0]["spec"] = {
        "containers": [{"name": "a-mesh", "image": "mesh"}, {"name": "server", "image": image}]
    }
    assert image_rolls(world.observation.engine.status.serving, pods) is rolls


@pytest.mark.parametrize("left", [True, False], ids=["an old pod is left", "none is left"])
def test_a_rollout_ends_for_others_also_where_the_engine_cannot_be_planned_any_more(
    left: bool,
) -> None:
    world = World().cached().serving()
    status = world.observation.engine.status
    (row,) = status.serving
    old = ReplacedStatus(key=row.key, image="registry.test/engine:v0")
    world.with_engine(
        status=status.model_copy(update={"serving": [row.model_copy(update={"replaces": old})]})
    )
    (pod,) = world.observation.pods
    container = {"name": "server", "image": old.image}
    older = {**pod, "spec": {**pod["spec"], "containers": [container]}}
    world.but(runtime=NotFound(), pods=(pod, older) if left else (pod,))
    said = report(
        world.observation, world.decide(), applied=frozenset(), refused=None, now=NOW
    ).serving
    assert [row.replaces for row in said] == [old if left else None]
    assert image_rolls(said, world.observation.pods) is left
