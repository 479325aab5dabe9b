"""How long a decode step takes on the device that the engine was built on.

Measured with as many sequences as will run at once, since that is when the last one is waited for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from llmengine.artifact import DecodeStep, Speed
from llmengine_builder.verify import LONGEST_CHUNK
from llmengine_server.session import Session

# Of an engine whose step was compiled for no number of them; more would take more memory than the
# build was given.
MEASURED_SLOTS = 8
# Tokens in the cache for the second of the two measurements; what lies beyond follows from both.
LONGER = 256
_WARM_UP = 2
# The median of these: one step that the machine held up says nothing of the engine.
_STEPS = 9
_TOKEN = 1


def measure(
    open_engine: Callable[[], Session],
    buckets: tuple[int, ...],
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Decode with every slot of a session at the shortest length of its cache, and at a longer one
    where it has one. `clock`: seconds; `buckets`: the lengths, in tokens, ascending.

    A cache that is held at one length only may be read as far as its rows count: then every slot
    has few rows first, and many afterwards.
    """
    session = open_engine()
    try:
        for slot in range(session.slots):
            session.prefill(slot, [_TOKEN], 0)
        past = min(LONGER, session.max_sequence_length - 1)
        by_rows = len(buckets) == 1
        pasts = [past] * session.slots if by_rows else [past] + [1] * (session.slots - 1)
        longer = past + 1 if by_rows else next(bucket for bucket in buckets if bucket > past)
        shortest = 2 if by_rows else buckets[0]
        few = _step_seconds(session, [1] * session.slots, clock)
        steps = [DecodeStep(length=shortest, seconds=few)]
        if longer > shortest:
            for slot, rows in enumerate(pasts):
                _fill(session, slot, rows)
            many = _step_seconds(session, pasts, clock)
            steps.append(DecodeStep(length=longer, seconds=many))
        return Speed(slots=session.slots, steps=tuple(steps))
    finally:
        session.close()


def measured_rows(buckets: tuple[int, ...], max_batch_size: int) -> int:
    """Rows of the cache, over all slots, that measuring takes."""
    longest = next((bucket for bucket in buckets if bucket > LONGER), buckets[-1])
    return min(MEASURED_SLOTS, max_batch_size) * longest


def _fill(session: Session, slot: int, past: int) -> None:
    size = min(session.max_batch_tokens, LONGEST_CHUNK)
    for start in range(0, past, size):
        session.prefill(slot, [_TOKEN] * min(size, past - start), start)


def _step_seconds(session: Session, pasts: Sequence[int], clock: Callable[[], float]) -> float:
    """The same step again and again: the row that it appends is overwritten."""
    tokens = [_TOKEN] * session.slots
    seconds = []
    for _ in range(_WARM_UP + _STEPS):
        started = clock()
        session.decode(tokens, pasts)
        seconds.append(clock() - started)
    return statistics.median(seconds[_WARM_UP:])
