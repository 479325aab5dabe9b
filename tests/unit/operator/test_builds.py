"""When a build starts, is tried again, or is given up."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from llmengine.api.v1alpha1 import EngineState, EngineStatus
from llmengine_operator.builds import (
    ENVIRONMENT_RETRY,
    LONGEST_BACK_OFF,
    Ask,
    Candidate,
    assess,
    back_off,
    schedule,
)
from llmengine_operator.config import BuildsConfig
from llmengine_operator.observation import Attempt, AttemptState, Verdict
from llmengine_operator.reasons import Reason
from tests.unit.operator.world import NOW, seconds

KEY = "a" * 64
ASK = Ask(key=KEY, options="one", tries=3)


def attempt(state: AttemptState, **fields: object) -> Attempt:
    base = Attempt(
        namespace="builds",
        name="build-1",
        uid="u",
        key=KEY,
        architecture="amd64",
        number=1,
        tries_left=2,
        options="one",
        request="",
        created=NOW - seconds(100),
        state=state,
        reason="Reason",
        message="words",
        finished=NOW - seconds(5) if state is AttemptState.FAILED else None,
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def failed(**fields: object) -> Attempt:
    return attempt(AttemptState.FAILED, **fields)


def test_a_key_that_nobody_tried_may_start_now_with_its_whole_budget() -> None:
    verdict = assess(ASK, [], None, NOW)
    assert (verdict.start_at, verdict.number, verdict.tries_left) == (NOW, 1, 2)
    assert verdict.reason == Reason.BUILD_QUEUED


def test_a_running_build_is_left_alone_whatever_its_options() -> None:
    verdict = assess(ASK, [attempt(AttemptState.RUNNING, options="other")], None, NOW)
    assert verdict.state is EngineState.BUILDING
    assert verdict.start_at is None


def test_a_job_whose_secret_is_missing_stalls() -> None:
    waiting = attempt(AttemptState.WAITING, reason=Reason.CONTAINER_CONFIG_INVALID)
    assert assess(ASK, [waiting], None, NOW).stalled


def test_a_transient_failure_is_tried_again_after_its_back_off() -> None:
    verdict = assess(ASK, [failed(verdict=Verdict.RETRY)], None, NOW)
    assert verdict.start_at == NOW - seconds(5) + back_off(1)
    assert (verdict.number, verdict.tries_left) == (2, 1)
    assert not verdict.stalled
    assert "try 1 of 3 failed" in verdict.message


def test_when_all_tries_are_used_up_it_stalls_and_looks_again_in_an_hour() -> None:
    verdict = assess(ASK, [failed(verdict=Verdict.RETRY, tries_left=0, number=3)], None, NOW)
    assert verdict.stalled
    assert verdict.state is EngineState.FAILED
    assert verdict.start_at == NOW - seconds(5) + ENVIRONMENT_RETRY


def test_a_final_failure_never_starts_again_by_itself() -> None:
    verdict = assess(ASK, [failed(verdict=Verdict.FINAL)], None, NOW + timedelta(days=2))
    assert verdict.stalled
    assert verdict.start_at is None


def test_other_build_options_deserve_a_new_series() -> None:
    verdict = assess(replace(ASK, options="two"), [failed(verdict=Verdict.FINAL)], None, NOW)
    assert (verdict.start_at, verdict.number, verdict.tries_left) == (NOW, 2, 2)


def test_two_engines_with_different_options_do_not_take_turns_for_ever() -> None:
    tried = [failed(verdict=Verdict.FINAL), failed(verdict=Verdict.FINAL, options="two", number=2)]
    for options in ("one", "two"):
        assert assess(replace(ASK, options=options), tried, None, NOW).start_at is None


def test_a_request_starts_a_new_series_once() -> None:
    asked = replace(ASK, request="now")
    before = [failed(verdict=Verdict.FINAL)]
    assert assess(asked, before, None, NOW).start_at == NOW
    after = [*before, failed(verdict=Verdict.FINAL, number=2, request="now")]
    assert assess(asked, after, None, NOW).start_at is None


def test_a_finished_build_has_a_moment_to_show_its_manifest() -> None:
    done = attempt(AttemptState.SUCCEEDED, finished=NOW - seconds(1))
    assert assess(ASK, [done], None, NOW).reason == Reason.PUBLISHING
    assert assess(ASK, [done], None, NOW + timedelta(minutes=5)).start_at is not None


def test_an_engine_that_was_deleted_from_the_store_is_built_again() -> None:
    done = attempt(AttemptState.SUCCEEDED, finished=NOW - timedelta(hours=2))
    verdict = assess(ASK, [done], None, NOW)
    assert verdict.start_at is not None
    assert verdict.start_at <= NOW
    assert verdict.number == 2


def test_builds_that_end_well_and_leave_no_engine_are_given_up_like_failed_ones() -> None:
    lost = NOW - timedelta(minutes=1)
    first = assess(ASK, [attempt(AttemptState.SUCCEEDED, finished=lost)], None, NOW)
    assert (first.reason, first.tries_left) == (Reason.BUILD_RETRYING, 1)
    assert "its engine is not in the store" in first.message
    last = attempt(AttemptState.SUCCEEDED, finished=lost, tries_left=0, number=3)
    verdict = assess(ASK, [last], None, NOW)
    assert (verdict.reason, verdict.stalled) == (Reason.BUILD_LOST, True)
    assert verdict.start_at == lost + ENVIRONMENT_RETRY


def test_a_request_after_an_engine_was_deleted_from_the_store_builds_it_at_once() -> None:
    done = attempt(AttemptState.SUCCEEDED, finished=NOW - timedelta(minutes=1), tries_left=0)
    verdict = assess(replace(ASK, request="now"), [done], None, NOW)
    assert (verdict.start_at, verdict.tries_left) == (NOW, 2)


def row(**fields: object) -> EngineStatus:
    return EngineStatus.model_validate(
        {
            "key": KEY,
            "architecture": "amd64",
            "state": "Failed",
            "reason": "ModelUnsupported",
            "message": "no",
            "lastFailureTime": "2026-11-24T11:00:00Z",
            **fields,
        }
    )


def test_the_row_remembers_a_failure_whose_job_is_gone() -> None:
    verdict = assess(ASK, [], row(), NOW)
    assert verdict.stalled
    assert verdict.start_at is None
    assert verdict.message == "no"


def test_a_remembered_failure_of_the_environment_is_looked_at_again_after_an_hour() -> None:
    verdict = assess(ASK, [], row(reason="StoreDenied"), NOW)
    assert verdict.start_at == NOW


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(replace(ASK, edited=True), id="an edited spec"),
        pytest.param(replace(ASK, request="x"), id="a request"),
    ],
)
def test_what_ends_a_remembered_failure(ask: Ask) -> None:
    assert assess(ask, [], row(), NOW).start_at == NOW


def test_back_off_doubles_up_to_its_limit() -> None:
    assert back_off(2) == 2 * back_off(1)
    assert back_off(30) == LONGEST_BACK_OFF


def candidate(
    key: str, *, first: bool = True, since: int = 0, on: str = "amd64", of: str = "team/chat"
) -> Candidate:
    return Candidate(key, on, first, NOW + seconds(since), of)


LIMITS = BuildsConfig(max_concurrent=2)


def test_first_builds_go_before_rebuilds_and_the_oldest_wish_first() -> None:
    plan = schedule(
        [
            candidate("rebuild", first=False, since=-50),
            candidate("young", since=5, on="arm64"),
            candidate("old", since=1),
        ],
        [],
        LIMITS,
    )
    assert plan.start == ("old", "young")
    assert plan.waiting == {"rebuild": "waits: 2 builds run at a time"}


def test_of_those_who_came_in_the_same_second_the_first_by_name_goes_first() -> None:
    plan = schedule(
        [
            candidate("a", of="team/b"),
            candidate("b", of="team/a", on="arm64"),
            candidate("c", of="team/a"),
            candidate("d", of="other/z"),
        ],
        [],
        BuildsConfig(max_concurrent=9, max_concurrent_per_architecture=9),
    )
    assert plan.start == ("d", "c", "b", "a")


def test_one_build_runs_on_an_architecture_at_a_time() -> None:
    plan = schedule([candidate("a"), candidate("b", since=1)], [], LIMITS)
    assert plan.start == ("a",)
    assert plan.waiting == {"b": "waits for the build that runs on amd64"}


def test_a_key_that_is_being_built_is_not_started_again() -> None:
    plan = schedule([candidate(KEY)], [attempt(AttemptState.RUNNING)], LIMITS)
    assert plan.start == ()
    assert plan.waiting == {}


@pytest.mark.parametrize(
    "reason",
    [Reason.IMAGE_PULL_FAILED, Reason.CONTAINER_CONFIG_INVALID, Reason.QUOTA_EXCEEDED],
)
def test_a_broken_build_does_not_block_the_next(reason: Reason) -> None:
    stuck = attempt(AttemptState.WAITING, reason=reason)
    assert schedule([candidate("b")], [stuck], LIMITS).start == ("b",)


def test_a_build_that_is_about_to_start_takes_its_place() -> None:
    pending = attempt(AttemptState.WAITING, reason=Reason.BUILD_PENDING)
    assert schedule([candidate("b")], [pending], LIMITS).start == ()
