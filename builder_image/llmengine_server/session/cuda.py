"""What a session asks of a CUDA device: memory, one stream of work in order, kernels, graphs.

Work is done in the order in which it was asked for, later; only `Mark.wait` and `synchronize`
wait for it. Addresses are integers; sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_float, c_int32, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# The number of threads of every block: a multiple of 32.
THREADS = 256
CHOOSING_THREADS = 1024
# Blocks that look at one row of logits at once, and logits that are worth one.
_MOST_PARTS = 32
_PART = 1024

Argument = c_void_p | c_int32 | c_uint64 | c_float
Bytes = NDArray[np.uint8]


def survey_parts(vocabulary: int) -> int:
    """Blocks that look at one row of logits."""
    return min(_MOST_PARTS, -(-vocabulary // _PART))


class DeviceError(Exception):
    """The device failed: nothing can be done with it any more in this process."""


@dataclass(frozen=True)
class Memory:
    """Of the whole device, whoever uses it."""

    free: int
    total: int


class Mark(Protocol):
    """A place in the stream of work."""

    def record(self) -> None:
        """Put it behind all work that was asked for until now."""
        ...

    def wait(self) -> None:
        """Return when all work before it is done. Raises DeviceError when that failed."""
        ...


class Graph(Protocol):
    """Work that was captured, to be asked for as one."""

    def launch(self) -> None: ...

    def close(self) -> None: ...


class Driver(Protocol):
    """One device and one stream. `stream` is CUDA's handle, for libraries that enqueue work.

    Everything raises DeviceError, and OutOfMemoryError where the device has no memory for it.
    """

    @property
    def stream(self) -> int: ...

    def attach(self) -> None:
        """Make the device that of the calling thread; to be called before anything else is."""
        ...

    def memory(self) -> Memory: ...

    def allocate(self, size: int) -> int:
        """Device memory, all bytes zero."""
        ...

    def pinned(self, size: int) -> Bytes:
        """Memory of the host that `download` may write to while the host does something else."""
        ...

    def upload(self, address: int, source: NDArray[Any]) -> None:
        """Copy an array to the device; it may be changed as soon as this returns."""
        ...

    def download(self, target: Bytes, address: int) -> None:
        """Copy to pinned memory of the host, which must be left alone until that is done."""
        ...

    def fill(self, address: int, word: int, count: int) -> None:
        """Set `count` words of 32 bits."""
        ...

    def launch(
        self, kernel: str, grid: tuple[int, int, int], threads: int, *arguments: Argument
    ) -> None:
        """Run a kernel of cuda_kernels.cu."""
        ...

    def capture(self, work: Callable[[], None]) -> Graph:
        """What `work` asks for, which is not done now."""
        ...

    def mark(self) -> Mark: ...

    def synchronize(self) -> None:
        """Wait for everything."""
        ...

    def close(self) -> None:
        """Let go of the device. What was allocated is freed."""
        ...
