"""Who gets which slot and when, and that nobody notices the company."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmengine_server.generation import Event, Finish, Generation
from llmengine_server.sampling import Sampling
from llmengine_server.scheduler import (
    CUT_OFF,
    QUEUE_PER_SLOT,
    SHUTTING_DOWN,
    Occupancy,
    Scheduler,
)
from tests.unit.server.fake_session import VOCABULARY, FakeSession

POISON = VOCABULARY  # no model generates it: only a prompt may hold it
STOP_IDS = frozenset({1, 2})
SAMPLED = Sampling(temperature=1.5, seed=3)


def generation(
    id_: int,
    prompt: Iterable[int] = (5, 6, 7),
    max_tokens: int = 4,
    sampling: Sampling | None = None,
    stop_ids: frozenset[int] = frozenset(),
) -> Generation:
    return Generation(
        id=id_,
        prompt=tuple(prompt),
        max_tokens=max_tokens,
        sampling=sampling or Sampling(),
        stop_ids=stop_ids,
    )


def scheduler_of(session: FakeSession) -> Scheduler:
    return Scheduler(session, session.clock)


def run(scheduler: Scheduler) -> list[Event]:
    events: list[Event] = []
    while not scheduler.idle:
        events += scheduler.step()
    return events


def alone(request: Generation) -> tuple[list[int], Finish | None]:
    """What a request gets from an engine of its own."""
    scheduler = scheduler_of(FakeSession(poison=POISON))
    assert scheduler.submit(request) is None
    events = run(scheduler)
    return [e.token for e in events if e.token is not None], events[-1].finish


def test_a_request_gets_its_tokens_and_one_end() -> None:
    scheduler = scheduler_of(FakeSession())
    scheduler.submit(generation(1, max_tokens=5))
    events = run(scheduler)
    assert [e.finish for e in events] == [None, None, None, None, Finish.LENGTH]
    assert all(e.token is not None for e in events)


def test_a_single_token_needs_no_decode_step() -> None:
    session = FakeSession()
    scheduler = scheduler_of(session)
    scheduler.submit(generation(1, max_tokens=1))
    assert [e.finish for e in run(scheduler)] == [Finish.LENGTH]
    assert session.calls == [("prefill", 3)]


def test_a_stop_token_ends_a_request_with_that_token() -> None:
    everything = frozenset(range(VOCABULARY))
    scheduler = scheduler_of(FakeSession())
    scheduler.submit(generation(1, stop_ids=everything))
    (event,) = run(scheduler)
    assert event.finish is Finish.STOP
    assert event.token is not None


def test_a_long_prompt_is_run_in_chunks_with_decode_steps_between() -> None:
    session = FakeSession(max_sequence_length=64)
    scheduler = scheduler_of(session)
    scheduler.submit(generation(1, max_tokens=20))
    for _ in range(2):
        scheduler.step()
    session.calls.clear()
    scheduler.submit(generation(2, prompt=range(3, 23), max_tokens=1))
    for _ in range(5):
        scheduler.step()
    assert session.calls == [
        ("prefill", 8),
        ("decode", 1),
        ("prefill", 8),
        ("decode", 1),
        ("prefill", 4),
    ]


def test_short_prompts_share_the_time_between_two_steps() -> None:
    session = FakeSession(slots=8, cost=0.001, decode_cost=0.03, max_batch_tokens=32)
    scheduler = scheduler_of(session)
    scheduler.submit(generation(1, prompt=range(3, 21), max_tokens=10))
    for _ in range(2):
        scheduler.step()
    session.calls.clear()
    for id_ in range(2, 8):
        scheduler.submit(generation(id_, prompt=range(3, 21), max_tokens=10))
    for _ in range(5):
        scheduler.step()
    assert session.calls == [
        ("prefill", 18),
        ("prefill", 18),
        ("prefill", 18),
        ("decode", 4),
        ("prefill", 18),
    ]


def test_a_newcomer_waits_for_one_decode_step_at_most() -> None:
    session = FakeSession(slots=8)
    scheduler = scheduler_of(session)
    for id_ in range(7):
        scheduler.submit(generation(id_, max_tokens=25))
    while scheduler.occupancy.decoding < 7:
        scheduler.step()
    scheduler.step()
    before = len(session.calls)
    scheduler.submit(generation(9))
    events: list[Event] = []
    while not any(e.id == 9 for e in events):
        events = scheduler.step()
    assert len(session.calls) - before <= 2


def test_requests_start_in_the_order_of_their_arrival() -> None:
    scheduler = scheduler_of(FakeSession(slots=2))
    for id_ in (4, 2, 9, 7, 1):
        scheduler.submit(generation(id_))
    first = list(dict.fromkeys(event.id for event in run(scheduler)))
    assert first == [4, 2, 9, 7, 1]


def test_the_last_slot_moves_into_a_hole() -> None:
    session = FakeSession()
    scheduler = scheduler_of(session)
    for id_ in range(3):
        scheduler.submit(generation(id_, max_tokens=20, prompt=[5, 6, id_]))
    while scheduler.occupancy.decoding < 3:
        scheduler.step()
    scheduler.cancel(0)
    scheduler.step()
    assert session.calls[-1] == ("decode", 2)
    assert session.moves == 1


def test_sequences_that_end_in_the_same_step_leave_the_others_in_place() -> None:
    session = FakeSession()
    scheduler = scheduler_of(session)
    # Each starts one decode step after the one before, so 0 and 2 end together.
    requests = [generation(i, [5, 6, i], max_tokens) for i, max_tokens in enumerate((6, 12, 4))]
    for request in requests:
        scheduler.submit(request)
    events: list[Event] = []
    steps = []
    while not scheduler.idle:
        events += scheduler.step()
        steps.append({e.id for e in events if e.finish})
    assert {0, 2} in steps
    assert {0} not in steps
    for request in requests:
        got = [e.token for e in events if e.id == request.id]
        assert (got, Finish.LENGTH) == alone(request)


def test_a_queue_that_is_full_refuses_and_says_so() -> None:
    scheduler = scheduler_of(FakeSession(slots=2))
    room = 2 + 2 * QUEUE_PER_SLOT
    assert [scheduler.submit(generation(id_)) for id_ in range(room)] == [None] * room
    refused = scheduler.submit(generation(99))
    assert refused is not None
    assert refused.finish is Finish.REFUSED
    assert "the server is busy: 0 requests run and 10 wait" in refused.message
    run(scheduler)
    assert scheduler.submit(generation(100)) is None


def test_the_queue_holds_no_more_once_the_slots_are_taken() -> None:
    scheduler = scheduler_of(FakeSession(slots=2))
    for id_ in range(2):
        scheduler.submit(generation(id_, max_tokens=20))
    while scheduler.occupancy.decoding < 2:
        scheduler.step()
    waiting = [scheduler.submit(generation(10 + i)) for i in range(2 * QUEUE_PER_SLOT + 1)]
    assert [event is None for event in waiting] == [True] * 8 + [False]


def busy(session: FakeSession) -> Scheduler:
    """All slots generate, and steps have been timed."""
    scheduler = scheduler_of(session)
    for id_ in range(session.slots):
        scheduler.submit(generation(id_, max_tokens=25))
    while scheduler.occupancy.decoding < session.slots:
        scheduler.step()
    scheduler.step()
    return scheduler


def test_who_waits_keeps_its_place_at_the_end_as_long_as_there_is_time_for_its_whole_answer() -> (
    None
):
    session = FakeSession(slots=2, cost=0.5, decode_cost=1.0)
    scheduler = busy(session)
    for id_, tokens in ((10, 25), (11, 4), (12, 20)):
        scheduler.submit(generation(id_, max_tokens=tokens))
    assert scheduler.hurry(60.0) == []
    refused = scheduler.hurry(21.0)
    assert [(e.id, e.finish, e.message) for e in refused] == [
        (10, Finish.REFUSED, SHUTTING_DOWN),
        (12, Finish.REFUSED, SHUTTING_DOWN),
    ]
    # What runs goes on although it may take longer, for it may also end sooner.
    ends = {event.id: event.finish for event in run(scheduler) if event.finish}
    assert ends == {0: Finish.LENGTH, 1: Finish.LENGTH, 11: Finish.LENGTH}


def test_a_server_that_has_timed_no_step_yet_refuses_nobody_early() -> None:
    scheduler = scheduler_of(FakeSession())
    scheduler.submit(generation(1, max_tokens=25))
    assert scheduler.hurry(0.001) == []


def test_without_time_left_everybody_is_told_and_every_slot_is_free() -> None:
    session = FakeSession(slots=3, max_batch_tokens=2)
    scheduler = scheduler_of(session)
    for id_ in range(2):
        scheduler.submit(generation(id_, max_tokens=25))
    while scheduler.occupancy.decoding < 2:
        scheduler.step()
    for id_ in (10, 11, 12):
        scheduler.submit(generation(id_, prompt=range(3, 23), max_tokens=4))
    scheduler.step()
    assert scheduler.occupancy == Occupancy(waiting=2, prefilling=1, decoding=2, slots=3)
    said = {e.id: (e.finish, e.message) for e in scheduler.hurry(0.0)}
    cut_off = dict.fromkeys((0, 1, 10), (Finish.REFUSED, CUT_OFF))
    assert said == cut_off | dict.fromkeys((11, 12), (Finish.REFUSED, SHUTTING_DOWN))
    assert scheduler.idle


@pytest.mark.parametrize("steps", [0, 1, 2, 5], ids=["waiting", "in prefill", "later", "decoding"])
def test_a_cancelled_request_ends_at_once_and_leaves_its_slot(steps: int) -> None:
    scheduler = scheduler_of(FakeSession(slots=1, max_batch_tokens=2))
    scheduler.submit(generation(1, prompt=range(3, 11), max_tokens=10))
    for _ in range(steps):
        scheduler.step()
    event = scheduler.cancel(1)
    assert event == Event(1, None, Finish.CANCELLED)
    assert scheduler.idle
    assert scheduler.occupancy == Occupancy(waiting=0, prefilling=0, decoding=0, slots=1)


def test_cancelling_twice_is_nothing() -> None:
    scheduler = scheduler_of(FakeSession())
    scheduler.submit(generation(1))
    assert scheduler.cancel(1) is not None
    assert scheduler.cancel(1) is None


def test_numbers_that_are_not_finite_fail_only_their_request_and_leave_a_clean_slot() -> None:
    session = FakeSession(poison=POISON)
    scheduler = scheduler_of(session)
    scheduler.submit(generation(1, prompt=[3, 4, 5]))
    scheduler.submit(generation(2, prompt=[3, POISON, 5]))
    scheduler.submit(generation(3, prompt=[3, 4, 6]))
    events = run(scheduler)
    ends = {e.id: e.finish for e in events if e.finish}
    assert ends == {1: Finish.LENGTH, 2: Finish.FAILED, 3: Finish.LENGTH}
    assert next(e for e in events if e.id == 2).token is None
    assert session.spoiled_slots() == []


def test_numbers_that_stop_being_finite_while_decoding_fail_only_their_request() -> None:
    session = FakeSession()
    scheduler = scheduler_of(session)
    requests = [generation(id_, prompt=[3, 4, id_], max_tokens=9) for id_ in range(4)]
    for request in requests:
        scheduler.submit(request)
    events: list[Event] = []
    while scheduler.occupancy.decoding < 4:
        events += scheduler.step()
    # From here on, whoever has this token in its sequence is spoiled.
    session.poison = 2
    events += run(scheduler)
    ends = {e.id: e.finish for e in events if e.finish}
    assert ends[2] is Finish.FAILED
    for request in requests:
        if ends[request.id] is Finish.LENGTH:
            got = [e.token for e in events if e.id == request.id]
            assert (got, Finish.LENGTH) == alone(request)
    assert session.spoiled_slots() == []


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(generation(1, prompt=[]), id="no prompt"),
        pytest.param(generation(1, max_tokens=0), id="no tokens"),
        pytest.param(generation(1, prompt=[3] * 30, max_tokens=3), id="longer than the engine"),
    ],
)
def test_what_the_session_has_no_space_for_is_a_bug_of_the_caller(request_: Generation) -> None:
    with pytest.raises(ValueError, match="request 1"):
        scheduler_of(FakeSession()).submit(request_)


def test_the_next_step_is_started_before_the_tokens_of_the_last_are_taken() -> None:
    session = FakeSession(ahead=1)
    scheduler = scheduler_of(session)
    scheduler.submit(generation(1, max_tokens=3))
    taken = [len(scheduler.step()) for _ in range(4)]
    assert session.calls == [("prefill", 3), ("decode", 1), ("decode", 1)]
    assert taken == [0, 1, 1, 1]
    assert scheduler.idle


def test_a_stop_that_was_not_foreseen_costs_one_step_whose_token_nobody_sees() -> None:
    session = FakeSession(ahead=1)
    scheduler = scheduler_of(session)
    scheduler.submit(generation(1, max_tokens=20, stop_ids=frozenset(range(VOCABULARY))))
    events = run(scheduler)
    assert [e.finish for e in events] == [Finish.STOP]
    assert session.calls == [("prefill", 3), ("decode", 1)]


def test_whoever_moves_while_a_step_is_under_way_gets_its_own_token() -> None:
    session = FakeSession(ahead=1)
    scheduler = scheduler_of(session)
    requests = [generation(id_, [5, 6, id_], max_tokens=12) for id_ in range(3)]
    for request in requests:
        scheduler.submit(request)
    events: list[Event] = []
    while scheduler.occupancy.decoding < 3:
        events += scheduler.step()
    scheduler.cancel(0)
    events += run(scheduler)
    for request in requests[1:]:
        got = [e.token for e in events if e.id == request.id]
        assert (got, Finish.LENGTH) == alone(request)


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_device_without_memory_sheds_the_newest_request_and_serves_the_others(
    ahead: int,
) -> None:
    session = FakeSession(ahead=ahead)
    scheduler = scheduler_of(session)
    requests = [generation(id_, [5, 6, id_], max_tokens=20) for id_ in range(3)]
    for request in requests:
        scheduler.submit(request)
    events: list[Event] = []
    while scheduler.occupancy.decoding < 3:
        events += scheduler.step()
    session.full = 1
    events += run(scheduler)
    shed = next(e for e in events if e.id == 2 and e.finish)
    assert shed.finish is Finish.REFUSED
    assert "no memory left for this request (0 bytes are free)" in shed.message
    assert "maxBatchSize" in shed.message
    for request in requests[:2]:
        got = [e.token for e in events if e.id == request.id]
        assert (got, Finish.LENGTH) == alone(request)


def test_a_prompt_that_finds_no_memory_is_shed_and_the_next_one_starts() -> None:
    session = FakeSession(full=1)
    scheduler = scheduler_of(session)
    for id_ in range(2):
        scheduler.submit(generation(id_))
    ends = {e.id: e.finish for e in run(scheduler) if e.finish}
    assert ends == {0: Finish.REFUSED, 1: Finish.LENGTH}


SAMPLINGS = (
    Sampling(),
    SAMPLED,
    Sampling(temperature=0.8, top_k=5, top_p=0.9, seed=8),
    Sampling(repetition_penalty=1.5, presence_penalty=0.4, frequency_penalty=0.2),
    Sampling(temperature=1.2, frequency_penalty=0.9, min_tokens=4, seed=1),
)


class Batching(RuleBasedStateMachine):
    """Any order of arrivals, steps and departures."""

    ahead = 0

    def __init__(self) -> None:
        super().__init__()
        self.session = FakeSession(slots=3, max_batch_tokens=4, poison=POISON, ahead=self.ahead)
        self.scheduler = scheduler_of(self.session)
        self.requests: dict[int, Generation] = {}
        self.tokens: dict[int, list[int]] = {}
        self.ends: dict[int, Finish] = {}
        self.started: list[int] = []

    def record(self, events: Iterable[Event]) -> None:
        for event in events:
            assert event.id not in self.ends, "an event came after the end"
            if event.token is not None:
                if not self.tokens[event.id]:
                    self.started.append(event.id)
                self.tokens[event.id].append(event.token)
            if event.finish is not None:
                self.ends[event.id] = event.finish

    @rule(
        prompt=st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=12),
        max_tokens=st.integers(1, 9),
        sampling=st.sampled_from(SAMPLINGS),
        poisoned=st.integers(0, 9),
    )
    def arrive(self, prompt: list[int], max_tokens: int, sampling: Sampling, poisoned: int) -> None:
        id_ = len(self.requests)
        if poisoned == 0:
            prompt = [*prompt, POISON]
        request = generation(id_, prompt, max_tokens, sampling, STOP_IDS)
        self.requests[id_] = request
        self.tokens[id_] = []
        if refused := self.scheduler.submit(request):
            self.record([refused])

    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.record(self.scheduler.step())

    @precondition(lambda self: len(self.requests) > len(self.ends))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        open_ = [id_ for id_ in self.requests if id_ not in self.ends]
        event = self.scheduler.cancel(data.draw(st.sampled_from(open_)))
        assert event is not None
        self.record([event])

    @invariant()
    def every_open_request_is_somewhere(self) -> None:
        occupancy = self.scheduler.occupancy
        assert occupancy.prefilling + occupancy.decoding <= self.session.slots
        assert occupancy.waiting + occupancy.prefilling + occupancy.decoding == len(
            self.requests
        ) - len(self.ends)

    @invariant()
    def no_slot_is_spoiled_for_its_next_tenant(self) -> None:
        running = self.scheduler.occupancy.prefilling + self.scheduler.occupancy.decoding
        assert all(slot < running for slot in self.session.spoiled_slots())

    def teardown(self) -> None:
        self.record(run(self.scheduler))
        assert set(self.ends) == set(self.requests)
        assert self.started == sorted(self.started), "somebody was overtaken"
        for id_, request in self.requests.items():
            expected = alone(request)
            if self.ends[id_] in (Finish.CANCELLED, Finish.REFUSED):
                assert self.tokens[id_] == expected[0][: len(self.tokens[id_])]
            else:
                assert (self.tokens[id_], self.ends[id_]) == expected


class BatchingAhead(Batching):
    """The same, where the session chooses and the host is one step behind."""

    ahead = 1


Batching.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBatching = Batching.TestCase
BatchingAhead.TestCase.settings = Batching.TestCase.settings
TestBatchingAhead = BatchingAhead.TestCase
