"""What a build of SmolLM2 takes: seconds by phase, memory, and seconds of the fetch that follows.

Run `python -m tests.bench.build`. The builder and the init container are processes with nothing
but an environment, as in their pods; model and store lie on one S3 server on loopback.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from llmengine.api.v1alpha1 import DType, EngineOptions
from tests.cluster.s3 import S3Server
from tests.contract.builder.run import Bench
from tests.contract.store.place import Place
from tests.models import smollm2
from tests.models.safetensors_file import Dtype

MIB = 1 << 20
OPTIONS = EngineOptions(dtype=DType.FLOAT32, max_sequence_length=2048)
# Wanted: the peak of the builder's memory, in units of the model's weights in float32.
WANTED = 1.6


@dataclass(frozen=True)
class Build:
    """What one build took: bytes and seconds."""

    phases: Mapping[str, float]
    seconds: float
    fetch_seconds: float
    peak: int
    weights: int


def measure(dtype: Dtype, folder: Path, server: S3Server) -> Build:
    """One build and one fetch of the model whose files hold `dtype`."""
    model = smollm2.directory(dtype)
    bench = Bench(Place.new(server), folder / dtype)
    bench.folder.mkdir()
    request = bench.request(bench.put_model(model), options=OPTIONS)
    process, last = bench.start_build(request)
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    # Not Popen.wait(): only this tells what this one child has used.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    words = json.loads(last.read_text())
    if process.returncode != 0:
        raise SystemExit(f"the build failed: {words}")
    manifest = bench.place.store().get_manifest(request.key)
    assert manifest is not None
    fetched = bench.fetch(request, words["manifestDigest"])
    return Build(
        phases=manifest.manifest.seconds,
        seconds=json.loads(lines[-2])["seconds"],
        fetch_seconds=fetched.lines[0]["seconds"],
        peak=usage.ru_maxrss * 1024,
        weights=_float32_bytes(model),
    )


def _float32_bytes(model: Path) -> int:
    """The size that the model's weights would have in float32."""
    with (model / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    sizes = [
        (entry["data_offsets"][1] - entry["data_offsets"][0], entry["dtype"])
        for name, entry in header.items()
        if name != "__metadata__"
    ]
    return sum(size * (1 if dtype == "F32" else 2) for size, dtype in sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=get_args(Dtype), nargs="*", default=["F32", "BF16"])
    options = parser.parse_args()
    for dtype in options.dtype:
        smollm2.directory(dtype)
    with tempfile.TemporaryDirectory(prefix="build-") as temporary, S3Server() as server:
        builds = {dtype: measure(dtype, Path(temporary), server) for dtype in options.dtype}
    print("| files | seconds by phase | build s | fetch s | peak MiB | x float32 weights |")
    print("|---|---|---|---|---|---|")
    for dtype, build in builds.items():
        phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in build.phases.items())
        print(
            f"| {dtype} | {phases} | {build.seconds:.1f} | {build.fetch_seconds:.1f}"
            f" | {build.peak / MIB:.0f} | {build.peak / build.weights:.2f} (wanted: {WANTED}) |"
        )


if __name__ == "__main__":
    main()
