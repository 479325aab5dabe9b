"""A runtime's new image under several engines: one follows after the other, a bad one takes one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from llmengine_operator.kinds import DEPLOYMENT, LLMENGINE, POD
from llmengine_operator.strategy import rolled_out
from tests.contract.operator.builder import Builder
from tests.contract.operator.running import LiveOperator
from tests.contract.operator.stage import Stage

pytestmark = pytest.mark.controlplane

IN_PLACE = {"rollout": {"strategy": "Replace"}}


@pytest.fixture
def operator(stage: Stage) -> Iterator[LiveOperator]:
    with LiveOperator(stage) as running:
        yield running


def deployment(stage: Stage, name: str) -> dict[str, Any]:
    found = stage.get(DEPLOYMENT, name)
    assert found is not None
    return found


def image(obj: dict[str, Any]) -> str:
    return str(obj["spec"]["template"]["spec"]["containers"][0]["image"]).rpartition(":")[2]


class Fleet:
    """Engines of one key that serve, in one namespace."""

    def __init__(
        self, stage: Stage, builder: Builder, names: Sequence[str] = "abc", **spec: Any
    ) -> None:
        self.stage = stage
        self.names = tuple(names)
        for name in self.names:
            stage.create(name, **spec)
        builder.finish(stage.until_job())
        for name in self.names:
            stage.until_reason("Serving", name)

    def images(self) -> list[str]:
        return [image(deployment(self.stage, f"{name}-amd64")) for name in self.names]

    def rolled(self) -> int:
        return self.images().count("v2")

    def waits(self) -> list[str]:
        """Of engines that wait for their turn."""
        reasons = {name: self.stage.conditions(name)["Ready"] for name in self.names}
        return [n for n, ready in reasons.items() if ready == ("Unknown", "WaitingForRollout")]


def test_a_runtimes_new_image_rolls_one_engine_at_a_time_and_moves_no_key(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    fleet = Fleet(stage, builder)
    keys = [stage.status(name)["engines"][0]["key"] for name in fleet.names]
    stage.cordon(True)  # the first to roll does not get ready
    stage.set_image("v2")
    stage.until("two to wait", lambda: len(fleet.waits()) == 2)
    stage.until("one to roll", lambda: fleet.rolled() == 1)
    assert all(stage.conditions(n)["Available"] == ("True", "Serving") for n in fleet.names)
    # What waits can still be edited, and can go.
    gone, edited = fleet.waits()
    stage.edit(edited, serving={"terminationGracePeriodSeconds": 90})
    stage.until(
        "the edit",
        lambda: (
            deployment(stage, f"{edited}-amd64")["spec"]["template"]["spec"][
                "terminationGracePeriodSeconds"
            ]
            == 90
        ),
    )
    assert fleet.rolled() == 1
    stage.remove(LLMENGINE, gone)
    stage.cordon(False)
    for name in fleet.names:
        if name != gone:
            stage.until_reason("Serving", name)
            assert image(deployment(stage, f"{name}-amd64")) == "v2"
    assert [stage.status(n)["engines"][0]["key"] for n in fleet.names if n != gone] == keys[:2]
    assert operator.client.requests["create", "Job"] == 1


@pytest.mark.usefixtures("operator")
def test_who_waits_names_whom_it_waits_for_but_nobody_of_another_namespace(
    stage: Stage, builder: Builder
) -> None:
    fleet = Fleet(stage, builder, "ab")
    stage.create("far", namespace=stage.other)
    stage.until_reason("Serving", "far", namespace=stage.other)
    waits = "amd64: the runtime's new image waits for its turn, after"
    stage.edit("b", suspend=True)
    stage.edit("far", namespace=stage.other, suspend=True)
    for name, place in (("b", stage.team), ("far", stage.other)):
        stage.until(
            "it to be noticed",
            lambda n=name, p=place: stage.status(n, p)["observedGeneration"] == 2,
        )
    stage.cordon(True)
    stage.set_image("v2")
    stage.until("one to roll", lambda: fleet.images() == ["v2", "v1"])
    stage.edit("b", suspend=False)
    stage.until("the name", lambda: stage.message("b") == f"{waits} {stage.team}/a")
    stage.edit("far", namespace=stage.other, suspend=False)
    far = stage.until_reason("WaitingForRollout", "far", namespace=stage.other)
    assert f"{waits} an engine of another namespace" in str(far["conditions"])
    assert stage.team not in str(far["conditions"])
    # The one of the other namespace comes before those of this one.
    stage.edit("b", suspend=True)
    stage.cordon(False)
    stage.until_reason("Serving", "far", namespace=stage.other)
    stage.until_reason("Serving", "a")
    stage.cordon(True)
    stage.edit("a", suspend=True)
    stage.until("it to be noticed", lambda: stage.status("a")["observedGeneration"] == 2)
    stage.set_image("v3")
    stage.until_reason("Unschedulable", "far", namespace=stage.other)
    stage.edit("b", suspend=False)
    stage.until("no name", lambda: stage.message("b") == f"{waits} an engine of another namespace")
    said = str(stage.events("b")) + str(stage.status("b"))
    assert stage.other not in said
    stage.cordon(False)
    stage.until_reason("Serving", "b")


def test_a_restarted_operator_knows_who_is_rolling(stage: Stage, builder: Builder) -> None:
    with LiveOperator(stage):
        fleet = Fleet(stage, builder)
        stage.cordon(True)
        stage.set_image("v2")
        stage.until("one to roll", lambda: fleet.rolled() == 1)
        stage.until("two to wait", lambda: len(fleet.waits()) == 2)
    for _ in range(3):
        with LiveOperator(stage) as again:
            stage.until(
                "all to be looked at",
                lambda again=again: {(stage.team, n) for n in fleet.names} <= set(again.passes),
            )
            stage.until("two to wait", lambda: len(fleet.waits()) == 2)
            assert fleet.rolled() == 1
    with LiveOperator(stage):
        stage.cordon(False)
        stage.until("all to roll", lambda: fleet.rolled() == 3)
        for name in fleet.names:
            stage.until_reason("Serving", name)


def test_an_image_that_is_taken_back_frees_the_place_it_was_tried_at(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    fleet = Fleet(stage, builder)
    stage.cordon(True)
    stage.set_image("broken")
    stage.until("two to wait", lambda: len(fleet.waits()) == 2)
    stage.set_image("v1")
    for name in fleet.names:
        stage.until_reason("Serving", name)
    assert fleet.images() == ["v1"] * 3


def test_a_suspended_engine_keeps_nobody_from_rolling(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    fleet = Fleet(stage, builder)
    stage.edit("a", suspend=True)
    stage.until("it to be noticed", lambda: stage.status("a")["observedGeneration"] == 2)
    stage.set_image("v2")
    stage.until("two to roll", lambda: fleet.images() == ["v1", "v2", "v2"])
    stage.until_reason("Serving", "c")
    assert stage.conditions("a")["Ready"] == ("True", "Serving")
    stage.edit("a", suspend=False)
    stage.until("it to roll", lambda: fleet.images() == ["v2"] * 3)


class Watcher:
    """Looks at all Deployments again and again; each look is one moment of the API server."""

    def __init__(self, stage: Stage, tag: str) -> None:
        self._stage = stage
        self._tag = tag
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.most = 0
        self.looks = 0

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _look(self) -> None:
        while not self._stop.is_set():
            found = self._stage.items(DEPLOYMENT)
            rolling = [d for d in found if image(d) == self._tag and not rolled_out(d)]
            self.most = max(self.most, len(rolling))
            self.looks += 1


@pytest.mark.usefixtures("operator")
def test_never_do_two_engines_roll_at_the_same_moment(stage: Stage, builder: Builder) -> None:
    fleet = Fleet(stage, builder, "abcdefgh")
    with Watcher(stage, "v2") as watcher:
        stage.set_image("v2")
        stage.until("all to roll", lambda: fleet.rolled() == len(fleet.names))
        for name in fleet.names:
            stage.until_reason("Serving", name)
    assert watcher.looks > len(fleet.names)
    assert watcher.most == 1


def test_a_bad_image_takes_one_engine_also_where_no_old_pod_of_it_is_left(
    stage: Stage, builder: Builder
) -> None:
    with LiveOperator(stage):
        fleet = Fleet(stage, builder, serving=IN_PLACE)
        stage.cordon(True)
        stage.set_image("v2")
        stage.until("two to wait", lambda: len(fleet.waits()) == 2)
        (first,) = set(fleet.names) - set(fleet.waits())
        stage.until("its old pod to go", lambda: tags(stage, first) == {"v2"})
        stage.until(
            "it to serve no more",
            lambda: stage.conditions(first)["Available"] == ("False", "NoPodReady"),
        )
    # Nor does a restarted operator, which sees no old pod, take it for done.
    with LiveOperator(stage) as again:
        mine = {(stage.team, name) for name in fleet.names}
        stage.until("all to be looked at", lambda: mine <= set(again.passes))
        stage.until("two to wait", lambda: len(fleet.waits()) == 2)
        assert fleet.rolled() == 1
        row = stage.status(first)["serving"][0]
        assert row["replaces"] == {
            "key": row["key"],
            "image": "registry.test/engine:v1",
            "readyReplicas": 0,
        }
        stage.cordon(False)
        stage.until("all to roll", lambda: fleet.rolled() == 3)
        for name in fleet.names:
            stage.until_reason("Serving", name)
        assert "replaces" not in stage.status(first)["serving"][0]


def tags(stage: Stage, name: str) -> set[str]:
    return {
        pod["spec"]["containers"][0]["image"].rpartition(":")[2]
        for pod in stage.items(POD, labels=f"llmengine.io/engine={name}")
        if "deletionTimestamp" not in pod["metadata"]
    }
