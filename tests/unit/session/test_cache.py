"""The cache keeps every row that may be read, whatever the order of operations, and no more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from llmengine.artifact import Cache
from llmengine_server.session.cache import KvCache

SLOTS = 4
SHAPE = Cache(
    layout="plain", dtype="float32", layers=2, kv_heads=2, head_dim=4, buckets=(4, 8, 16, 40)
)
Rows = NDArray[np.float32]


class Packed(RuleBasedStateMachine):
    """Drives a cache as the scheduler does, and remembers each sequence's rows by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = KvCache(SHAPE, SLOTS)
        self.live: list[list[float]] = []
        self.filling: list[float] | None = None
        self.next = 1.0

    def new_rows(self, count: int) -> list[float]:
        rows = [self.next + i for i in range(count)]
        self.next += count
        return rows

    @rule(count=st.integers(1, 9))
    @precondition(lambda self: len(self.live) < SLOTS or self.filling is not None)
    def prefill(self, count: int) -> None:
        past = self.filling or []
        count = min(count, 40 - len(past))
        if count == 0:
            return
        rows, slot = self.new_rows(count), len(self.live)
        self.cache.begin_prefill(slot, len(past), count)
        keys, _ = self.cache.past_of(slot, len(past), count)
        assert keys[0][0, 0, : len(past), 0].tolist() == past
        self.cache.put(slot, len(past), tile(rows), -tile(rows))
        self.filling = past + rows

    @rule()
    @precondition(lambda self: self.filling is not None)
    def start_decoding(self) -> None:
        assert self.filling is not None
        self.live.append(self.filling)
        self.filling = None

    @rule(steps=st.integers(1, 12))
    @precondition(lambda self: self.live)
    def decode(self, steps: int) -> None:
        for _ in range(steps):
            pasts = [len(rows) for rows in self.live]
            if max(pasts) == 40:
                return
            rows = self.new_rows(len(pasts))
            self.cache.begin_decode(pasts)
            stacked = np.stack([tile([row]) for row in rows], axis=1)
            self.cache.append(pasts, stacked, -stacked)
            for sequence, row in zip(self.live, rows, strict=True):
                sequence.append(row)

    @rule(pick=st.integers(0, SLOTS - 1), spoiled=st.booleans())
    @precondition(lambda self: self.live)
    def finish(self, pick: int, spoiled: bool) -> None:
        slot, last = pick % len(self.live), len(self.live) - 1
        if spoiled:
            self.cache.zero(slot)
            assert not self.cache.keys[0][slot].any()
        moved = self.live.pop()
        if slot != last:
            self.cache.move(last, slot, len(moved))
            self.live[slot] = moved
        if self.filling is not None:
            self.cache.move(last + 1, last, len(self.filling))

    @invariant()
    def every_row_is_where_it_belongs(self) -> None:
        sequences = [*self.live, *([self.filling] if self.filling is not None else [])]
        assert self.cache.length >= max(map(len, sequences), default=0)
        for slot, rows in enumerate(sequences):
            for layer in range(SHAPE.layers):
                key, value = self.cache.keys[layer], self.cache.values[layer]
                np.testing.assert_array_equal(key[slot, :, : len(rows)], tile(rows)[layer])
                np.testing.assert_array_equal(value[slot, :, : len(rows)], -tile(rows)[layer])


def tile(rows: list[float]) -> Rows:
    """`[layers, kv_heads, rows, head_dim]`, every number its row's."""
    column = np.array(rows, np.float32)[None, None, :, None]
    return np.broadcast_to(column, (2, 2, len(rows), 4)).copy()


Packed.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestEveryOrderOfOperations = Packed.TestCase


def filled(*lengths: int, let_go: Callable[[], None] = lambda: None) -> KvCache:
    """A cache whose slots have so many rows and have been decoded."""
    cache = KvCache(SHAPE, SLOTS, let_go)
    for slot, length in enumerate(lengths):
        cache.begin_prefill(slot, 0, length - 1)
        cache.put(slot, 0, tile([1.0] * (length - 1)), tile([2.0] * (length - 1)))
    cache.begin_decode([length - 1 for length in lengths])
    return cache


@pytest.mark.parametrize(
    ("rows", "length"),
    [
        pytest.param(4, 4, id="a bucket that is just full"),
        pytest.param(5, 8, id="the next bucket"),
        pytest.param(40, 40, id="the last bucket"),
    ],
)
def test_the_cache_is_held_at_the_shortest_bucket_that_fits(rows: int, length: int) -> None:
    cache = KvCache(SHAPE, SLOTS)
    cache.begin_prefill(0, 0, rows)
    assert cache.length == length


def test_growing_keeps_rows_and_has_whoever_holds_the_memory_let_go_of_it_before() -> None:
    seen: list[int] = []
    cache = filled(4, 3, let_go=lambda: seen.append(cache.keys[0].shape[2]))
    cache.begin_decode([4, 3])
    assert cache.length == 8
    assert seen == [4]
    assert cache.keys[1][0, :, :3].tolist() == tile([1.0] * 3)[1].tolist()
    assert not cache.keys[1][0, :, 4:].any()


def test_the_cache_shrinks_when_its_longest_sequence_ends() -> None:
    cache = filled(3, 30)
    assert cache.length == 40
    cache.begin_decode([3])
    assert cache.length == 8
    assert cache.keys[0][0, 0, :2, 0].tolist() == [1.0, 1.0]


def test_the_cache_does_not_shrink_to_a_length_that_it_would_outgrow_at_once() -> None:
    cache = filled(8, 30)
    cache.begin_decode([8])
    assert cache.length == 16


def test_a_prompt_that_is_being_filled_keeps_its_rows_while_others_decode() -> None:
    cache = filled(3)
    cache.begin_prefill(1, 0, 12)
    cache.put(1, 0, tile([7.0] * 12), tile([8.0] * 12))
    for past in (3, 4):
        cache.begin_decode([past])
    keys, values = cache.past_of(1, 12, 1)
    assert keys[0][0, 0, :12, 0].tolist() == [7.0] * 12
    assert values[0][0, 0, :12, 0].tolist() == [8.0] * 12


def test_a_prompt_reads_no_more_of_the_cache_than_is_worth_it() -> None:
    cache = filled(3, 30)
    cache.begin_prefill(2, 0, 4)
    keys, _ = cache.past_of(2, 4, 4)
    assert keys[0].shape == (1, 2, 4, 4)
    keys, _ = cache.past_of(2, 4, 1)
    assert keys[0].shape == (1, 2, 40, 4)
    assert cache.past_of(2, 0, 9)[0][0].shape == (1, 2, 0, 4)


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda cache: cache.begin_prefill(0, 4, 1), id="prefill"),
        pytest.param(lambda cache: cache.begin_decode([3, 9]), id="decode"),
        pytest.param(lambda cache: cache.move(1, 0, 9), id="move"),
    ],
)
def test_rows_that_a_slot_does_not_have_are_refused(ask) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"slot [01] has 3 rows, not [49]"):
        ask(filled(3, 3))


def test_a_slot_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no slot 4: the session has 4"):
        filled(3).begin_prefill(4, 0, 1)
