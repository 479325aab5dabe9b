"""A TensorRT engine that is the same graph in ONNX Runtime, on the memory of the fake device.

Refuses what TensorRT would: shapes outside of a profile, and runs with something left unbound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort

from llmengine.api.v1alpha1 import DType
from llmengine.artifact import Cache, Limits
from llmengine_builder.graph import read_model
from llmengine_server.session import EngineError
from llmengine_server.session.onnxruntime import start_runtime
from tests.unit.tensorrt.fake_driver import FakeDriver

_TYPES = {"tensor(int32)": np.int32, "tensor(float)": np.float32}
_OUTPUTS = ("logits", "k_new", "v_new")


@dataclass
class FakeEngine:
    """`runtime`: the graph with transposed keys, in float32. `overflow`: the row of the next run
    whose new values are not finite, as where float16 overflows."""

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
        inputs = {each.name: each for each in self.engine.runtime.get_inputs()}
        if name not in inputs and name not in _OUTPUTS:
            raise EngineError(f"the engine has no tensor {name}")
        assert address % 256 == 0, f"{name} is not aligned"
        self.addresses[name] = address
        if shape is None:
            assert name in _OUTPUTS
            return
        self._check(name, tuple(shape))
        self.shapes[name] = tuple(shape)

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        cache, limits = self.engine.cache, self.engine.limits
        rows = 1 if self.profile == 0 else cache.batches[self.profile - 1]
        fits = shape[0] == rows
        if name == "input_ids":
            longest = limits.max_batch_tokens if self.profile == 0 else 1
            fits &= 1 <= shape[1] <= longest
        elif name.startswith(("k_past", "v_past")):
            length = shape[3] if name[0] == "k" else shape[2]
            fits &= cache.buckets[0] <= length <= cache.buckets[-1]
        if not fits:
            raise EngineError(f"the engine does not take {name} of shape {list(shape)}")

    def run(self, stream: int) -> None:
        # What a graph captures is what is bound now.
        addresses, shapes = dict(self.addresses), dict(self.shapes)
        names = {each.name for each in self.engine.runtime.get_inputs()} | set(_OUTPUTS)
        assert names == set(addresses), f"unbound: {names - set(addresses)}"
        driver = self.engine.driver
        assert stream == driver.stream

        def step() -> None:
            assert not self.engine.closed
            self.engine.runs.append(shapes["input_ids"])
            feeds = {
                each.name: driver.view(
                    addresses[each.name], _TYPES[each.type], math.prod(shapes[each.name])
                ).reshape(shapes[each.name])
                for each in self.engine.runtime.get_inputs()
            }
            answers = self.engine.runtime.run(list(_OUTPUTS), feeds)
            if (row := self.engine.overflow) is not None:
                answers[_OUTPUTS.index("v_new")][-1, row, 0, 0, 3] = np.inf
                self.engine.overflow = None
            for name, answer in zip(_OUTPUTS, answers, strict=True):
                driver.view(addresses[name], np.float32, answer.size)[:] = answer.ravel()

        driver.enqueue(step)


def fake_engine(model: Path, driver: FakeDriver, cache: Cache, limits: Limits) -> FakeEngine:
    """The engine of a model."""
    understood = read_model(model)
    graph = understood.graph(DType.FLOAT32, "transposed")
    runtime = start_runtime(graph, model, threads=1)
    return FakeEngine(driver, runtime, cache, limits, understood.decoder.vocabulary)
