"""How much of a GPU an engine takes to serve, and what to ask for where that is too much."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from llmengine.artifact import Cache, Limits
from llmengine.quantity import GIB, MIB, readable
from llmengine_server.session import EngineError
from llmengine_server.session.cuda_arena import arena_bytes
from llmengine_server.session.cuda_attention import heads_of

# Of the GPU: the rest is for what nobody counts, and for whoever looks after it.
USABLE = 0.92
# The CUDA context, loaded kernels, execution contexts and captured graphs.
_OVERHEAD = GIB
_COUNT_BYTES = 4


@dataclass(frozen=True)
class Needs:
    """Bytes on the GPU: of the engine with its weights, of what its runs need while they run, of
    one row of logits; and the cache and limits that the rest follows from."""

    engine: int
    scratch: int
    cache: Cache
    limits: Limits
    vocabulary: int

    @property
    def slots(self) -> int:
        """Slots that there is memory for: steps have one of a few sizes."""
        wanted = self.limits.max_batch_size
        return next((size for size in self.cache.batches if size >= wanted), wanted)

    @property
    def arena(self) -> int:
        return arena_bytes(self.cache, self.slots)

    @property
    def buffers(self) -> int:
        """Logits, counts of tokens, bans, and parts of sequences that are attended at once."""
        return (
            self.slots * self.vocabulary * (4 + _COUNT_BYTES)
            + self.slots * self.vocabulary // 8
            + heads_of(self.cache).partial_bytes(self.slots)
            + 16 * MIB
        )

    @property
    def total(self) -> int:
        return self.engine + self.scratch + self.arena + self.buffers + _OVERHEAD

    @property
    def gpu(self) -> int:
        """Memory of the smallest GPU that `check_memory` takes."""
        return math.ceil(self.total / USABLE)


def check_memory(needs: Needs, device: str, memory: int) -> None:
    """Raise EngineError unless an engine fits a GPU of `memory` bytes, with what would fit."""
    usable = int(memory * USABLE)
    if needs.total <= usable:
        return
    limits = needs.limits
    slots = _largest(limits.max_batch_size, lambda n: _with_slots(needs, n).total <= usable)
    length = _largest(limits.max_sequence_length, lambda n: _with_length(needs, n).total <= usable)
    advice = [
        *([f"spec.engine.maxBatchSize to {slots} or less"] if slots else []),
        *([f"spec.engine.maxSequenceLength to {length} or less"] if length else []),
    ]
    raise EngineError(
        f"the engine needs {readable(needs.total)} of GPU memory (weights {readable(needs.engine)},"
        f" KV cache {readable(needs.arena)} for {limits.max_batch_size} slots of"
        f" {limits.max_sequence_length} tokens, scratch {readable(needs.scratch)}, other"
        f" {readable(needs.buffers + _OVERHEAD)}), but {USABLE:.0%} of {device} are"
        f" {readable(usable)}: "
        + (f"set {', or '.join(advice)}" if advice else "take a GPU with more memory")
    )


def _largest(asked: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `asked` that fits; 0 when none does. Larger ones fit less."""
    low, high = 0, asked
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _with_slots(needs: Needs, slots: int) -> Needs:
    # A new build would make steps of this size.
    batches = tuple(size for size in needs.cache.batches if size < slots)
    return replace(
        needs,
        cache=needs.cache.model_copy(update={"batches": (*batches, slots)}),
        limits=needs.limits.model_copy(update={"max_batch_size": slots}),
    )


def _with_length(needs: Needs, length: int) -> Needs:
    return replace(
        needs,
        cache=needs.cache.model_copy(update={"buckets": (-(-length // 64) * 64,)}),
        limits=needs.limits.model_copy(update={"max_sequence_length": length}),
    )
