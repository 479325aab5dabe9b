"""A session on a device gives each sequence what it would get alone, and what the CPU gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from llmengine.artifact import Cache, Limits
from llmengine_builder.speed import measure
from llmengine_server.generation import Event, Finish, Generation
from llmengine_server.sampling import Sampling
from llmengine_server.scheduler import Scheduler
from llmengine_server.session import Choice, EngineError, OutOfMemoryError, Session
from llmengine_server.session.onnxruntime import OnnxRuntimeSession
from llmengine_server.session.tensorrt import TensorRtSession, chunk_sizes, step_sizes
from tests.models.tiny import TinyModel
from tests.unit.graph.engines import open_model
from tests.unit.tensorrt.fake_driver import FakeDriver
from tests.unit.tensorrt.fake_engine import FakeEngine, fake_engine

LIMITS = Limits(max_batch_size=5, max_sequence_length=1000, max_batch_tokens=300)
CACHE = Cache(
    layout="plain",
    dtype="float32",
    layers=2,
    kv_heads=2,
    head_dim=16,
    buckets=(1024,),
    batches=(1, 4, 5),
    query_heads=4,
)
SHORT = [5, 77, 131, 9, 250]
OTHER = [18, 44, 3, 201, 60, 12, 99]
LONG = np.random.default_rng(1).integers(0, 293, 600).tolist()
# Batches, chunks and padding add up float32 in another order.
CLOSE = 2e-4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = TinyModel(family="qwen2", max_position_embeddings=1024)
    return tiny.write(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def engine(model: Path, driver: FakeDriver) -> FakeEngine:
    return fake_engine(model, driver, CACHE, LIMITS)


@pytest.fixture
def session(driver: FakeDriver, engine: FakeEngine) -> Iterator[TensorRtSession]:
    session = TensorRtSession(
        driver, engine, cache=CACHE, limits=LIMITS, vocabulary=engine.vocabulary
    )
    engine.runs.clear()
    yield session
    session.close()


Alone = Callable[[Sequence[int]], NDArray[np.float32]]


@pytest.fixture(scope="module")
def on_cpu(model: Path) -> OnnxRuntimeSession:
    return open_model(model, LIMITS)


@pytest.fixture
def alone(on_cpu: OnnxRuntimeSession) -> Alone:
    """Logits after a sequence, by the CPU's session."""
    return lambda tokens: prefill(on_cpu, 0, tokens)


def prefill(
    session: Session, slot: int, tokens: Sequence[int], chunk: int = 300
) -> NDArray[np.float32]:
    for past in range(0, len(tokens), chunk):
        row = session.prefill(slot, tokens[past : past + chunk], past)
        assert row.finite()
    return row.full()


