"""What a build of SmolLM2 takes between its files and a verified engine: seconds and memory.

Run `python -m tests.bench.graph`. Each row is a process of its own, because a peak of memory is a
process's for life.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llmengine.api.v1alpha1 import DType, Quantization
from llmengine.artifact import Limits
from llmengine_builder.backends import CompileOptions, find_backend
from llmengine_builder.graph import read_model
from llmengine_builder.verify import SLOTS, verify
from llmengine_server.session import Session
from llmengine_server.session.onnxruntime import VERSION
from tests.models import smollm2
from tests.models.safetensors_file import Dtype

STORED: tuple[Dtype, ...] = ("BF16", "F32")
OPTIONS = CompileOptions(
    DType.FLOAT32,
    Quantization(),
    Limits(max_batch_size=8, max_sequence_length=4096, max_batch_tokens=512),
)


def peak() -> int:
    """The most memory that this process ever had resident, mapped files included, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(stored: Dtype) -> None:
    """Write, load, verify; prints one line."""
    folder, backend = smollm2.directory(stored), find_backend("onnxruntime", VERSION)
    began = time.perf_counter()
    model = read_model(folder)
    graph = model.graph(OPTIONS.dtype, "inputs")
    written = time.perf_counter() - began
    size = 4 * model.checkpoint.elements
    with tempfile.TemporaryDirectory() as scratch:
        engine = backend.compile(model, OPTIONS, Path(scratch), lambda _: None)
        opened = 0.0

        def open_engine() -> Session:
            nonlocal opened
            began = time.perf_counter()
            session = backend.open(engine, SLOTS)
            opened = time.perf_counter() - began
            return session

        began = time.perf_counter()
        result = verify(open_engine, folder, OPTIONS.dtype, engine.cache.buckets)
        verified = time.perf_counter() - began - opened
    asked = backend.host_bytes(model, OPTIONS)
    print(
        f"{stored:4}: graph {written:5.3f} s, {len(graph) / 1e3:.0f} kB (wanted 1 s); load"
        f" {opened:4.2f} s; verify {verified:5.2f} s, error {result.mean_relative_error:.1e}; peak"
        f" {peak() / 2**20:.0f} MiB = {peak() / size:.2f} x float32 (wanted 1.6), asked for"
        f" {asked / 2**20:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stored", choices=STORED, help="measure one, in this process")
    arguments = parser.parse_args()
    if arguments.stored:
        measure(arguments.stored)
        return
    for stored in STORED:
        smollm2.directory(stored)
        subprocess.run([sys.executable, "-m", "tests.bench.graph", "--stored", stored], check=True)


if __name__ == "__main__":
    main()
