"""How fast a session steps SmolLM2, beside a bare loop over the same runtime.

Run `python -m tests.bench.session`. Everything that is compared is measured in turns within one
run, and given as a ratio: the machine's own speed swings.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from llmengine.api.v1alpha1 import DType, Quantization
from llmengine.artifact import Cache, Limits
from llmengine_builder.backends import CompiledEngine, CompileOptions, find_backend
from llmengine_builder.backends.onnxruntime import cache_buckets
from llmengine_builder.graph import read_model
from llmengine_server.session.onnxruntime import VERSION, OnnxRuntimeSession, start_runtime
from tests.models import smollm2

PROMPT = 16


def build(model: Path, folder: Path, limits: Limits) -> CompiledEngine:
    """The engine of a model's folder, as the builder would publish it."""
    backend = find_backend("onnxruntime", VERSION)
    options = CompileOptions(DType.FLOAT32, Quantization(), limits)
    return backend.compile(read_model(model), options, folder, lambda _: None)


def bare_loop(runtime: ort.InferenceSession, cache: Cache, length: int) -> Callable[[int], float]:
    """The shortest loop that generates one stream: feed, run, argmax, store the new rows.

    The returned function runs so many steps from PROMPT tokens on and returns seconds a step; the
    cache is held at `length`, which PROMPT and the steps must fit. No scheduler can be faster
    than this without changing the graph.
    """
    shape = (cache.layers, 1, cache.kv_heads, length, cache.head_dim)
    keys, values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    ids, past = np.ones((1, 1), np.int32), np.zeros(1, np.int32)
    feeds: dict[str, NDArray[np.int32] | NDArray[np.float32]] = {
        "input_ids": ids,
        "past_lens": past,
        "new_lens": np.ones(1, np.int32),
    }
    for layer in range(cache.layers):
        feeds |= {f"k_past_{layer}": keys[layer], f"v_past_{layer}": values[layer]}

    def run(steps: int) -> float:
        began = time.perf_counter()
        for at in range(PROMPT, PROMPT + steps):
            past[0] = at
            logits, new_keys, new_values = runtime.run(["logits", "k_new", "v_new"], feeds)
            keys[:, 0, :, at] = new_keys[:, 0, :, 0]
            values[:, 0, :, at] = new_values[:, 0, :, 0]
            ids[0, 0] = logits[0].argmax()
        return (time.perf_counter() - began) / steps

    return run


def session_loop(session: OnnxRuntimeSession, streams: int) -> Callable[[int], float]:
    """Greedy generation of `streams` sequences at once; seconds a step, prefill left out."""

    def run(steps: int) -> float:
        tokens = [session.prefill(slot, range(PROMPT), 0).argmax() for slot in range(streams)]
        began = time.perf_counter()
        for at in range(PROMPT, PROMPT + steps):
            rows = session.decode(tokens, [at] * streams)
            tokens = [row.argmax() for row in rows]
        return (time.perf_counter() - began) / steps

    return run


def compare_loops(runtime: ort.InferenceSession, engine: CompiledEngine, rounds: int) -> None:
    """One stream through the session against the bare loop, and eight streams against one."""
    steps = 64
    session = OnnxRuntimeSession(
        runtime, cache=engine.cache, limits=engine.limits, vocabulary=engine.vocabulary
    )
    loops = {
        "bare": bare_loop(runtime, engine.cache, engine.cache.buckets[0]),
        "one": session_loop(session, 1),
        "eight": session_loop(session, 8),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(rounds + 1):
        for name, loop in loops.items():
            took = loop(steps)
            if turn:
                seconds[name].append(took)
    best = {name: min(took) for name, took in seconds.items()}
    bare = statistics.median(b / o for b, o in zip(seconds["bare"], seconds["one"], strict=True))
    gain = statistics.median(
        8 * o / e for o, e in zip(seconds["one"], seconds["eight"], strict=True)
    )
    print(f"bare loop, 1 stream          {1 / best['bare']:6.1f} tok/s at best")
    print(f"session, 1 stream            {1 / best['one']:6.1f} tok/s at best")
    print(f"session, 8 streams           {8 / best['eight']:6.1f} tok/s at best")
    print(f"1 stream / bare loop         {bare:6.2f} (median of {rounds} rounds; wanted 0.9)")
    print(f"8 streams / 1 stream         {gain:6.2f} (median of {rounds} rounds; wanted 4)")


def compare_buckets(runtime: ort.InferenceSession, engine: CompiledEngine, rounds: int) -> None:
    """What a cache that grows by a factor costs a token of eight streams, from 0 to 2048 rows."""
    end, cache = 2048, engine.cache
    lengths = [128, 512, 1024, 2048]
    step_seconds = []
    for length in lengths:
        fixed = cache.model_copy(update={"buckets": (length,)})
        session = OnnxRuntimeSession(
            runtime, cache=fixed, limits=engine.limits, vocabulary=engine.vocabulary
        )
        loop = session_loop(session, 8)
        loop(4)
        step_seconds.append(min(loop(8) for _ in range(rounds)))
        del session, loop
    row_bytes = 2 * cache.layers * cache.kv_heads * cache.head_dim * 4 * 8
    source = np.ones(row_bytes * 256 // 4, np.float32)
    began = time.perf_counter()
    np.zeros_like(source)[:] = source
    copy_seconds = (time.perf_counter() - began) / 256
    for factor in (1.5, 2, 4):
        buckets = cache_buckets(end, factor)
        at = np.arange(1, end + 1)
        held = np.array(buckets)[np.searchsorted(buckets, at)]
        decode = np.interp(held, lengths, step_seconds).mean()
        grow = sum(buckets[:-1]) * copy_seconds / end
        print(
            f"buckets x{factor:<3}: {1e3 * decode:5.1f} ms a step, {1e3 * grow:4.2f} ms of growth,"
            f" {100 * (at / held).mean():2.0f} % of the cache in use"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stored", choices=("F32", "BF16"), default="BF16")
    arguments = parser.parse_args()
    model = smollm2.directory(arguments.stored)
    limits = Limits(max_batch_size=8, max_sequence_length=4096, max_batch_tokens=512)
    with tempfile.TemporaryDirectory() as folder:
        engine = build(model, Path(folder), limits)
        began = time.perf_counter()
        runtime = start_runtime(engine.files["graph.onnx"].read_bytes(), model)
        print(f"load of {arguments.stored} weights        {time.perf_counter() - began:6.2f} s")
        compare_loops(runtime, engine, arguments.rounds)
        compare_buckets(runtime, engine, arguments.rounds)


if __name__ == "__main__":
    main()
