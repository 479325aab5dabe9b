"""The order in which keys are worked on, by a clock that the test moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmengine_operator.workqueue import Backoff, Schedule, Workers, WorkQueue


def drain(schedule: Schedule[str], now: float) -> list[str]:
    """What can be started at `now`, one after the other."""
    started = []
    while (key := schedule.start_next(now)) is not None:
        started.append(key)
        schedule.finish(key)
    return started


def test_keys_come_in_the_order_in_which_they_were_first_asked_for() -> None:
    schedule: Schedule[str] = Schedule()
    for key in ("a", "b", "a", "c"):
        schedule.add(key, 0)
    assert drain(schedule, 0) == ["a", "b", "c"]


def test_a_key_that_changes_while_it_is_worked_on_is_worked_on_once_more_afterwards() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", 0)
    assert schedule.start_next(0) == "a"
    schedule.add("a", 1)
    schedule.add("a", 2)
    assert schedule.start_next(3) is None
    schedule.finish("a")
    assert drain(schedule, 3) == ["a"]


def test_of_two_wishes_for_later_the_earlier_counts_and_the_other_is_gone() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add_at("a", 20)
    schedule.add_at("a", 10)
    schedule.add_at("a", 30)
    assert schedule.next_due() == 10
    assert drain(schedule, 9.9) == []
    assert drain(schedule, 10) == ["a"]
    assert drain(schedule, 100) == []


def test_a_pass_that_starts_voids_the_wish_for_a_later_one() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add_at("a", 600)
    schedule.add("a", 0)
    assert drain(schedule, 0) == ["a"]
    assert schedule.next_due() is None


def test_a_wish_made_during_a_pass_is_kept() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", 0)
    schedule.start_next(0)
    schedule.add_at("a", 5)
    schedule.finish("a")
    assert drain(schedule, 4) == []
    assert drain(schedule, 5) == ["a"]


def test_a_delayed_key_that_becomes_due_while_it_runs_waits_for_its_turn() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", 0)
    schedule.start_next(0)
    schedule.add_at("a", 5)
    assert schedule.start_next(6) is None
    assert schedule.depth(6) == 1
    schedule.finish("a")
    assert drain(schedule, 6) == ["a"]


def test_ages_are_of_the_key_that_waits_longest_and_of_the_pass_that_runs_longest() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("running", 0)
    schedule.start_next(2)
    schedule.add("waiting", 5)
    schedule.add("later", 7)
    schedule.add_at("delayed", 100)
    assert (schedule.depth(10), schedule.oldest(10), schedule.longest(10)) == (2, 5, 8)


@pytest.mark.parametrize(
    ("failures", "chance", "delay"),
    [
        pytest.param(1, 0.0, 1.0, id="the first failure waits for a second"),
        pytest.param(4, 0.0, 8.0, id="each further one doubles the wait"),
        pytest.param(4, 0.5, 7.2, id="chance takes up to a fifth off"),
        pytest.param(20, 0.0, 300.0, id="the wait has a cap"),
        pytest.param(10_000, 0.0, 300.0, id="however often it failed"),
    ],
)
def test_a_failing_key_waits_ever_longer(failures: int, chance: float, delay: float) -> None:
    assert Backoff().delay(failures, chance) == pytest.approx(delay)


class ScheduleAgainstModel(RuleBasedStateMachine):
    """Whatever the order of calls: never twice at once, and nothing asked for is lost."""

    keys = st.sampled_from(["a", "b", "c"])

    def __init__(self) -> None:
        super().__init__()
        self.schedule: Schedule[str] = Schedule()
        self.now = 0.0
        self.running: set[str] = set()
        # From when on each key may be started; a start takes its entry away.
        self.wanted: dict[str, float] = {}

    @rule(key=keys)
    def add(self, key: str) -> None:
        self.schedule.add(key, self.now)
        self.wanted[key] = min(self.wanted.get(key, self.now), self.now)

    @rule(key=keys, delay=st.integers(0, 5))
    def add_at(self, key: str, delay: int) -> None:
        self.schedule.add_at(key, self.now + delay)
        due = self.now + delay
        self.wanted[key] = min(self.wanted.get(key, due), due)

    @rule(seconds=st.integers(1, 4))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def start(self) -> None:
        startable = {k for k, due in self.wanted.items() if due <= self.now} - self.running
        key = self.schedule.start_next(self.now)
        if key is None:
            assert not startable
            return
        assert key in startable
        self.running.add(key)
        del self.wanted[key]

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        self.schedule.finish(key)
        self.running.remove(key)

    @invariant()
    def depth_counts_what_is_due(self) -> None:
        due = [k for k, at in self.wanted.items() if at <= self.now]
        assert self.schedule.depth(self.now) == len(due)


TestScheduleAgainstModel = ScheduleAgainstModel.TestCase
TestScheduleAgainstModel.settings = settings(max_examples=200, stateful_step_count=40)


@given(st.integers(1, 100), st.floats(0, 1, exclude_max=True))
def test_no_wait_is_longer_than_the_cap_or_shorter_than_four_fifths_of_it(
    failures: int, chance: float
) -> None:
    backoff = Backoff()
    assert 0.8 * backoff.delay(failures, 0) <= backoff.delay(failures, chance) <= 300


class FakeClock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_back_off_of_a_key_begins_anew_after_a_success() -> None:
    queue: WorkQueue[str] = WorkQueue(clock=FakeClock(), chance=lambda: 0.0)
    assert [queue.retry("a") for _ in range(3)] == [1, 2, 4]
    assert queue.retry("b") == 1
    queue.forget("a")
    assert queue.retry("a") == 1


def test_an_event_does_not_wait_for_the_back_off() -> None:
    queue: WorkQueue[str] = WorkQueue(clock=FakeClock())
    queue.retry("a")
    queue.add("a")
    assert queue.get() == "a"


def test_a_closed_queue_hands_out_nothing_and_wakes_those_who_wait() -> None:
    queue: WorkQueue[str] = WorkQueue()
    got: list[str | None] = []
    waiting = threading.Thread(target=lambda: got.append(queue.get()))
    waiting.start()
    queue.close()
    waiting.join(5)
    queue.add("a")
    assert got == [None]
    assert queue.get() is None


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Passes:
    """Records passes; `plan` says what each one does."""

    def __init__(self, plan: Callable[[str, int], float | None]) -> None:
        self.plan = plan
        self.runs: list[str] = []
        self.at_once: dict[str, int] = {}
        self.overlaps = 0
        self.lock = threading.Lock()
        self.observed: list[tuple[str, Exception | None, float | None]] = []

    def run(self, key: str) -> float | None:
        with self.lock:
            self.runs.append(key)
            number = self.runs.count(key)
            self.at_once[key] = self.at_once.get(key, 0) + 1
            self.overlaps += self.at_once[key] > 1
        try:
            return self.plan(key, number)
        finally:
            with self.lock:
                self.at_once[key] -= 1

    def observe(
        self, key: str, *, seconds: float, error: Exception | None, again: float | None
    ) -> None:
        assert seconds >= 0
        self.observed.append((key, error, again))


def workers(passes: Passes, queue: WorkQueue[str], broken: list[BaseException]) -> Workers[str]:
    return Workers(queue, passes.run, count=4, observe=passes.observe, broken=broken.append)


def test_a_pass_comes_back_when_it_asks_to_and_after_it_failed() -> None:
    def plan(key: str, number: int) -> float | None:
        if key == "fails" and number == 1:
            raise ValueError("no")
        return 0.01 if key == "again" and number < 3 else None

    passes, broken = Passes(plan), list[BaseException]()
    queue: WorkQueue[str] = WorkQueue(backoff=Backoff(first=0.01))
    pool = workers(passes, queue, broken)
    pool.start()
    for key in ("fails", "again", "once"):
        queue.add(key)
    eventually(lambda: len(passes.observed) == 6)
    assert pool.stop(5)
    assert sorted(passes.runs) == ["again"] * 3 + ["fails"] * 2 + ["once"]
    failure = next(o for o in passes.observed if o[1] is not None)
    assert failure[0] == "fails"
    assert str(failure[1]) == "no"
    assert failure[2] == pytest.approx(0.01, rel=0.2)
    assert not broken


def test_a_key_is_never_worked_on_by_two_workers_at_once() -> None:
    passes, broken = Passes(lambda key, number: time.sleep(0.001)), list[BaseException]()
    queue: WorkQueue[str] = WorkQueue()
    pool = workers(passes, queue, broken)
    pool.start()
    for _ in range(300):
        queue.add("a")
        queue.add("b")
        time.sleep(0.0002)
    eventually(lambda: queue.depth == 0 and queue.longest_pass_seconds == 0)
    assert pool.stop(5)
    assert passes.overlaps == 0
    assert len(passes.runs) >= 4


def test_stopping_waits_for_the_pass_under_way_but_not_for_ever() -> None:
    release = threading.Event()

    def plan(key: str, number: int) -> float | None:
        release.wait(5)
        return None

    passes = Passes(plan)
    queue: WorkQueue[str] = WorkQueue()
    pool = workers(passes, queue, [])
    pool.start()
    queue.add("slow")
    eventually(lambda: passes.runs == ["slow"])
    queue.add("never started")
    assert not pool.stop(0.05)
    release.set()
    assert pool.stop(5)
    assert passes.runs == ["slow"]


def test_workers_that_were_never_started_stop_at_once() -> None:
    assert workers(Passes(lambda key, number: None), WorkQueue(), []).stop(5)


def test_what_escapes_a_worker_is_reported_since_nobody_would_miss_it() -> None:
    def plan(key: str, number: int) -> float | None:
        raise SystemExit(7)

    broken: list[BaseException] = []
    queue: WorkQueue[str] = WorkQueue()
    pool = workers(Passes(plan), queue, broken)
    pool.start()
    queue.add("a")
    eventually(lambda: len(broken) == 1)
    assert isinstance(broken[0], SystemExit)
    pool.stop(5)
