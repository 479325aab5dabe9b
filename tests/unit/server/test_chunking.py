"""Prefill chunks that fit between decode steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmengine_server.chunking import ALONE_SECONDS, DECODE_STEPS, SMALLEST_CHUNK, Chunking

LONG = 100_000


def settle(chunking: Chunking, cost: Callable[[int], float], size: Callable[[], int]) -> int:
    for _ in range(20):
        chunking.prefilled(size(), cost(size()))
    return size()


def linear(tokens: int) -> float:
    return 0.02 + 0.001 * tokens


def test_nothing_measured_means_the_whole_chunk() -> None:
    assert Chunking(512).size_alone(1000) == 512


def test_a_chunk_comes_to_take_as_long_as_two_decode_steps() -> None:
    chunking = Chunking(512)
    chunking.prefilled(512, linear(512))
    for _ in range(5):
        chunking.decoded(0.04)
    size = settle(chunking, linear, lambda: chunking.size_between_steps(LONG, 0))
    assert linear(size) == pytest.approx(DECODE_STEPS * 0.04, rel=0.05)


def test_alone_a_chunk_takes_a_second_at_most() -> None:
    chunking = Chunking(4096)
    size = settle(chunking, linear, lambda: chunking.size_alone(LONG))
    assert linear(size) == pytest.approx(ALONE_SECONDS, rel=0.05)


def test_a_fast_engine_takes_the_whole_chunk() -> None:
    chunking = Chunking(512)
    chunking.decoded(0.04)
    size = settle(chunking, lambda n: n * 1e-5, lambda: chunking.size_between_steps(LONG, 0))
    assert size == 512


def test_a_slow_engine_still_makes_progress() -> None:
    chunking = Chunking(512)
    chunking.decoded(0.01)
    size = settle(chunking, lambda _: 5.0, lambda: chunking.size_between_steps(LONG, 0))
    assert size == SMALLEST_CHUNK


def test_one_step_that_the_machine_held_up_lets_no_huge_chunk_in() -> None:
    chunking = Chunking(512)
    chunking.prefilled(512, 0.512)
    for seconds in (0.01, 0.01, 3.0, 0.01):
        chunking.decoded(seconds)
    assert chunking.size_between_steps(LONG, 0) == 20


def test_the_short_rest_of_a_prompt_teaches_nothing() -> None:
    chunking = Chunking(512)
    chunking.prefilled(256, 0.256)
    before = chunking.size_alone(LONG)
    chunking.prefilled(2, 0.5)
    assert chunking.size_alone(LONG) == before


def test_further_prompts_share_the_time_between_two_steps() -> None:
    chunking = Chunking(512)
    chunking.prefilled(100, 0.1)
    for _ in range(5):
        chunking.decoded(0.05)
    assert [chunking.size_between_steps(LONG, t) for t in (0, 0.03, 0.08, 0.09, 1.0)] == [
        100,
        70,
        20,
        0,
        0,
    ]


def test_before_the_first_step_was_measured_it_is_taken() -> None:
    chunking = Chunking(512)
    chunking.prefilled(100, 0.1)
    assert chunking.size_between_steps(LONG, 0.1) == 0


@pytest.mark.parametrize(("rest", "size"), [(90, 90), (116, 116), (117, 100), (200, 100)])
def test_no_few_tokens_are_left_for_a_chunk_of_their_own(rest: int, size: int) -> None:
    chunking = Chunking(512)
    chunking.prefilled(100, 0.1)
    chunking.decoded(0.05)
    assert chunking.size_between_steps(rest, 0) == size


def test_a_chunk_is_never_over_max_batch_tokens() -> None:
    chunking = Chunking(64)
    chunking.prefilled(64, 0.001)
    assert chunking.size_alone(70) == 64
