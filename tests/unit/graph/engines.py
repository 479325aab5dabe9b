"""Engines of tiny models, compiled as the builder compiles them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from llmengine.api.v1alpha1 import DType, Quantization
from llmengine.artifact import Limits
from llmengine_builder.backends import CompiledEngine, CompileOptions, find_backend
from llmengine_builder.graph import read_model
from llmengine_server.session.onnxruntime import VERSION, OnnxRuntimeSession, start_runtime

LIMITS = Limits(max_batch_size=3, max_sequence_length=256, max_batch_tokens=32)


def compile_engine(model: Path, folder: Path, limits: Limits = LIMITS) -> CompiledEngine:
    """The engine of the model in `model`; its own files go into `folder`."""
    folder.mkdir(exist_ok=True)
    options = CompileOptions(DType.FLOAT32, Quantization(), limits)
    backend = find_backend("onnxruntime", VERSION)
    return backend.compile(read_model(model), options, folder, lambda _: None)


def open_model(
    model: Path, limits: Limits = LIMITS, buckets: tuple[int, ...] | None = None
) -> OnnxRuntimeSession:
    """A session of a model, without files of its own; one thread, for tiny models."""
    engine = compile_engine(model, model.parent / f"{model.name}-engine", limits)
    cache = (
        engine.cache if buckets is None else engine.cache.model_copy(update={"buckets": buckets})
    )
    graph = engine.files["graph.onnx"].read_bytes()
    return OnnxRuntimeSession(
        start_runtime(graph, model, threads=1),
        cache=cache,
        limits=limits,
        vocabulary=engine.vocabulary,
    )


def run_graph(
    graph: bytes, weights: Path, feeds: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any]]:
    """Logits and new rows of one step, by ONNX Runtime; empty caches where none are given."""
    feeds, runtime = dict(feeds), start_runtime(graph, weights, threads=1)
    batch = len(feeds["input_ids"])
    for value in runtime.get_inputs():
        if value.name not in feeds:
            shape = [{"batch": batch, "past": 0}.get(axis, axis) for axis in value.shape]
            element = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[value.type]
            feeds[value.name] = np.zeros(shape, element)
    logits, keys, values = runtime.run(["logits", "k_new", "v_new"], feeds)
    return logits, keys, values


def relative_error(mine: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """The largest |mine - theirs| / |theirs| of any row."""
    norms = np.linalg.norm(mine - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)
    return float(norms.max())


def parse(graph: bytes) -> onnx.ModelProto:
    return onnx.load_model_from_string(graph)
