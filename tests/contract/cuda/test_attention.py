"""The attention kernels, compiled for this CPU, compute what a few lines of numpy say they do."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llmengine_server.session.cuda_attention import ELEMENTS, STEP_THREADS, THREADS, cache_table
from tests.contract.cuda.library import compile_kernels

KERNELS = ("append_rows", "attend_one", "attend_each")
TILE = 64
# So long that the longest sequence is worth several parts.
LAYERS, LAYER, SLOTS, LENGTH = 2, 1, 5, 160
# A few roundings of the dtype, of numbers around 1.
CLOSE = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    element: str
    head_dim: int
    kv_heads: int
    group: int

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group

    @property
    def tensor_core_kernels(self) -> tuple[str, ...]:
        if self.element == "float32":
            return ()
        return ("attend_many", "attend_step") if self.head_dim in (64, 128) else ("attend_many",)

    def store(self, values: Floats) -> NDArray[Any]:
        if self.element == "bfloat16":
            bits = values.view(np.uint32)
            return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        return values.astype(self.element)

    def load(self, stored: NDArray[Any]) -> Floats:
        if self.element == "bfloat16":
            return np.left_shift(stored, 16, dtype=np.uint32).view(np.float32)
        return stored.astype(np.float32)


@pytest.fixture(scope="module")
def libraries() -> dict[Shape, ctypes.CDLL]:
    return {}


@pytest.fixture
def compiled(
    shape: Shape, libraries: dict[Shape, ctypes.CDLL], tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL:
    if shape in libraries:
        return libraries[shape]
    libraries[shape] = compile_kernels(
        "cuda_attention.cu",
        (*KERNELS, *shape.tensor_core_kernels),
        tmp_path_factory.mktemp("attention"),
        {
            "ELEMENT": ELEMENTS.index(shape.element),
            "HEAD_DIM": shape.head_dim,
            "GROUP": shape.group,
        },
    )
    return libraries[shape]


class Step:
    """One call of the attention over a cache that is full of numbers, as a session makes it."""

    def __init__(
        self,
        shape: Shape,
        pasts: Sequence[int],
        counts: Sequence[int],
        tokens: int,
        *,
        first_slot: int = 0,
        rows: int | None = None,
        splits: int = 3,
    ) -> None:
        self.shape = s = shape
        self.pasts, self.counts = np.array(pasts, np.int32), np.array(counts, np.int32)
        self.tokens, self.splits, self.first_slot = tokens, splits, first_slot
        self.batch = len(pasts)
        self.rows = self.batch if rows is None else rows
        numbers = np.random.default_rng(3)

        def random(*lengths: int) -> NDArray[Any]:
            return s.store(numbers.standard_normal(lengths, np.float32))

        self.cache = random(LAYERS, 2, SLOTS, s.kv_heads, LENGTH, s.head_dim)
        self.before = self.cache.copy()
        self.heads = random(self.batch, tokens, s.heads + 2 * s.kv_heads, s.head_dim)
        self.query, self.key, self.value = np.split(
            self.heads, [s.heads, s.heads + s.kv_heads], axis=2
        )
        angles = numbers.uniform(0, 6, (self.batch, tokens, s.head_dim // 2)).astype(np.float32)
        self.cosine, self.sine = np.cos(angles), np.sin(angles)
        self.output = s.store(np.full(self.query.shape, 7, np.float32))
        self.spoiled = np.zeros(SLOTS, np.uint32)
        self.arrived = np.zeros(4096, np.uint32)
        self._partial = np.zeros((self.batch * tokens, s.heads, splits, s.head_dim + 2), np.float32)
        half = SLOTS * s.kv_heads * LENGTH * s.head_dim
        self._table = cache_table(
            first_slot=first_slot,
            live=self.rows,
            rows=self.cache.ctypes.data,
            layer_stride=2 * half,
            value_offset=half,
            length=LENGTH,
            spoiled=self.spoiled.ctypes.data,
            partial=self._partial.ctypes.data,
            arrived=self.arrived.ctypes.data,
        )

    def run(self, library: ctypes.CDLL, *kernels: str, threads: int = THREADS) -> None:
        s = self.shape
        scale = c_float(s.head_dim**-0.5 * np.log2(np.e))
        subgroups = s.group // next(n for n in range(8, 0, -1) if s.group % n == 0)
        grids = {
            "append_rows": (self.tokens, s.kv_heads, self.batch),
            "attend_one": (self.splits, s.kv_heads * subgroups, self.batch),
            "attend_step": (self.splits, s.kv_heads * subgroups, self.batch),
            "attend_each": (1, s.kv_heads * subgroups, self.batch * self.tokens),
            "attend_many": (-(-self.tokens // TILE), s.heads, self.batch),
        }
        for kernel in kernels:
            inputs = (self.heads, self.cosine, self.sine, self.pasts, self.counts)
            arguments: list[Any] = [c_void_p(each.ctypes.data) for each in inputs]
            arguments.append(c_void_p(self._table.ctypes.data))
            if kernel == "append_rows":
                arguments.append(c_int32(LAYER))
            else:
                arguments += [c_void_p(self.output.ctypes.data), c_int32(LAYER)]
                arguments += [c_int32(self.tokens), scale]
            pointers = (c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
            getattr(library, f"run_{kernel}")(*grids[kernel], threads, pointers)

    def expected(self) -> tuple[Floats, NDArray[Any]]:
        """The output, and the cache afterwards."""
        s = self.shape
        cache = self.before.copy()
        output = np.zeros(self.query.shape, np.float32)
        for row in range(self.rows):
            slot, past, count = self.first_slot + row, self.pasts[row], self.counts[row]
            keys, values = cache[LAYER, :, slot]
            for t in range(count):
                keys[:, past + t] = s.store(self._turn(self.key[row, t], row, t))
                values[:, past + t] = self.value[row, t]
            for t in range(count):
                query = self._turn(self.query[row, t], row, t) * np.float32(s.head_dim**-0.5)
                seen = slice(0, past + t + 1)
                for head in range(s.heads):
                    kv = head // s.group
                    scores = s.load(keys[kv, seen]) @ query[head]
                    share = np.exp(scores - scores.max())
                    output[row, t, head] = share / share.sum() @ s.load(values[kv, seen])
        return output, cache

    def _turn(self, heads: NDArray[Any], row: int, token: int) -> Floats:
        low, high = np.split(self.shape.load(heads), 2, axis=-1)
        cosine, sine = self.cosine[row, token], self.sine[row, token]
        return np.concatenate([low * cosine - high * sine, high * cosine + low * sine], axis=-1)

    def check(self) -> None:
        output, cache = self.expected()
        close = CLOSE[self.shape.element]
        for row, count in enumerate(self.counts):
            mine = self.shape.load(self.output[row, :count])
            np.testing.assert_allclose(mine, output[row, :count], rtol=0, atol=close)
        kept = self.shape.load(self.cache)
        np.testing.assert_allclose(kept, self.shape.load(cache), rtol=close, atol=close / 100)
        untouched = np.delete(np.arange(SLOTS), self.first_slot + np.arange(self.rows))
        np.testing.assert_array_equal(self.cache[:, :, untouched], self.before[:, :, untouched])
        assert not self.spoiled.any()
        assert not self.arrived.any()


SHAPES = [
    pytest.param(Shape("float32", 64, 2, 3), id="float32, three heads a key"),
    pytest.param(Shape("float16", 64, 1, 4), id="float16, four heads a key"),
    pytest.param(Shape("bfloat16", 128, 2, 1), id="bfloat16, a key each"),
    pytest.param(Shape("float16", 80, 1, 2), id="a head that is no power of two"),
    pytest.param(Shape("bfloat16", 16, 1, 12), id="more heads a key than a block takes"),
    pytest.param(Shape("float32", 256, 1, 1), id="heads wider than a warp reads at once"),
]
ON_TENSOR_CORES = [
    pytest.param(Shape("float16", 64, 1, 4), id="float16"),
    pytest.param(Shape("bfloat16", 128, 2, 1), id="bfloat16"),
    pytest.param(Shape("float16", 80, 1, 2), id="a head that is no power of two"),
]
STEPS_ON_TENSOR_CORES = [
    *ON_TENSOR_CORES[:2],
    pytest.param(Shape("bfloat16", 64, 2, 8), id="eight heads a key"),
    pytest.param(Shape("float16", 128, 1, 12), id="more heads a key than a block takes"),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("splits", [1, 3])
def test_a_decode_step_attends_over_each_slots_own_rows(
    compiled: ctypes.CDLL, shape: Shape, splits: int
) -> None:
    step = Step(shape, [0, 41, LENGTH - 1], [1, 1, 1], 1, splits=splits)
    step.run(compiled, "attend_one")
    step.check()


@pytest.mark.parametrize("shape", STEPS_ON_TENSOR_CORES)
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("threads", STEP_THREADS)
def test_a_decode_step_is_attended_by_the_tensor_cores(
    compiled: ctypes.CDLL, shape: Shape, splits: int, threads: int
) -> None:
    pasts = [0, 41, LENGTH - 1, 15, 6]
    step = Step(shape, pasts, [1, 1, 1, 1, 1], 1, rows=4, splits=splits)
    step.run(compiled, "attend_step", threads=threads)
    step.check()


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_idle_rows_of_a_step_change_nothing(compiled: ctypes.CDLL, shape: Shape) -> None:
    step = Step(shape, [7, 100, 12, 3], [1, 1, 1, 1], 1, rows=2)
    step.run(compiled, "attend_one")
    step.check()


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_a_prompt_is_attended_token_by_token(compiled: ctypes.CDLL, shape: Shape) -> None:
    step = Step(shape, [21], [6], 8, first_slot=3)
    step.run(compiled, "append_rows", "attend_each")
    step.check()


@pytest.mark.parametrize("shape", ON_TENSOR_CORES)
@pytest.mark.parametrize(
    ("past", "count", "tokens"),
    [
        pytest.param(0, 16, 16, id="one tile of a prompt's beginning"),
        pytest.param(37, 70, 96, id="a later chunk, several tiles, padded"),
        pytest.param(64, 1, 16, id="a single token"),
        pytest.param(0, 160, 160, id="up to the cache's end"),
    ],
)
def test_a_prompt_is_attended_by_the_tensor_cores(
    compiled: ctypes.CDLL, shape: Shape, past: int, count: int, tokens: int
) -> None:
    step = Step(shape, [past], [count], tokens, first_slot=2)
    step.run(compiled, "append_rows", "attend_many")
    step.check()


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        *((shape.values[0], kernel) for shape in SHAPES[:3] for kernel in KERNELS[:2]),
        *((shape.values[0], "attend_step") for shape in STEPS_ON_TENSOR_CORES[:2]),
    ],
)
def test_rows_that_are_not_finite_are_kept_out_of_the_cache_and_reported(
    compiled: ctypes.CDLL, shape: Shape, kernel: str
) -> None:
    step = Step(shape, [9, 20], [1, 1], 1, first_slot=1)
    step.value[1, 0, 0, 5] = step.shape.store(np.array([np.inf], np.float32))[0]
    step.run(compiled, kernel)
    assert step.spoiled.tolist() == [0, 0, 1, 0, 0]
    assert np.isfinite(shape.load(step.cache)).all()
