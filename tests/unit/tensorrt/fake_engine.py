"""A TensorRT engine that is the same model in ONNX Runtime, on the memory of the fake device.

Its cache is where the table of addresses says, as it is for the real one's attention. Refuses what
TensorRT would: shapes outside of a profile, and runs with something left unbound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from llmengine.api.v1alpha1 import DType
from llmengine.artifact import Cache, Limits
from llmengine_builder.graph import read_model
from llmengine_server.session import EngineError
from llmengine_server.session.cuda_attention import TABLE_WORDS
from llmengine_server.session.onnxruntime import start_runtime
from tests.unit.tensorrt.fake_driver import FakeDriver

_NUMBERS = ("input_ids", "past_lens", "new_lens")
_INPUTS = (*_NUMBERS, "cache")


@dataclass
class FakeEngine:
    """`runtime`: the graph with its cache as inputs, in float32. `overflow`: the row of the next
    run whose new values are not finite, as where float16 overflows."""

    driver: FakeDriver
    runtime: ort.InferenceSession
    cache: Cache
    limits: Limits
    vocabulary: int
    scratch_bytes: int = 4096
    runs: list[tuple[int, ...]] = field(default_factory=list)
    overflow: int | None = None
    closed: bool = False

    def context(self, profile: int, scratch: int, size: int, stream: int) -> FakeContext:
        assert size >= self.scratch_bytes
        assert scratch % 256 == 0
        assert stream == self.driver.stream
        assert 0 <= profile <= len(self.cache.batches)
        return FakeContext(self, profile)

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeContext:
    engine: FakeEngine
    profile: int
    addresses: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def bind(self, name: str, address: int, shape: Sequence[int] | None = None) -> None:
        if name not in (*_INPUTS, "logits"):
            raise EngineError(f"the engine has no tensor {name}")
        assert address % 256 == 0, f"{name} is not aligned"
        self.addresses[name] = address
        if shape is None:
            assert name == "logits"
            return
        self._check(name, tuple(shape))
        self.shapes[name] = tuple(shape)

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        cache, limits = self.engine.cache, self.engine.limits
        rows = 1 if self.profile == 0 else cache.batches[self.profile - 1]
        fits = shape == (TABLE_WORDS,) if name == "cache" else shape[0] == rows
        if name == "input_ids":
            longest = limits.max_batch_tokens if self.profile == 0 else 1
            fits &= 1 <= shape[1] <= longest
        if not fits:
            raise EngineError(f"the engine does not take {name} of shape {list(shape)}")

    def run(self, stream: int) -> None:
        # What a graph captures is what is bound now.
        addresses, shapes = dict(self.addresses), dict(self.shapes)
        assert {*_INPUTS, "logits"} == set(addresses)
        driver = self.engine.driver
        assert stream == driver.stream

        def step() -> None:
            assert not self.engine.closed
            self.engine.runs.append(shapes["input_ids"])
            feeds = {
                name: driver.view(addresses[name], np.int32, math.prod(shapes[name])).reshape(
                    shapes[name]
                )
                for name in _NUMBERS
            }
            table = driver.view(addresses["cache"], np.int64, TABLE_WORDS)
            logits = _attended(self.engine, feeds, table)
            driver.view(addresses["logits"], np.float32, logits.size)[:] = logits.ravel()

        driver.enqueue(step)


def _attended(
    engine: FakeEngine, feeds: dict[str, NDArray[np.int32]], table: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The logits of a run, whose new rows it puts into the cache that `table` tells of."""
    driver, cache = engine.driver, engine.cache
    first, live, at, layer_stride, value_offset, length, spoiled = map(int, table[:7])
    if not live:
        # Nothing counts yet, as when a session warms up.
        return np.zeros((len(feeds["input_ids"]), engine.vocabulary), np.float32)
    slots = layer_stride // (2 * cache.kv_heads * length * cache.head_dim)
    assert value_offset == layer_stride // 2
    shape = (cache.layers, 2, slots, cache.kv_heads, length, cache.head_dim)
    rows = driver.view(at, np.float32, math.prod(shape)).reshape(shape)
    batch = len(feeds["input_ids"])
    # An idle row is computed on something, which nobody sees.
    held = np.minimum(first + np.arange(batch), slots - 1)
    pasts = np.where(np.arange(batch) < live, feeds["past_lens"], 0).astype(np.int32)
    past = {
        f"{kind}_past_{layer}": np.ascontiguousarray(rows[layer, half][held])
        for layer in range(cache.layers)
        for half, kind in enumerate("kv")
    }
    answers = engine.runtime.run(None, {**feeds, "past_lens": pasts, **past})
    logits, keys, values = answers
    if engine.overflow is not None:
        values[-1, engine.overflow, 0, 0, 3] = np.inf
        engine.overflow = None
    for row in range(min(live, batch)):
        slot, count = first + row, int(feeds["new_lens"][row])
        place = slice(int(pasts[row]), int(pasts[row]) + count)
        for half, new in enumerate((keys, values)):
            fresh = new[:, row, :, :count]
            if not np.isfinite(fresh).all():
                driver.view(spoiled + 4 * slot, np.uint32, 1)[0] = 1
            rows[:, half, slot, :, place] = np.where(np.isfinite(fresh), fresh, 0)
    return np.asarray(logits)


def fake_engine(model: Path, driver: FakeDriver, cache: Cache, limits: Limits) -> FakeEngine:
    """The engine of a model."""
    understood = read_model(model)
    graph = understood.graph(DType.FLOAT32, "inputs")
    runtime = start_runtime(graph, model, threads=1)
    return FakeEngine(driver, runtime, cache, limits, understood.decoder.vocabulary)
