"""The thread between the scheduler and everybody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from llmengine_server.engine_loop import EngineLoop
from llmengine_server.generation import Event, Finish, Generation
from llmengine_server.sampling import Sampling
from llmengine_server.scheduler import CUT_OFF, SHUTTING_DOWN, Occupancy, Scheduler
from tests.unit.server.fake_session import FakeRow, FakeSession


@dataclass
class FakePulse:
    deadline: float | None = None
    beats: int = 0
    drained: int = 0

    def beat(self) -> None:
        self.beats += 1

    def tell_drained(self) -> None:
        self.drained += 1


@dataclass
class Ear:
    events: list[Event] = field(default_factory=list)
    occupancy: Occupancy | None = None
    quiet: bool = True

    def publish(self, events: Sequence[Event], at: float) -> None:
        self.events += events

    def occupied(self, occupancy: Occupancy) -> None:
        self.occupancy = occupancy

    def ends(self) -> dict[int, Finish]:
        return {event.id: event.finish for event in self.events if event.finish}


class Running:
    """A loop on a thread."""

    def __init__(self, session: FakeSession) -> None:
        self.pulse, self.ear = FakePulse(), Ear()
        self.loop = EngineLoop(Scheduler(session, session.clock), self.pulse)
        self.thread = threading.Thread(target=self.loop.run, args=(self.ear,))
        self.thread.start()

    def submit(self, id_: int, max_tokens: int = 4) -> None:
        self.loop.submit(
            Generation(
                id=id_,
                prompt=(5, 6, id_),
                max_tokens=max_tokens,
                sampling=Sampling(),
                stop_ids=frozenset(),
            )
        )

    def wait(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < deadline, "the loop did not get there"
            time.sleep(0.001)


@pytest.fixture
def running() -> Iterator[Running]:
    running = Running(FakeSession(slots=2, max_sequence_length=100_000))
    yield running
    running.loop.stop()
    running.thread.join(10)
    assert not running.thread.is_alive()


def test_requests_are_answered(running: Running) -> None:
    for id_ in range(5):
        running.submit(id_)
    running.wait(lambda: len(running.ear.ends()) == 5)
    assert set(running.ear.ends().values()) == {Finish.LENGTH}


def test_a_cancelled_request_ends_while_others_go_on(running: Running) -> None:
    running.submit(1, max_tokens=90_000)
    running.submit(2, max_tokens=90_000)
    running.wait(lambda: len(running.ear.events) > 10)
    running.loop.cancel(1)
    running.wait(lambda: running.ear.ends() == {1: Finish.CANCELLED})
    seen = len(running.ear.events)
    running.wait(lambda: len(running.ear.events) > seen)


def test_an_idle_loop_still_beats(running: Running) -> None:
    beats = running.pulse.beats
    running.wait(lambda: running.pulse.beats >= beats + 2)


def test_a_drain_refuses_what_comes_finishes_what_runs_or_waits_and_says_when_it_is_done(
    running: Running,
) -> None:
    for id_ in range(4):
        running.submit(id_, max_tokens=3000)
    running.wait(lambda: running.ear.occupancy is not None and running.ear.occupancy.decoding == 2)
    running.pulse.deadline = time.monotonic() + 600
    running.submit(9)
    running.wait(lambda: len(running.ear.ends()) == 5)
    assert running.ear.ends() == {
        0: Finish.LENGTH,
        1: Finish.LENGTH,
        2: Finish.LENGTH,
        3: Finish.LENGTH,
        9: Finish.REFUSED,
    }
    running.wait(lambda: running.pulse.drained > 0)


def test_when_the_time_is_up_everybody_is_answered_and_the_drain_is_done(running: Running) -> None:
    for id_ in range(5):
        running.submit(id_, max_tokens=90_000)
    running.wait(lambda: running.ear.occupancy is not None and running.ear.occupancy.decoding == 2)
    running.pulse.deadline = time.monotonic()
    running.wait(lambda: running.pulse.drained > 0)
    assert running.ear.ends() == dict.fromkeys(range(5), Finish.REFUSED)
    said = {event.id: event.message for event in running.ear.events if event.finish}
    assert [said[id_] for id_ in range(5)] == [CUT_OFF] * 2 + [SHUTTING_DOWN] * 3


def test_a_drain_is_not_done_before_the_last_answer_is_out(running: Running) -> None:
    running.ear.quiet = False
    running.pulse.deadline = time.monotonic() + 600
    beats = running.pulse.beats
    running.wait(lambda: running.pulse.beats > beats + 1)
    assert running.pulse.drained == 0
    running.ear.quiet = True
    running.wait(lambda: running.pulse.drained > 0)


def test_what_the_session_raises_ends_the_loop() -> None:
    class Broken(FakeSession):
        def prefill(self, slot: int, tokens: Sequence[int], past: int) -> FakeRow:
            raise RuntimeError("the device is gone")

    session = Broken()
    loop = EngineLoop(Scheduler(session, session.clock), FakePulse())
    loop.submit(
        Generation(id=1, prompt=(5,), max_tokens=1, sampling=Sampling(), stop_ids=frozenset())
    )
    with pytest.raises(RuntimeError, match="the device is gone"):
        loop.run(Ear())
