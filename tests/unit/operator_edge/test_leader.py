"""Who may take the lease, and how its holder notices that it has lost it."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from llmengine_operator.kinds import LEASE
from llmengine_operator.kube_errors import ForbiddenError, UnavailableError
from llmengine_operator.leader import (
    LEASE_NAME,
    Leadership,
    LeaseTiming,
    LostLeaseError,
    Sighting,
    may_take,
    released,
    taken,
)
from tests.unit.operator_edge.fake_kube import FakeKube

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def lease(version: int = 1, **spec: Any) -> dict[str, Any]:
    metadata = {"namespace": "system", "name": LEASE_NAME, "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": spec}


@pytest.mark.parametrize(
    ("spec", "unchanged", "may"),
    [
        pytest.param({}, 0, True, id="nobody's"),
        pytest.param({"holderIdentity": ""}, 0, True, id="released"),
        pytest.param(
            {"holderIdentity": "me", "leaseDurationSeconds": 15}, 0, True, id="ours from before"
        ),
        pytest.param(
            {"holderIdentity": "other", "leaseDurationSeconds": 15}, 14.9, False, id="held"
        ),
        pytest.param(
            {"holderIdentity": "other", "leaseDurationSeconds": 15}, 15, True, id="run out"
        ),
    ],
)
def test_a_lease_is_taken_when_it_is(spec: dict[str, Any], unchanged: float, may: bool) -> None:
    assert may_take(lease(**spec), "me", unchanged) is may


def test_silence_is_measured_by_our_own_clock_from_the_last_change() -> None:
    sighting = Sighting()
    # Whatever the holder's clock says, which may be wrong by hours.
    old = lease(1, holderIdentity="other", renewTime="1999-01-01T00:00:00.000000Z")
    assert sighting.unchanged(old, 100) == 0
    assert sighting.unchanged(old, 110) == 10
    assert sighting.unchanged(lease(2), 111) == 0
    assert sighting.unchanged(lease(2), 112) == 1


def test_only_a_change_of_the_holder_counts_as_a_transition() -> None:
    first = taken(lease(), "a", 15, NOW)["spec"]
    again = taken({**lease(), "spec": first}, "a", 15, NOW.replace(second=2))["spec"]
    other = taken({**lease(), "spec": again}, "b", 15, NOW.replace(second=4))["spec"]
    assert (first["leaseTransitions"], again["leaseTransitions"], other["leaseTransitions"]) == (
        1,
        1,
        2,
    )
    assert again["acquireTime"] == first["acquireTime"] != other["acquireTime"]
    assert again["renewTime"] != first["renewTime"]
    assert "holderIdentity" not in released({**lease(), "spec": other}, NOW)["spec"]


def test_the_leader_stops_before_the_others_begin_even_if_its_last_request_hangs() -> None:
    timing = LeaseTiming(15)
    assert timing.deadline + timing.retry < timing.duration
    assert 2 * sum(timing.request_timeout) <= timing.deadline


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def kube() -> FakeKube:
    return FakeKube()


def candidate(kube: FakeKube, identity: str, clock: Clock) -> Leadership:
    return Leadership(
        kube,
        namespace="system",
        identity=identity,
        timing=LeaseTiming(15),
        clock=clock,
        now=lambda: NOW,
    )


class Steps(threading.Event):
    """An Event that is set after so many waits, none of which takes time; `each` runs in each."""

    def __init__(self, count: int, clock: Clock, each: Any = None) -> None:
        super().__init__()
        self.count = count
        self.clock = clock
        self.each = each
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        if len(self.waits) == self.count:
            self.set()
            return True
        self.waits.append(timeout)
        self.clock.now += timeout
        if self.each:
            self.each()
        return False


def holder(kube: FakeKube) -> str | None:
    spec: dict[str, Any] = kube.get(LEASE, "system", LEASE_NAME)["spec"]
    return spec.get("holderIdentity")


def test_the_second_waits_until_the_first_has_been_silent_for_the_whole_duration(
    kube: FakeKube,
) -> None:
    clock = Clock()
    assert candidate(kube, "first", clock).acquire(threading.Event())
    waiting = Steps(100, clock)
    started = clock.now
    assert candidate(kube, "second", clock).acquire(waiting)
    assert 15 <= clock.now - started <= 16
    assert holder(kube) == "second"


def test_a_released_lease_is_taken_at_the_next_look(kube: FakeKube) -> None:
    clock = Clock()
    first = candidate(kube, "first", clock)
    first.acquire(threading.Event())
    waiting = Steps(100, clock, each=first.release)
    assert candidate(kube, "second", clock).acquire(waiting)
    assert len(waiting.waits) == 1
    assert waiting.waits[0] <= 1


def test_a_renewal_under_way_does_not_take_a_released_lease_back(kube: FakeKube) -> None:
    clock = Clock()
    first = candidate(kube, "first", clock)
    first.acquire(threading.Event())

    class Stopped(threading.Event):
        """Is set, and the lease released, in the moment after keep() has looked."""

        def wait(self, timeout: float | None = None) -> bool:
            self.set()
            first.release()
            return False

    first.keep(Stopped())
    assert holder(kube) is None


def test_a_container_that_was_restarted_in_its_pod_need_not_wait(kube: FakeKube) -> None:
    clock = Clock()
    candidate(kube, "pod-1", clock).acquire(threading.Event())
    assert candidate(kube, "pod-1", clock).acquire(Steps(0, clock))


def test_waiting_ends_when_the_process_is_to_end(kube: FakeKube) -> None:
    clock = Clock()
    candidate(kube, "first", clock).acquire(threading.Event())
    assert not candidate(kube, "second", clock).acquire(Steps(3, clock))


def test_waiting_outlives_an_api_server_that_refuses_or_is_away(
    kube: FakeKube, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    caplog.set_level("INFO")
    failures = [ForbiddenError(403, "Forbidden", "no", "get Lease"), None]
    kube.failure = UnavailableError(0, "Unreachable", "no answer", "get Lease")

    def heal() -> None:
        kube.failure = failures.pop(0)

    assert candidate(kube, "first", clock).acquire(Steps(5, clock, heal))
    assert "no answer" in caplog.text
    assert "Forbidden" in caplog.text


def test_renewing_keeps_the_second_away_for_as_long_as_it_goes_on(kube: FakeKube) -> None:
    clock = Clock()
    first, second = candidate(kube, "first", clock), candidate(kube, "second", clock)
    first.acquire(threading.Event())

    def look() -> None:
        assert not second.acquire(Steps(1, Clock()))
        assert not first.overdue

    first.keep(Steps(40, clock, look))
    assert holder(kube) == "first"
    assert clock.now >= 1000 + 40 * 2


def test_a_leader_that_cannot_renew_is_overdue_before_the_lease_runs_out(kube: FakeKube) -> None:
    clock = Clock()
    first = candidate(kube, "first", clock)
    first.acquire(threading.Event())
    kube.failure = UnavailableError(503, "ServiceUnavailable", "away", "replace Lease")
    overdue: list[float] = []

    def note() -> None:
        if first.overdue:
            overdue.append(clock.now - 1000)

    first.keep(Steps(20, clock, note))
    assert 10 <= overdue[0] <= 12


def test_somebody_elses_note_on_the_lease_is_no_loss(kube: FakeKube) -> None:
    clock = Clock()
    first = candidate(kube, "first", clock)
    first.acquire(threading.Event())

    def annotate() -> None:
        found = kube.get(LEASE, "system", LEASE_NAME)
        kube.put(LEASE, found)

    first.keep(Steps(3, clock, annotate))
    assert holder(kube) == "first"
    assert not first.overdue


def test_a_lease_that_was_deleted_is_made_again(kube: FakeKube) -> None:
    clock = Clock()
    first = candidate(kube, "first", clock)
    first.acquire(threading.Event())
    first.keep(Steps(1, clock, lambda: kube.remove(LEASE, "system", LEASE_NAME)))
    assert holder(kube) == "first"


def test_a_lease_that_somebody_else_has_taken_is_lost(kube: FakeKube) -> None:
    clock = Clock()
    first = candidate(kube, "first", clock)
    first.acquire(threading.Event())

    def usurp() -> None:
        found = kube.get(LEASE, "system", LEASE_NAME)
        kube.put(LEASE, taken(found, "second", 15, NOW))

    with pytest.raises(LostLeaseError, match="held by second"):
        first.keep(Steps(3, clock, usurp))
    assert holder(kube) == "second"


def test_releasing_what_was_never_held_or_is_lost_does_nothing(kube: FakeKube) -> None:
    clock = Clock()
    first = candidate(kube, "first", clock)
    first.release()
    assert kube.requests == []
    first.acquire(threading.Event())
    kube.put(LEASE, taken(kube.get(LEASE, "system", LEASE_NAME), "second", 15, NOW))
    first.release()
    assert holder(kube) == "second"
