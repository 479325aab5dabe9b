"""A session gives each sequence what it would get alone, whoever else is, or was, in the cache."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from llmengine.artifact import Limits
from llmengine_server.session.onnxruntime import OnnxRuntimeSession
from tests.models.tiny import TinyModel
from tests.unit.graph.engines import open_model

LIMITS = Limits(max_batch_size=3, max_sequence_length=96, max_batch_tokens=40)
BUCKETS = (16, 32, 96)
SHORT = [5, 77, 131, 9, 250]
OTHER = [18, 44, 3, 201, 60, 12, 99]
LONG = np.random.default_rng(1).integers(0, 293, 70).tolist()
# Batches and chunks add up float32 in another order.
CLOSE = 1e-4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyModel(family="qwen3").write(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def start(model: Path) -> Callable[[], OnnxRuntimeSession]:
    return lambda: open_model(model, LIMITS, BUCKETS)


@pytest.fixture
def session(start: Callable[[], OnnxRuntimeSession]) -> OnnxRuntimeSession:
    return start()


def prefill(
    session: OnnxRuntimeSession, slot: int, tokens: Sequence[int], chunk: int = 40
) -> NDArray[np.float32]:
    for past in range(0, len(tokens), chunk):
        row = session.prefill(slot, tokens[past : past + chunk], past)
    return row.full()


def assert_close(mine: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    assert np.isfinite(mine).all()
    np.testing.assert_allclose(mine, theirs, rtol=CLOSE, atol=CLOSE)


@pytest.fixture
def alone(
    start: Callable[[], OnnxRuntimeSession],
) -> Callable[[Sequence[int]], NDArray[np.float32]]:
    """Logits after the last token of a sequence in a session of its own."""

    def run(tokens: Sequence[int]) -> NDArray[np.float32]:
        return prefill(start(), 0, tokens)

    return run


Alone = Callable[[Sequence[int]], NDArray[np.float32]]


@pytest.mark.parametrize("chunk", [1, 7, 39, 40])
def test_a_prompt_in_chunks_equals_the_whole(
    session: OnnxRuntimeSession, alone: Alone, chunk: int
) -> None:
    assert_close(prefill(session, 1, LONG, chunk), alone(LONG))


def test_decoding_equals_prefilling(session: OnnxRuntimeSession, alone: Alone) -> None:
    prefill(session, 0, LONG[:3])
    for past in range(3, len(LONG)):
        (row,) = session.decode(LONG[past : past + 1], [past])
        assert row.argmax() == int(row.full().argmax())
    assert_close(row.full(), alone(LONG))


def test_sequences_of_uneven_lengths_do_not_see_each_other(
    session: OnnxRuntimeSession, alone: Alone
) -> None:
    prompts = [SHORT, LONG[:60], OTHER]
    for slot, prompt in enumerate(prompts):
        prefill(session, slot, prompt)
    for step in range(4):
        rows = session.decode([step] * 3, [len(prompt) + step for prompt in prompts])
    for prompt, row in zip(prompts, rows, strict=True):
        assert_close(row.full(), alone([*prompt, 0, 1, 2, 3]))


def test_a_slot_used_again_after_a_longer_sequence_is_as_new(
    session: OnnxRuntimeSession, alone: Alone
) -> None:
    prefill(session, 0, LONG)
    session.decode([1], [len(LONG)])
    assert_close(prefill(session, 0, SHORT), alone(SHORT))
    (row,) = session.decode([9], [len(SHORT)])
    assert_close(row.full(), alone([*SHORT, 9]))


def test_a_prompt_fills_a_slot_while_others_generate(
    session: OnnxRuntimeSession, alone: Alone
) -> None:
    prefill(session, 0, SHORT)
    for i, past in enumerate(range(0, len(LONG), 20)):
        last = session.prefill(1, LONG[past : past + 20], past).full()
        (row,) = session.decode([i], [len(SHORT) + i])
    assert_close(last, alone(LONG))
    assert_close(row.full(), alone([*SHORT, 0, 1, 2, 3]))


def test_a_moved_sequence_goes_on_as_if_it_had_stayed(
    session: OnnxRuntimeSession, alone: Alone
) -> None:
    for slot, prompt in enumerate((LONG, OTHER, SHORT)):
        prefill(session, slot, prompt)
    session.decode([1, 2, 3], [len(LONG), len(OTHER), len(SHORT)])
    session.move(2, 0, len(SHORT) + 1)
    rows = session.decode([4, 5], [len(SHORT) + 1, len(OTHER) + 1])
    assert_close(rows[0].full(), alone([*SHORT, 3, 4]))
    assert_close(rows[1].full(), alone([*OTHER, 2, 5]))


def test_the_cache_follows_the_longest_live_sequence(session: OnnxRuntimeSession) -> None:
    held = [session.cache.length]
    prefill(session, 0, SHORT)
    prefill(session, 1, LONG)
    held.append(session.cache.length)
    session.decode([1, 1], [len(SHORT), len(LONG)])
    session.decode([1], [len(SHORT) + 1])
    held.append(session.cache.length)
    assert held == [16, 96, 16]


def test_a_cache_that_grows_is_not_held_at_its_old_length_by_the_steps_before(
    session: OnnxRuntimeSession,
) -> None:
    prefill(session, 0, SHORT)
    session.decode(SHORT[:1], [len(SHORT)])
    old = [weakref.ref(rows) for rows in (*session.cache.keys, *session.cache.values)]
    prefill(session, 1, LONG)
    assert session.cache.length == BUCKETS[-1]
    assert not any(rows() is not None for rows in old)


def test_a_sequence_outgrows_every_bucket_up_to_the_limit(
    session: OnnxRuntimeSession, alone: Alone
) -> None:
    tokens = [*LONG, *LONG[:26]]
    prefill(session, 0, tokens[:1])
    for past in range(1, len(tokens)):
        (row,) = session.decode(tokens[past : past + 1], [past])
    assert len(tokens) == session.max_sequence_length
    assert_close(row.full(), alone(tokens))


def test_a_poisoned_slot_spoils_nobody_else_and_is_healed_by_zero(
    session: OnnxRuntimeSession, alone: Alone
) -> None:
    prefill(session, 0, SHORT)
    prefill(session, 1, LONG[:12])
    for rows in (*session.cache.keys, *session.cache.values):
        rows[1, :, 3:] = np.nan
    steps = session.decode([1, 2], [len(SHORT), 12])
    assert [row.finite() for row in steps] == [True, False]
    assert_close(steps[0].full(), alone([*SHORT, 1]))
    session.zero(1)
    assert_close(prefill(session, 1, OTHER), alone(OTHER))
    steps = session.decode([6, 7], [len(SHORT) + 1, len(OTHER)])
    assert_close(steps[1].full(), alone([*OTHER, 7]))


def test_a_poisoned_slot_that_is_idle_reaches_nobody(
    session: OnnxRuntimeSession, alone: Alone
) -> None:
    for rows in (*session.cache.keys, *session.cache.values):
        rows[1:] = np.inf
    prefill(session, 0, SHORT)
    (row,) = session.decode([1], [len(SHORT)])
    assert_close(row.full(), alone([*SHORT, 1]))


def test_logits_of_a_prefill_outlive_later_steps(session: OnnxRuntimeSession) -> None:
    row = session.prefill(0, SHORT, 0)
    before = row.full()
    session.decode([1], [len(SHORT)])
    np.testing.assert_array_equal(row.full(), before)


def test_full_logits_belong_to_the_caller(session: OnnxRuntimeSession) -> None:
    session.prefill(0, SHORT, 0)
    (row,) = session.decode([1], [len(SHORT)])
    kept = row.full()
    copy = kept.copy()
    session.decode([2], [len(SHORT) + 1])
    np.testing.assert_array_equal(kept, copy)
    kept[:] = 0


Ask = Callable[[OnnxRuntimeSession], object]


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        pytest.param(
            lambda s: s.prefill(0, [], 0), "1 to 40 tokens, and not 0", id="an empty chunk"
        ),
        pytest.param(lambda s: s.prefill(0, [1] * 41, 0), "1 to 40 tokens, and not 41", id="chunk"),
        pytest.param(
            lambda s: s.prefill(0, [1] * 40, 60),
            "would have 100 tokens, and the engine takes 96",
            id="a prompt beyond the limit",
        ),
        pytest.param(
            lambda s: s.decode([1], [96]),
            "would have 97 tokens, and the engine takes 96",
            id="a token beyond the limit",
        ),
        pytest.param(lambda s: s.decode([], []), "1 to 3 tokens", id="a step of nothing"),
        pytest.param(lambda s: s.decode([1] * 4, [0] * 4), "1 to 3 tokens", id="too many slots"),
        pytest.param(lambda s: s.decode([1, 2], [0]), "not 2 and 1", id="a past too few"),
        pytest.param(lambda s: s.prefill(0, [293], 0), "not within 0 to 292", id="a token too far"),
        pytest.param(lambda s: s.prefill(0, [-1], 0), "not within 0 to 292", id="a negative token"),
        pytest.param(lambda s: s.prefill(3, [1], 0), "no slot 3", id="no such slot"),
        pytest.param(lambda s: s.decode([1], [5]), "slot 0 has 0 rows, not 5", id="no such rows"),
    ],
)
def test_what_a_session_cannot_do_is_refused(
    session: OnnxRuntimeSession, ask: Ask, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        ask(session)
