"""Kernels of the device, compiled for this CPU."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from llmengine_server.session import cuda

_HEADER = Path(__file__).with_name("cuda_on_cpu.h")
# Each library has shared memory of its own, though their names are the same.
_COMPILER = ("g++", "-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-fno-gnu-unique", "-pthread")


def compile_kernels(
    source: str, kernels: Iterable[str], folder: Path, defines: Mapping[str, int] | None = None
) -> ctypes.CDLL:
    """`run_KERNEL(x, y, z, threads, arguments)` for each kernel of a file of the session."""
    runs = "\n".join(
        f'extern "C" void run_{name}(unsigned x, unsigned y, unsigned z, unsigned n, void** a)'
        f" {{ launch({name}, {{x, y, z}}, n, a); }}"
        for name in kernels
    )
    path = Path(cuda.__file__).with_name(source)
    (folder / "kernels.cpp").write_text(f'#include "{_HEADER}"\n#include "{path}"\n{runs}\n')
    options = [f"-D{name}={value}" for name, value in (defines or {}).items()]
    library = folder / "kernels.so"
    subprocess.run([*_COMPILER, *options, "-o", library, folder / "kernels.cpp"], check=True)
    return ctypes.CDLL(str(library))
