"""What a seed, a temperature and the filters make of logits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmengine_server.sampling import (
    Chooser,
    InvalidRequestError,
    Sampling,
    draw,
    penalise,
    uniform,
)
from tests.unit.server.fake_session import FakeRow

# Upper 0.1 % point of chi-square by degrees of freedom.
CRITICAL = {2: 13.82, 3: 16.27, 4: 18.47, 7: 24.32, 9: 27.88}
DRAWS = 20_000


def logits_of(probabilities: list[float]) -> NDArray[np.float32]:
    return np.array(np.log(probabilities), dtype=np.float32)


def chi_square(expected: dict[int, float], sampling: Sampling, logits: Any) -> float:
    counts = Counter(draw(logits, sampling, uniform(7, position)) for position in range(DRAWS))
    assert set(counts) <= set(expected), "a token was drawn that the filters exclude"
    return sum((counts[t] - DRAWS * p) ** 2 / (DRAWS * p) for t, p in expected.items())


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        pytest.param(
            Sampling(temperature=1.0),
            {0: 0.1, 1: 0.4, 2: 0.3, 3: 0.05, 4: 0.15},
            id="temperature 1 leaves the distribution alone",
        ),
        pytest.param(
            Sampling(temperature=0.5),
            {0: 0.01, 1: 0.16, 2: 0.09, 3: 0.0025, 4: 0.0225},
            id="temperature one half squares the probabilities",
        ),
        pytest.param(
            Sampling(top_k=3), {1: 0.4, 2: 0.3, 4: 0.15}, id="top-k keeps the likeliest k"
        ),
        pytest.param(
            Sampling(top_p=0.8),
            {1: 0.4, 2: 0.3, 4: 0.15},
            id="top-p keeps the fewest tokens that reach it",
        ),
        pytest.param(
            Sampling(top_k=4, top_p=0.7),
            {1: 0.4, 2: 0.3},
            id="top-p takes its share of what top-k left",
        ),
        pytest.param(
            Sampling(top_k=3, top_p=0.0),
            {1: 0.4, 2: 0.3, 4: 0.15},
            id="top-p 0 beside a top-k is no filter, as in TensorRT-LLM",
        ),
    ],
)
def test_tokens_are_drawn_in_proportion(sampling: Sampling, expected: dict[int, float]) -> None:
    total = sum(expected.values())
    shares = {token: p / total for token, p in expected.items()}
    logits = logits_of([0.1, 0.4, 0.3, 0.05, 0.15])
    degrees = max(len(shares) - 1, 2)
    assert chi_square(shares, sampling, logits) < CRITICAL[degrees]


def test_a_wide_nucleus_needs_more_than_the_shortlist() -> None:
    logits = np.zeros(5000, dtype=np.float32)
    drawn = {draw(logits, Sampling(top_p=0.9), uniform(1, position)) for position in range(20_000)}
    # All are equal, so the lower ids are taken first; 90 % of them are 4500.
    assert max(drawn) < 4500
    assert len(drawn) > 4000


@example([-5.7e-30, 0.0], 1.0, 0, 0.25, 0.0)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40),
    st.floats(0.05, 5),
    st.integers(0, 45),
    st.floats(0, 1),
    st.floats(0, 1, exclude_max=True),
)
def test_a_drawn_token_passes_the_filters(
    values: list[float], temperature: float, top_k: int, top_p: float, number: float
) -> None:
    logits = np.array(values, dtype=np.float32)
    token = draw(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p), number)
    larger = int((logits > logits[token]).sum())
    if 0 < top_k < len(values):
        assert larger < top_k
    if 0 < top_p < 1:
        weights = np.exp((logits - logits.max()).astype(np.float64) / temperature)
        kept = np.sort(weights)[::-1][: top_k or None]
        # Logits that differ by less than their weights can tell are equals.
        heavier = int((weights > weights[token]).sum())
        assert kept[:heavier].sum() <= top_p * kept.sum() + 1e-9


def test_uniform_numbers_fill_the_unit_interval_and_depend_on_seed_and_position() -> None:
    numbers = [uniform(seed, position) for seed in range(100) for position in range(100)]
    counts = np.histogram(numbers, bins=10, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < CRITICAL[9]
    assert len(set(numbers)) == len(numbers)
    assert uniform(3, 4) == uniform(3, 4)


def test_a_filtered_out_token_is_never_drawn_at_the_end_of_the_interval() -> None:
    logits = np.array([0.0, 0.0, -np.inf], dtype=np.float32)
    assert draw(logits, Sampling(temperature=1.0), 1.0) == 1


@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(Sampling(), id="nothing said"),
        pytest.param(Sampling(temperature=0.0, top_p=0.9), id="temperature 0"),
        pytest.param(Sampling(temperature=2.0, top_k=1), id="top-k 1"),
        pytest.param(Sampling(top_k=0, top_p=0.0), id="top-p 0 without top-k"),
        pytest.param(Sampling(seed=5), id="only a seed"),
    ],
)
def test_the_largest_logit_wins_when_greedy(sampling: Sampling) -> None:
    chooser = Chooser(sampling, [1, 2])
    row = FakeRow(np.array([0.0, 1.0, 3.0, 3.0], dtype=np.float32))
    assert [chooser.choose(row) for _ in range(20)] == [2] * 20


def test_a_temperature_alone_samples() -> None:
    chooser = Chooser(Sampling(temperature=1.0, seed=1), [0])
    row = FakeRow(np.zeros(8, dtype=np.float32))
    counts = Counter(chooser.choose(row) for _ in range(8000))
    assert sum((counts[t] - 1000) ** 2 / 1000 for t in range(8)) < CRITICAL[7]


def test_the_same_seed_repeats_and_another_does_not() -> None:
    row = FakeRow(np.zeros(100, dtype=np.float32))

    def tokens(seed: int) -> list[int]:
        chooser = Chooser(Sampling(temperature=1.0, seed=seed), [1, 2, 3])
        return [chooser.choose(row) for _ in range(20)]

    assert tokens(11) == tokens(11)
    assert tokens(11) != tokens(12)


def test_the_repetition_penalty_moves_logits_towards_unlikely_on_both_sides_of_zero() -> None:
    logits = np.array([2.0, -2.0, 2.0], dtype=np.float32)
    penalise(logits, Counter([0, 0, 1]), Sampling(repetition_penalty=2.0))
    assert logits.tolist() == [1.0, -4.0, 2.0]


def test_presence_counts_once_and_frequency_each_time() -> None:
    logits = np.zeros(3, dtype=np.float32)
    penalise(logits, Counter([0, 0, 0, 1]), Sampling(presence_penalty=0.5, frequency_penalty=0.25))
    assert logits.tolist() == [-1.25, -0.75, 0.0]


def test_penalties_see_the_prompt_and_what_was_generated() -> None:
    row = FakeRow(np.array([3.0, 2.5, 2.0, 0.0], dtype=np.float32))
    chooser = Chooser(Sampling(presence_penalty=1.2), [0])
    assert [chooser.choose(row) for _ in range(3)] == [1, 2, 0]


def test_no_stop_token_comes_before_min_tokens() -> None:
    row = FakeRow(np.array([9.0, 8.0, 1.0], dtype=np.float32))
    chooser = Chooser(Sampling(min_tokens=3), [5], stop_ids={0, 1})
    assert [chooser.choose(row) for _ in range(4)] == [2, 2, 2, 0]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"temperature": -0.1}, "temperature must be 0 (greedy) or a positive number (got -0.1)"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"temperature": float("inf")}, "temperature must be 0"),
        ({"top_k": -1}, "top_k must be 0 (every token) or a positive number (got -1)"),
        ({"top_p": 1.5}, "top_p must be between 0 and 1; 1 keeps every token (got 1.5)"),
        ({"top_p": float("nan")}, "top_p must be between 0 and 1"),
        ({"min_tokens": -2}, "min_tokens must be 0 or a positive number (got -2)"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be a positive number"),
        ({"presence_penalty": float("inf")}, "presence_penalty must be a finite number"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty must be a finite number"),
        ({"seed": -1}, "seed must be between 0 and 18446744073709551615 (got -1)"),
    ],
)
def test_a_bad_value_is_refused_with_a_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        Sampling(**values)
    assert sentence in str(refused.value)
