"""The GPU that everything here runs on, and what is asked of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from llmengine.api.v1alpha1 import DType, EngineOptions
from llmengine.architecture import Architecture
from llmengine_server.session.device import Gpu, NvmlGpus
from llmengine_server.session.tensorrt_library import installed_version

# What a copy on such a GPU moves, bytes a second: the bound that steps are compared with.
BANDWIDTHS: Mapping[str, float] = {"NVIDIA-H100-80GB-HBM3": 3.0e12, "NVIDIA-H200": 4.3e12}


@dataclass(frozen=True)
class Target:
    """Whom engines are built for, and by what; `bandwidth` is that of the GPU's memory, in bytes a
    second."""

    backend: str
    version: str
    architecture: Architecture
    name: str
    bandwidth: float

    @classmethod
    def here(cls, bandwidth: float | None = None) -> Target:
        """This machine's first GPU, and its TensorRT. `bandwidth`: where it is not a known one."""
        gpu: Gpu = NvmlGpus().list()[0]
        architecture = gpu.architecture
        moves = bandwidth or BANDWIDTHS.get(architecture.device or "")
        if moves is None:
            raise SystemExit(
                f"say with --bandwidth how many bytes a second a copy on {gpu.name} moves; known"
                f" are {', '.join(BANDWIDTHS)}"
            )
        return cls("tensorrt", installed_version() or "none", architecture, gpu.name, moves)


def options(dtype: DType, slots: int, length: int, chunk: int = 512) -> EngineOptions:
    return EngineOptions(
        dtype=dtype, max_batch_size=slots, max_sequence_length=length, max_batch_tokens=chunk
    )


def wait_for(holds: Callable[[], bool], seconds: float) -> float:
    """The seconds until something held. Raises TimeoutError."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.02)
    return time.monotonic() - began


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Says what is going on, and how long it took."""
    began = time.monotonic()
    print(f"== {name}", flush=True)
    yield
    print(f"== {name}: {time.monotonic() - began:.1f} s", flush=True)
