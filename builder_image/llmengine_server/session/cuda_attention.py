"""The kernels of cuda_attention.cu for one model's heads, and what they are told of a cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmengine.artifact import Cache
from llmengine_server.session import EngineError
from llmengine_server.session.cuda import Argument

ELEMENTS = ("float32", "float16", "bfloat16")
THREADS = 128
# Of `attend_step`: more where few blocks have the whole device.
STEP_THREADS = (256, 128)
# Words of 64 bits that a graph's input `cache` has.
TABLE_WORDS = 9
# Word that tells how many rows of a batch count.
LIVE_WORD = 1
# Heads that one block attends with, at most; the same in the kernels.
_HEADS = 8
# Tokens of a block of the tensor cores' kernel.
_TILE = 64
# Blocks that keep the multiprocessors busy; parts of a sequence, at most, the same in the kernels.
_BLOCKS = 256
_STEP_BLOCKS = 128
_MOST_SPLITS = 32
# Heads, in numbers, of which the tensor cores take a decode step.
_STEP_HEADS = (64, 128)
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Heads:
    """Of a model: query heads, key-value heads, numbers of one head, and their dtype."""

    heads: int
    kv_heads: int
    head_dim: int
    dtype: str

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def blocks(self) -> int:
        """Blocks of a row that is not split."""
        each = next(count for count in range(_HEADS, 0, -1) if self.group % count == 0)
        return self.heads // each

    @property
    def steps_by_tensor_cores(self) -> bool:
        """Whether they can take a decode step, where there are any."""
        return self.dtype != "float32" and self.head_dim in _STEP_HEADS

    def splits(self, rows: int, blocks: int = _BLOCKS) -> int:
        """Parts that each of `rows` sequences is attended in, at once, to make so many blocks."""
        return max(1, min(_MOST_SPLITS, blocks // (rows * self.blocks)))

    def partial_bytes(self, rows: int) -> int:
        """What the parts of steps of up to `rows` rows take until they are added up."""
        parts = rows + -(-_BLOCKS // self.blocks)
        return 4 * parts * self.heads * (self.head_dim + 2)

    def arrived_bytes(self, rows: int) -> int:
        """A counter of each block's parts."""
        return 4 * rows * self.blocks


def heads_of(cache: Cache) -> Heads:
    """Those that attend over a cache. Raises EngineError where nobody knows them."""
    if cache.query_heads is None:
        raise EngineError(
            "the engine's cache is for None query heads; TensorRT takes a number that is known:"
            " build it anew"
        )
    return Heads(cache.query_heads, cache.kv_heads, cache.head_dim, cache.dtype)


@dataclass(frozen=True)
class Tensors:
    """Addresses of a layer's inputs and output, in the order of the kernels' arguments."""

    heads: int
    cosine: int
    sine: int
    past_lens: int
    new_lens: int
    table: int
    output: int


class Launcher(Protocol):
    """Starts a kernel of cuda_attention.cu."""

    @property
    def tensor_cores(self) -> bool:
        """Whether there is `attend_many`, and `attend_step` for heads that it takes."""
        ...

    def __call__(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        threads: int,
        stream: int,
        *arguments: Argument,
    ) -> None: ...


@dataclass(frozen=True)
class Attention:
    """Enqueues a layer's attention."""

    heads: Heads
    launch: Launcher

    def enqueue(self, layer: int, tensors: Tensors, rows: int, tokens: int, stream: int) -> None:
        """`rows` sequences of `tokens` new tokens each."""
        t, heads = tensors, self.heads
        inputs = (t.heads, t.cosine, t.sine, t.past_lens, t.new_lens, t.table)
        arguments: Sequence[Argument] = (
            *(c_void_p(address) for address in (*inputs, t.output)),
            c_int32(layer),
            c_int32(tokens),
            c_float(heads.head_dim**-0.5 * _LOG2_E),
        )
        if tokens == 1:
            self._step(rows, stream, arguments)
            return
        self.launch(
            "append_rows",
            (tokens, heads.kv_heads, rows),
            THREADS,
            stream,
            *(c_void_p(address) for address in inputs),
            c_int32(layer),
        )
        if self.launch.tensor_cores:
            grid = (-(-tokens // _TILE), heads.heads, rows)
            self.launch("attend_many", grid, THREADS, stream, *arguments)
        else:
            grid = (1, heads.blocks, rows * tokens)
            self.launch("attend_each", grid, THREADS, stream, *arguments)

    def _step(self, rows: int, stream: int, arguments: Sequence[Argument]) -> None:
        heads = self.heads
        if self.launch.tensor_cores and heads.steps_by_tensor_cores:
            few = rows * heads.blocks < _BLOCKS
            kernel, threads = "attend_step", STEP_THREADS[0 if few else 1]
            grid = (heads.splits(rows, _STEP_BLOCKS), heads.blocks, rows)
        else:
            kernel, threads = "attend_one", THREADS
            grid = (heads.splits(rows), heads.blocks, rows)
        self.launch(kernel, grid, threads, stream, *arguments)


def cache_table(
    *,
    first_slot: int,
    live: int,
    rows: int,
    layer_stride: int,
    value_offset: int,
    length: int,
    spoiled: int,
    partial: int,
    arrived: int,
) -> NDArray[np.int64]:
    """A graph's input `cache`, `struct Cache` of the kernels: addresses, strides in elements.

    `live` rows of a batch count; the first one is slot `first_slot`.
    """
    where = (rows, layer_stride, value_offset, length)
    return np.array((first_slot, live, *where, spoiled, partial, arrived), np.int64)


@cache
def attention_for(heads: Heads) -> Attention:
    """On the device whose context is current, which this process keeps. Raises EngineError."""
    # Only the image of this backend has the bindings of CUDA.
    from llmengine_server.session.cuda_driver import AttentionModule  # noqa: PLC0415

    return Attention(heads, AttentionModule(heads))
