"""Builds take turns: within limits, the first ones first, and a broken one blocks nobody."""

from __future__ import annotations

from typing import Any, cast

import pytest

from llmengine_operator.kinds import LLMENGINE, Kind
from llmengine_operator.kube import Kube, KubeObject
from llmengine_operator.kube_errors import UnavailableError
from tests.contract.operator.builder import Builder, request_of
from tests.contract.operator.running import LiveOperator
from tests.contract.operator.stage import Stage

pytestmark = pytest.mark.controlplane

# Of the fake nodes one is of another architecture, and tainted.
EVERYWHERE = {"tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}]}


def building(stage: Stage) -> list[str]:
    """Revisions of the models whose Jobs are not done."""
    jobs = [j for j in stage.jobs() if not j.get("status", {}).get("conditions")]
    return sorted(request_of(job).revision for job in jobs)


def job_of(stage: Stage, revision: str) -> dict[str, Any]:
    def seen() -> dict[str, Any] | None:
        return next((j for j in stage.jobs() if request_of(j).revision == revision), None)

    return dict(stage.until(f"a build of {revision}", seen))


def queue(stage: Stage, *revisions: str) -> None:
    """Engines that are told apart by their names, one after the other."""
    for revision in revisions:
        stage.create(revision, revision=revision)
        stage.until("it to be seen", lambda r=revision: "Ready" in stage.conditions(r))


def test_no_more_builds_run_at_a_time_than_the_admin_allows(stage: Stage, builder: Builder) -> None:
    limits = {"maxConcurrent": 2, "maxConcurrentPerArchitecture": 9}
    with LiveOperator(stage, config=stage.config(builds=limits)):
        queue(stage, "a", "b", "c", "d")
        stage.until("two builds", lambda: building(stage) == ["a", "b"])
        for name in ("c", "d"):
            stage.until_reason("BuildQueued", name)
            stage.until(
                "the reason",
                lambda n=name: stage.message(n) == "amd64: waits: 2 builds run at a time",
            )
        builder.finish(job_of(stage, "a"))
        stage.until("the next one", lambda: building(stage) == ["b", "c"])
        builder.fail(job_of(stage, "b"), 11, "ModelUnsupported", "no")
        stage.until("the last one", lambda: building(stage) == ["c", "d"])


def tie(stage: Stage, *revisions: str) -> None:
    """Engines of one creation time, in this order: tried until a second holds them all."""

    def tied() -> bool:
        times = {stage.create(r, revision=r)["metadata"]["creationTimestamp"] for r in revisions}
        if len(times) > 1:
            for revision in revisions:
                stage.remove(LLMENGINE, revision)
        return len(times) == 1

    stage.until("engines of the same second", tied)
    for revision in revisions:
        stage.until_reason("BuildQueued", revision)


def test_of_engines_of_the_same_second_the_first_by_name_is_built_first(
    stage: Stage, builder: Builder
) -> None:
    with LiveOperator(stage):
        queue(stage, "busy")
        tie(stage, "d", "c", "b", "a")
        for done, turn in zip(("busy", "a", "b", "c"), ("a", "b", "c", "d"), strict=True):
            builder.finish(job_of(stage, done))
            stage.until("the first by name", lambda t=turn: building(stage) == [t])


def test_each_architecture_builds_one_at_a_time(stage: Stage, builder: Builder) -> None:
    with LiveOperator(stage):
        stage.create("a", revision="a", build=EVERYWHERE, serving=EVERYWHERE)
        stage.until("both builds", lambda: building(stage) == ["a", "a"])
        architectures = {request_of(job).architecture for job in stage.jobs()}
        assert architectures == {"amd64", "arm64"}
        selectors = [j["spec"]["template"]["spec"]["nodeSelector"] for j in stage.jobs()]
        assert sorted(s["kubernetes.io/arch"] for s in selectors) == ["amd64", "arm64"]
        queue(stage, "b")
        waits = "amd64: waits for the build that runs on amd64"
        stage.until("the reason", lambda: stage.message("b") == waits)
        arm = next(j for j in stage.jobs() if request_of(j).architecture == "arm64")
        stage.remove_job(arm)
        stage.until("it to be made again", lambda: building(stage) == ["a", "a"])
        assert stage.message("b") == waits
        amd = next(j for j in stage.jobs() if request_of(j).architecture == "amd64")
        builder.finish(amd)
        stage.until("the next one", lambda: building(stage) == ["a", "b"])


def test_what_serves_nothing_yet_is_built_before_what_is_built_anew(
    stage: Stage, builder: Builder
) -> None:
    with LiveOperator(stage):
        queue(stage, "a")
        builder.finish(job_of(stage, "a"))
        stage.until_reason("Serving", "a")
        queue(stage, "b")
        busy = job_of(stage, "b")
        stage.edit("a", model={"revision": "a2"})
        stage.until_reason("BuildQueued", "a")
        queue(stage, "c")
        stage.until_reason("BuildQueued", "c")
        builder.finish(busy)
        stage.until("the new one", lambda: building(stage) == ["c"])
        builder.finish(job_of(stage, "c"))
        stage.until("the old one", lambda: building(stage) == ["a2"])


@pytest.mark.parametrize(
    "reason",
    [
        pytest.param("ImagePullBackOff", id="no image"),
        pytest.param("CreateContainerConfigError", id="no Secret"),
    ],
)
def test_a_job_that_cannot_start_blocks_nobody(stage: Stage, builder: Builder, reason: str) -> None:
    with LiveOperator(stage):
        queue(stage, "a")
        queue(stage, "b")
        stage.until_reason("BuildQueued", "b")
        builder.stuck(job_of(stage, "a"), reason, "not there")
        builder.finish(job_of(stage, "b"))
        stage.until_reason("Serving", "b")
        builder.unstuck(job_of(stage, "a"))
        builder.finish(job_of(stage, "a"))
        stage.until_reason("Serving", "a")


def test_a_job_that_fits_on_no_node_blocks_nobody(stage: Stage, builder: Builder) -> None:
    with LiveOperator(stage):
        huge = {"requests": {"memory": "9Ti"}}
        stage.create("a", revision="a", build={"resources": huge})
        stage.until_reason("Unschedulable", "a")
        queue(stage, "b")
        builder.finish(job_of(stage, "b"))
        stage.until_reason("Serving", "b")


class DeafTo:
    """A client that cannot read one engine."""

    def __init__(self, kube: Kube, name: str) -> None:
        self._kube = kube
        self.name = name

    def get(self, kind: Kind, namespace: str | None, name: str) -> KubeObject:
        if kind == LLMENGINE and name == self.name:
            raise UnavailableError(503, "Unavailable", "said by the test", f"get {name}")
        return self._kube.get(kind, namespace, name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kube, name)


def test_a_new_operator_deletes_no_job_before_it_has_heard_of_every_engine(
    stage: Stage,
) -> None:
    side_by_side = stage.config(builds={"maxConcurrentPerArchitecture": 9})
    with LiveOperator(stage, config=side_by_side):
        queue(stage, "a", "b", "c")
        stage.until("three builds", lambda: building(stage) == ["a", "b", "c"])
    stage.remove(LLMENGINE, "c")  # while nobody looks
    deaf = DeafTo(stage.connect(), "a")
    with LiveOperator(stage, config=side_by_side, kube=cast(Kube, deaf)) as operator:
        stage.until("it to try", lambda: [k for k, _ in operator.raised].count((stage.team, "a")))
        stage.until("the other", lambda: (stage.team, "b") in operator.passes)
        passes = operator.passes.count(("", "builds"))
        operator.resync()
        stage.until("a pass", lambda: operator.passes.count(("", "builds")) > passes)
        assert building(stage) == ["a", "b", "c"]
        deaf.name = ""
        # The others go on, and what nobody wants goes.
        stage.until("the rest", lambda: building(stage) == ["a", "b"])
        assert stage.conditions("a")["Ready"] == ("Unknown", "Building")


def test_an_engine_that_cannot_be_understood_does_not_keep_others_jobs(stage: Stage) -> None:
    """Of a runtime that this release cannot read, for one: it is another release's."""
    side_by_side = stage.config(builds={"maxConcurrentPerArchitecture": 9})
    with LiveOperator(stage, config=side_by_side):
        mine, stage.runtime = stage.runtime, f"{stage.runtime}-gone"
        queue(stage, "lost")
        stage.until_reason("RuntimeNotFound", "lost")
        stage.runtime = mine
        queue(stage, "a")
        stage.until("its build", lambda: building(stage) == ["a"])
        stage.remove(LLMENGINE, "a")
        stage.until("no build", lambda: building(stage) == [])
