"""A neighbour that takes the GPU's memory: `python -m tests.gpu.hog FREE` leaves FREE bytes of it.

It says so on its standard output, and gives all back when its standard input ends.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from llmengine_server.session import OutOfMemoryError

_SMALLEST = 1 << 21


@contextmanager
def hog(free: int) -> Iterator[None]:
    """While this is entered, at most `free` bytes of the GPU are free, or next to none."""
    command = [sys.executable, "-m", "tests.gpu.hog", str(free)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline(), "the neighbour found no memory to take"
        try:
            yield
        finally:
            process.stdin.close()
            process.wait()


def main() -> None:
    # Only where there is a GPU are there the bindings of CUDA.
    from llmengine_server.session.cuda_driver import CudaDriver

    driver, free, size = CudaDriver(), int(sys.argv[1]), 1 << 28
    while size >= _SMALLEST:
        room = driver.memory().free - free
        if room < _SMALLEST:
            break
        try:
            driver.allocate(min(size, room))
        except OutOfMemoryError:
            size //= 2
    driver.synchronize()
    print(f"{driver.memory().free} bytes are left", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
