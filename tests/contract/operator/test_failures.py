"""What fails, what the user reads about it, and what is tried again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest

from llmengine_operator.kinds import POD
from tests.contract.operator.builder import Builder, request_of
from tests.contract.operator.running import Clock, LiveOperator
from tests.contract.operator.stage import Stage

pytestmark = pytest.mark.controlplane

Fail: TypeAlias = Callable[[Builder, dict[str, Any]], None]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def operator(stage: Stage, clock: Clock) -> Iterator[LiveOperator]:
    with LiveOperator(stage, clock=clock) as running:
        yield running


def words(code: int, reason: str) -> Fail:
    return lambda builder, job: builder.fail(job, code, reason, f"why it is {reason}")


def silent(code: int) -> Fail:
    return lambda builder, job: builder.end(job, code)


def killed(**how: str) -> Fail:
    return lambda builder, job: builder.killed(job, **how)


@dataclass(frozen=True)
class Case:
    """`fail` ends the build; then Ready has `reason`, and says something that matches `says`.

    `again`: whether another try follows soon, hourly or never.
    """

    fail: Fail
    reason: str
    says: str
    again: str


CASES = [
    pytest.param(
        Case(words(10, "ModelInvalid"), "ModelInvalid", "why it is", "never"), id="bad input"
    ),
    pytest.param(
        Case(words(10, "ModelAccessDenied"), "ModelAccessDenied", "why it is", "hourly"),
        id="a token that may not read the model",
    ),
    pytest.param(
        Case(words(10, "BucketMissing"), "BucketMissing", "why it is", "hourly"), id="no bucket"
    ),
    pytest.param(
        Case(words(11, "ModelUnsupported"), "ModelUnsupported", "why it is", "never"),
        id="an unsupported model",
    ),
    pytest.param(
        Case(words(12, "VerificationFailed"), "VerificationFailed", "why it is", "never"),
        id="a wrong engine",
    ),
    pytest.param(
        Case(words(13, "WrongDevice"), "WrongDevice", "why it is", "never"), id="another device"
    ),
    pytest.param(
        Case(
            words(20, "StoreUnreachable"),
            "BuildRetrying",
            r"try 1 of 3 failed \(StoreUnreachable: why it is .*\); the next starts at .* UTC",
            "soon",
        ),
        id="a network that failed",
    ),
    pytest.param(
        Case(silent(1), "BuildRetrying", "exit code 1 and said nothing; see its log", "soon"),
        id="a bug",
    ),
    pytest.param(
        Case(
            killed(container="OOMKilled"),
            "BuildOutOfMemory",
            r"more memory than its limit \(1Gi\): raise spec.build.resources.limits.memory",
            "never",
        ),
        id="out of memory",
    ),
    pytest.param(
        Case(
            killed(reason="DeadlineExceeded"),
            "BuildDeadlineExceeded",
            "longer than 7200 s: raise spec.build.activeDeadlineSeconds",
            "never",
        ),
        id="the deadline",
    ),
    pytest.param(
        Case(killed(reason="Evicted"), "BuildRetrying", "BuildEvicted", "soon"), id="an eviction"
    ),
]


@pytest.mark.parametrize("case", CASES)
def test_a_build_that_fails_says_why_and_is_tried_again_if_that_can_help(
    stage: Stage, builder: Builder, operator: LiveOperator, clock: Clock, case: Case
) -> None:
    stage.create(build={"resources": {"limits": {"memory": "1Gi"}}})
    case.fail(builder, stage.until_job())
    stage.until_reason(case.reason)
    assert re.search(case.says, stage.message()), stage.message()
    stalled = case.again != "soon"
    assert stage.conditions() == {
        "Ready": ("False" if stalled else "Unknown", case.reason),
        "Stalled" if stalled else "Reconciling": ("True", case.reason),
        "Available": ("False", "NoPodReady"),
        "EnginesBuilt": ("False" if stalled else "Unknown", case.reason),
    }
    assert stage.events()[-1]["type"] == ("Warning" if stalled else "Normal")
    for wait, due in (({"seconds": 20}, "soon"), ({"hours": 1}, "hourly"), ({"days": 1}, "")):
        clock.advance(**wait)
        _pass(stage, operator)
        if case.again == due:
            stage.until_attempt(2)
            return
        assert len(stage.jobs()) == 1


def _pass(stage: Stage, operator: LiveOperator) -> None:
    """A pass over everything, and over what it wakes."""
    engines, builds = operator.passes.count((stage.team, "chat")), _builds(operator)
    operator.resync()
    stage.until("a pass", lambda: operator.passes.count((stage.team, "chat")) > engines)
    stage.until("a pass over Jobs", lambda: _builds(operator) > builds)


def _builds(operator: LiveOperator) -> int:
    return operator.passes.count(("", "builds"))


def test_tries_that_are_used_up_stall_until_somebody_asks(
    stage: Stage, builder: Builder, operator: LiveOperator, clock: Clock
) -> None:
    stage.create(build={"attempts": 2})
    builder.fail(stage.until_attempt(1), 20, "StoreUnreachable", "no answer")
    stage.until_reason("BuildRetrying")
    clock.advance(seconds=20)
    operator.resync()
    second = stage.until_attempt(2)
    assert second["metadata"]["annotations"]["llmengine.io/tries-left"] == "0"
    builder.fail(second, 20, "StoreUnreachable", "no answer")
    stage.until_reason("StoreUnreachable")
    assert stage.conditions()["Stalled"] == ("True", "StoreUnreachable")
    # Of the failed ones the last is kept, to be looked at.
    stage.until("one Job", lambda: len(stage.jobs()) == 1)
    assert stage.status().get("lastHandledRequest") is None
    stage.ask_again(at="2026-11-24T12:00:00Z")
    third = stage.until_attempt(3)
    notes = third["metadata"]["annotations"]
    assert notes["llmengine.io/requested-at"] == "2026-11-24T12:00:00Z"
    assert notes["llmengine.io/tries-left"] == "1"
    stage.until_reason("Building")
    # The pass after the one that asks for the Job sees it.
    asked = "2026-11-24T12:00:00Z"
    stage.until("an echo", lambda: stage.status().get("lastHandledRequest") == asked)
    assert "Stalled" not in stage.conditions()
    builder.fail(third, 11, "ModelUnsupported", "not this one")
    # A request is good for one series.
    stage.until_reason("ModelUnsupported")
    _pass(stage, operator)
    assert [j["metadata"]["name"] for j in stage.jobs()][-1] == third["metadata"]["name"]


def test_other_build_options_are_a_new_series(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    stage.create(build={"resources": {"limits": {"memory": "1Gi"}}})
    builder.killed(stage.until_job(), container="OOMKilled")
    stage.until_reason("BuildOutOfMemory")
    stage.edit(build={"resources": {"limits": {"memory": "8Gi"}}})
    second = stage.until_attempt(2)
    container = second["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"memory": "8Gi"}
    builder.finish(second)
    stage.until_reason("Serving")


def test_a_request_of_an_engine_that_serves_is_handled_without_a_build(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    stage.create()
    builder.finish(stage.until_job())
    stage.until_reason("Serving")
    stage.ask_again(at="now")
    stage.until("an answer", lambda: stage.status().get("lastHandledRequest") == "now")
    assert len(stage.jobs()) == 1


def test_a_damaged_engine_that_was_deleted_from_the_store_is_built_again_on_request(
    stage: Stage, builder: Builder, operator: LiveOperator, clock: Clock
) -> None:
    stage.create()
    builder.finish(stage.until_job())
    status = stage.until_reason("Serving")
    clock.advance(minutes=1)  # its manifest is no longer on its way
    stage.delete_manifest(status["engines"][0]["key"])
    # Seen a moment ago, it would be believed to be there for minutes.
    stage.ask_again(at="now")
    digest = builder.finish(stage.until_attempt(2))
    stage.until(
        "the new engine to serve",
        lambda: stage.status()["serving"][0]["manifestDigest"] == digest,
    )
    stage.until_reason("Serving")


def test_an_image_that_cannot_be_pulled_is_named_and_a_mended_one_is_pulled_instead(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    stage.create()
    job = stage.until_job()
    builder.stuck(job, "ImagePullBackOff", "not found")
    stage.until_reason("ImagePullFailed")
    assert stage.message() == "amd64: registry.test/engine:v1: not found"
    assert stage.conditions()["Reconciling"] == ("True", "ImagePullFailed")
    stage.set_image("v2")
    stage.until("another Job", lambda: _images(stage) == ["registry.test/engine:v2"])
    builder.finish(stage.until_job())
    stage.until_reason("Serving")


def _images(stage: Stage) -> list[str]:
    jobs = stage.jobs()
    return [job["spec"]["template"]["spec"]["containers"][0]["image"] for job in jobs]


def test_a_secret_that_is_missing_stalls_until_it_is_there(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    stage.create()
    job = stage.until_job()
    said = 'secret "llmengine-store-write" not found'
    builder.stuck(job, "CreateContainerConfigError", said)
    stage.until_reason("ContainerConfigInvalid")
    assert stage.conditions()["Stalled"] == ("True", "ContainerConfigInvalid")
    assert said in stage.message()
    builder.unstuck(job)
    stage.until_reason("Building")
    assert "Stalled" not in stage.conditions()
    builder.finish(job)
    stage.until_reason("Serving")


def test_a_build_that_fits_on_no_node_says_so_and_starts_when_it_is_made_smaller(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    stage.create(build={"resources": {"requests": {"memory": "9Ti"}}})
    job = stage.until_job()
    stage.until_reason("Unschedulable")
    assert "Insufficient memory" in stage.message()
    stage.edit(build={"resources": {"requests": {"memory": "9Gi"}}})
    stage.until("another Job", lambda: _uids(stage) not in ([], [job["metadata"]["uid"]]))
    builder.finish(stage.until_job())
    stage.until_reason("Serving")


def _uids(stage: Stage) -> list[str]:
    return [job["metadata"]["uid"] for job in stage.jobs()]


def test_a_quota_that_forbids_the_pod_is_quoted_and_when_it_is_lifted_the_build_runs(
    stage: Stage, builder: Builder, operator: LiveOperator, clock: Clock
) -> None:
    """The Job controller says so in events of events.k8s.io/v1, selected by what they regard."""
    path = f"/api/v1/namespaces/{stage.builds}/resourcequotas"
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    stage.api.request("POST", path, quota)
    stage.until("the quota", lambda: stage.api.get(f"{path}/none")["status"].get("hard"))
    stage.create()
    stage.until_job()
    stage.until_reason("BuildPending")
    stage.until("the refusal", lambda: _warnings(stage))
    clock.advance(seconds=25)
    operator.resync()
    stage.until_reason("QuotaExceeded")
    assert "exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0" in (
        stage.message()
    )
    assert stage.items(POD, stage.builds) == []
    stage.api.request("DELETE", f"{path}/none")
    builder.finish(stage.until_job())
    stage.until_reason("Serving")


def _warnings(stage: Stage) -> list[Any]:
    path = f"/apis/events.k8s.io/v1/namespaces/{stage.builds}/events"
    return [e for e in stage.api.items(path) if "exceeded quota" in e.get("note", "")]


def test_a_namespace_for_builds_that_is_not_there_is_named(stage: Stage, builder: Builder) -> None:
    nowhere = stage.config(builds={"namespace": f"{stage.builds}-x"})
    with LiveOperator(stage, config=nowhere):
        stage.create()
        stage.until_reason("BuildQueued")
        refusal = f'namespaces "{stage.builds}-x" not found'
        stage.until("the refusal", lambda: refusal in stage.message())


def test_a_runtime_that_comes_later_starts_the_build_by_itself(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    runtime, stage.runtime = stage.runtime, f"{stage.runtime}-later"
    stage.create()
    stage.until_reason("RuntimeNotFound")
    assert f'there is no EngineRuntime "{stage.runtime}"' in stage.message()
    stage.set_image("v1")
    try:
        builder.finish(stage.until_job())
        stage.until_reason("Serving")
        # Taken away again, it stops no pod.
        stage.remove_runtime()
        stage.until_reason("RuntimeNotFound")
        assert stage.conditions()["Available"] == ("True", "Serving")
        stage.set_image("v1")
        stage.until_reason("Serving")
    finally:
        stage.remove_runtime()
        stage.runtime = runtime


def test_a_build_that_ends_well_and_publishes_nothing_is_no_endless_loop(
    stage: Stage, builder: Builder, operator: LiveOperator, clock: Clock
) -> None:
    stage.create(build={"attempts": 1})
    builder.end(stage.until_job())
    stage.until_reason("Publishing")
    clock.advance(seconds=40)
    operator.resync()
    stage.until_reason("BuildLost")
    assert "its engine is not in the store" in stage.message()
    _pass(stage, operator)
    assert len(stage.jobs()) == 1


def test_a_failed_build_of_another_engine_is_not_repeated_for_the_next_one(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    stage.create()
    job = stage.until_job()
    builder.fail(job, 11, "ModelUnsupported", "not this one")
    stage.until_reason("ModelUnsupported")
    stage.create(namespace=stage.other)
    stage.until_reason("ModelUnsupported", namespace=stage.other)
    assert _uids(stage) == [job["metadata"]["uid"]]
    assert request_of(job).key == stage.status(namespace=stage.other)["engines"][0]["key"]