def assert_close(mine: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(mine, theirs, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("chunk", [7, 64, 250, 300])
def test_a_prompt_in_chunks_equals_the_whole(
    session: TensorRtSession, alone: Alone, chunk: int
) -> None:
    assert_close(prefill(session, 3, LONG, chunk), alone(LONG))


def test_decoding_equals_prefilling(session: TensorRtSession, alone: Alone) -> None:
    prefill(session, 0, LONG[:60])
    for past in range(60, 300):
        (row,) = session.decode(LONG[past : past + 1], [past])
    assert row.argmax() == int(row.full().argmax())
    assert_close(row.full(), alone(LONG[:300]))


def test_sequences_of_uneven_lengths_do_not_see_each_other(
    session: TensorRtSession, alone: Alone
) -> None:
    prompts = [SHORT, LONG[:100], OTHER]
    for slot, prompt in enumerate(prompts):
        prefill(session, slot, prompt)
    for step in range(4):
        rows = session.decode([step] * 3, [len(prompt) + step for prompt in prompts])
    for prompt, row in zip(prompts, rows, strict=True):
        assert_close(row.full(), alone([*prompt, 0, 1, 2, 3]))


def test_a_step_is_as_large_as_its_slots_need(session: TensorRtSession, engine: FakeEngine) -> None:
    for slot in range(5):
        prefill(session, slot, [*SHORT, slot])
    engine.runs.clear()
    for count in (1, 2, 4, 5):
        session.decode([7] * count, [6] * count)
    assert engine.runs == [(1, 1), (4, 1), (4, 1), (5, 1)]


def test_a_prompt_is_padded_to_one_of_a_few_sizes(
    session: TensorRtSession, engine: FakeEngine, alone: Alone
) -> None:
    for count, size in ((1, 16), (17, 32), (256, 256), (257, 300)):
        assert_close(prefill(session, 2, LONG[:count]), alone(LONG[:count]))
        assert engine.runs.pop() == (1, size)


def test_a_step_of_others_leaves_the_prompt_that_is_coming_in_alone(
    session: TensorRtSession, alone: Alone
) -> None:
    """Slot 1 is in the step's batch of 4, as an idle one."""
    prefill(session, 0, SHORT)
    prefill(session, 2, OTHER)
    prefill(session, 1, SHORT)
    session.decode([1, 2, 3], [5, 5, 7])
    session.move(2, 1, 8)
    last = session.prefill(2, LONG[:40], 0)
    for past in range(40, 200, 40):
        session.decode([4, 5], [6 + (past - 40) // 40, 8 + (past - 40) // 40])
        last = session.prefill(2, LONG[past : past + 40], past)
    assert_close(last.full(), alone(LONG[:200]))


def test_a_moved_sequence_goes_on_as_if_it_had_stayed(
    session: TensorRtSession, alone: Alone
) -> None:
    for slot, prompt in enumerate((LONG[:90], OTHER, SHORT)):
        prefill(session, slot, prompt)
    session.decode([1, 2, 3], [90, len(OTHER), len(SHORT)])
    session.move(2, 0, len(SHORT) + 1)
    rows = session.decode([4, 5], [len(SHORT) + 1, len(OTHER) + 1])
    assert_close(rows[0].full(), alone([*SHORT, 3, 4]))
    rows = session.decode([4, 5], [len(SHORT) + 2, len(OTHER) + 2])
    assert_close(rows[1].full(), alone([*OTHER, 2, 5, 5]))


def test_a_shorter_sequence_in_the_slot_of_a_longer_one_does_not_see_it(
    session: TensorRtSession, alone: Alone
) -> None:
    prefill(session, 0, SHORT)
    prefill(session, 1, LONG)
    session.decode([1, 1], [len(SHORT), len(LONG)])
    session.decode([2], [len(SHORT) + 1])
    prefill(session, 1, LONG[:80])
    rows = session.decode([3, 4], [len(SHORT) + 2, 80])
    assert_close(rows[0].full(), alone([*SHORT, 1, 2, 3]))
    rows = session.decode([3, 4], [len(SHORT) + 3, 81])
    assert_close(rows[1].full(), alone([*LONG[:80], 4, 4]))


def test_a_row_that_is_not_finite_is_told_and_never_kept(
    session: TensorRtSession, driver: FakeDriver, engine: FakeEngine, alone: Alone
) -> None:
    prefill(session, 0, SHORT)
    prefill(session, 1, OTHER)
    engine.overflow = 1
    rows = session.decode([1, 2], [len(SHORT), len(OTHER)])
    assert [row.finite() for row in rows] == [True, False]
    everything = driver.view(session.arena.address, np.float32, 2 * session.arena.layer_stride)
    assert np.isfinite(everything).all()
    rows = session.decode([3, 4], [len(SHORT) + 1, len(OTHER) + 1])
    assert [row.finite() for row in rows] == [True, True]
    # Whoever comes next into the slot is none the worse for it, zeroed or not.
    assert_close(prefill(session, 1, SHORT), alone(SHORT))


def test_a_prompt_whose_rows_are_not_finite_is_told(
    session: TensorRtSession, engine: FakeEngine
) -> None:
    engine.overflow = 0
    assert not session.prefill(0, SHORT, 0).finite()
    assert session.prefill(0, SHORT, 0).finite()


def test_a_zeroed_slot_is_as_new(session: TensorRtSession, alone: Alone) -> None:
    prefill(session, 0, LONG[:90])
    session.zero(0)
    with pytest.raises(ValueError, match="slot 0 has 0 rows, not 90"):
        session.decode([1], [90])
    assert_close(prefill(session, 0, SHORT), alone(SHORT))


def test_logits_are_gone_when_another_step_was_started(session: TensorRtSession) -> None:
    row = session.prefill(0, SHORT, 0)
    kept = row.full()
    session.decode([1], [len(SHORT)])
    with pytest.raises(RuntimeError, match="these logits are gone"):
        row.full()
    assert kept.shape == (293,)
    assert row.finite()


def test_the_host_is_never_more_than_two_steps_ahead(session: TensorRtSession) -> None:
    started = [session.start_prefill(0, SHORT, 0, Choice())]
    started += [session.start_decode(None, [len(SHORT) + i]) for i in range(2)]
    with pytest.raises(RuntimeError, match="collect the oldest first"):
        session.start_decode(None, [len(SHORT) + 2])
    for step in started:
        step.collect()
    session.start_decode(None, [len(SHORT) + 2]).collect()


def test_a_slot_without_a_token_of_its_own_cannot_go_on(session: TensorRtSession) -> None:
    with pytest.raises(ValueError, match="needs a prompt first"):
        session.start_decode(None, [0])


Ask = Callable[[TensorRtSession], object]


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        pytest.param(lambda s: s.prefill(0, [], 0), "1 to 300 tokens, and not 0", id="no chunk"),
        pytest.param(lambda s: s.prefill(0, [1] * 301, 0), "and not 301", id="a long chunk"),
        pytest.param(
            lambda s: s.decode([1], [1000]),
            "would have 1001 tokens, and the engine takes 1000",
            id="a token beyond the limit",
        ),
        pytest.param(lambda s: s.decode([], []), "1 to 5 tokens", id="a step of nothing"),
        pytest.param(lambda s: s.decode([1] * 6, [0] * 6), "1 to 5 tokens", id="too many slots"),
        pytest.param(lambda s: s.decode([1, 2], [0]), "not 2 and 1", id="a past too few"),
        pytest.param(lambda s: s.prefill(0, [293], 0), "not within 0 to 292", id="a token too far"),
        pytest.param(lambda s: s.prefill(5, [1], 0), "no slot 5", id="no such slot"),
        pytest.param(lambda s: s.decode([1], [5]), "slot 0 has 0 rows, not 5", id="no such rows"),
    ],
)
def test_what_a_session_cannot_do_is_refused(
    session: TensorRtSession, ask: Ask, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        ask(session)


SAMPLINGS = (
    Sampling(),
    Sampling(temperature=0.9, seed=4),
    Sampling(temperature=0.7, top_k=9, seed=5),
    Sampling(temperature=1.1, top_p=0.8, seed=6),
    Sampling(top_k=40, top_p=0.95, seed=7, min_tokens=6),
    Sampling(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.3),
    Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.2, seed=9),
    Sampling(min_tokens=9),
)


def requests() -> list[Generation]:
    lengths = (3, 70, 250, 17, 5, 130, 33, 64, 9, 12)
    return [
        Generation(
            id=id_,
            prompt=tuple(LONG[id_ : id_ + length]),
            max_tokens=12 + 3 * (id_ % 4),
            sampling=SAMPLINGS[id_ % len(SAMPLINGS)],
            stop_ids=frozenset({1, 2, 88}),
        )
        for id_, length in enumerate(lengths)
    ]


def served(session: Session) -> dict[int, list[Event]]:
    """What each request gets, all of them at once."""
    scheduler = Scheduler(session, clock=iter(np.arange(0, 1e4, 1e-3)).__next__)
    events: list[Event] = []
    for request in requests():
        assert scheduler.submit(request) is None
    while not scheduler.idle:
        events += scheduler.step()
    return {request.id: [e for e in events if e.id == request.id] for request in requests()}


def test_requests_get_from_the_device_what_they_get_from_the_cpu(
    session: TensorRtSession, on_cpu: OnnxRuntimeSession
) -> None:
    """Sampling with its seeds, penalties and stops included, whoever moves meanwhile."""
    assert served(session) == served(on_cpu)


def test_a_step_without_memory_costs_one_request_and_no_other(
    session: TensorRtSession, driver: FakeDriver, on_cpu: OnnxRuntimeSession
) -> None:
    scheduler = Scheduler(session, clock=iter(np.arange(0, 1e4, 1e-3)).__next__)
    events: list[Event] = []
    for request in requests()[:5]:
        scheduler.submit(request)
    while scheduler.occupancy.decoding < 4:
        events += scheduler.step()
    driver.full = 1
    while not scheduler.idle:
        events += scheduler.step()
    refused = [e.id for e in events if e.finish is Finish.REFUSED]
    assert len(refused) == 1
    expected = served(on_cpu)
    for request in requests()[:5]:
        if request.id not in refused:
            assert [e for e in events if e.id == request.id] == expected[request.id]


def test_a_steady_step_asks_for_nothing_but_its_graph(
    session: TensorRtSession, driver: FakeDriver
) -> None:
    session.start_prefill(0, SHORT, 0, Choice()).collect()
    session.start_decode(None, [5]).collect()
    driver.launched.clear()
    before = driver.asked
    session.start_decode(None, [6]).collect()
    # The engine, two kernels and the answer.
    assert driver.asked - before == 4
    assert driver.launched == {"survey": 1, "choose": 1}


def test_a_device_that_is_too_small_is_found_out_before_anything_is_served(model: Path) -> None:
    driver = FakeDriver(total=1 << 20)
    engine = fake_engine(model, driver, CACHE, LIMITS)
    with pytest.raises(OutOfMemoryError):
        TensorRtSession(driver, engine, cache=CACHE, limits=LIMITS, vocabulary=293)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param({"query_heads": None}, "for None query heads", id="heads that nobody knows"),
        pytest.param({"dtype": "float8"}, "of float8", id="another dtype"),
        pytest.param({"batches": (1, 4)}, "is to serve 5", id="too few slots"),
    ],
)
def test_a_cache_that_it_cannot_hold_is_refused(
    driver: FakeDriver, engine: FakeEngine, change: dict[str, object], sentence: str
) -> None:
    cache = CACHE.model_copy(update=change)
    with pytest.raises(EngineError, match=sentence):
        TensorRtSession(driver, engine, cache=cache, limits=LIMITS, vocabulary=293)


def test_sizes_of_chunks_and_steps() -> None:
    assert chunk_sizes(300) == (16, 32, 64, 128, 256, 300)
    assert chunk_sizes(16) == (16,)
    assert step_sizes(CACHE, 2) == (1, 4)
    assert step_sizes(CACHE, 1) == (1,)


def test_its_steps_are_measured_with_every_slot_at_two_lengths(session: TensorRtSession) -> None:
    speed = measure(lambda: session, CACHE.buckets)
    assert speed.slots == LIMITS.max_batch_size
    # Attention reads the rows that count, of a cache that has one length.
    assert [step.length for step in speed.steps] == [2, 257]
    assert all(step.seconds > 0 for step in speed.steps)
