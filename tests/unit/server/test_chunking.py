"""Prefill chunks that fit between decode steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmengine_server.chunking import ALONE_SECONDS, DECODE_STEPS, SMALLEST_CHUNK, Chunking


def settle(
    chunking: Chunking, cost: Callable[[int], float], *, others_decode: bool, rounds: int = 20
) -> int:
    for _ in range(rounds):
        size = chunking.size(others_decode=others_decode)
        chunking.prefilled(size, cost(size))
    return chunking.size(others_decode=others_decode)


def linear(tokens: int) -> float:
    return 0.02 + 0.001 * tokens


def test_nothing_measured_means_the_whole_chunk() -> None:
    assert Chunking(512).size(others_decode=False) == 512


def test_a_chunk_comes_to_take_as_long_as_two_decode_steps() -> None:
    chunking = Chunking(512)
    chunking.prefilled(512, linear(512))
    for _ in range(5):
        chunking.decoded(0.04)
    size = settle(chunking, linear, others_decode=True)
    assert linear(size) == pytest.approx(DECODE_STEPS * 0.04, rel=0.05)


def test_alone_a_chunk_takes_a_second_at_most() -> None:
    chunking = Chunking(4096)
    size = settle(chunking, linear, others_decode=False)
    assert linear(size) == pytest.approx(ALONE_SECONDS, rel=0.05)


def test_a_fast_engine_takes_the_whole_chunk() -> None:
    chunking = Chunking(512)
    chunking.decoded(0.04)
    assert settle(chunking, lambda tokens: tokens * 1e-5, others_decode=True) == 512


def test_a_slow_engine_still_makes_progress() -> None:
    chunking = Chunking(512)
    chunking.decoded(0.01)
    assert settle(chunking, lambda _: 5.0, others_decode=True) == SMALLEST_CHUNK


def test_one_step_that_the_machine_held_up_lets_no_huge_chunk_in() -> None:
    chunking = Chunking(512)
    chunking.prefilled(512, 0.512)
    for seconds in (0.01, 0.01, 3.0, 0.01):
        chunking.decoded(seconds)
    assert chunking.size(others_decode=True) == 20


def test_the_short_rest_of_a_prompt_teaches_nothing() -> None:
    chunking = Chunking(512)
    chunking.prefilled(256, 0.256)
    before = chunking.size(others_decode=False)
    chunking.prefilled(2, 0.5)
    assert chunking.size(others_decode=False) == before
