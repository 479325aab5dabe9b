"""Takes tritonserver and its Python backend out of the nvidia-pytriton wheel, and nothing else.

    python3 unpack_tritonserver.py WHEEL TARGET

TARGET then holds bin/tritonserver, lib/ and backends/python/ with the stub of this very Python.
Needs the standard library only: images run it before anything is installed.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path, PurePosixPath

_SERVER = PurePosixPath("pytriton/tritonserver")
_LIBRARIES = PurePosixPath("nvidia_pytriton.libs")
_STUB = "triton_python_backend_stub"
# Of the Python that other stubs embed; this Python brings its own.
_LEFT_OUT = "libpython"


def place(name: str, python: str) -> PurePosixPath | None:
    """Where a file of the wheel goes, relative to the target; None for what is left out.

    `python`: the version whose stub is wanted, such as 3.11.
    """
    path = PurePosixPath(name)
    if path.parent == _LIBRARIES:
        return None if path.name.startswith(_LEFT_OUT) else PurePosixPath("lib", path.name)
    if path == _SERVER / "bin/tritonserver":
        return PurePosixPath("bin/tritonserver")
    backend = PurePosixPath("backends/python")
    if path.parent == _SERVER / backend:
        return backend / path.name
    if path == _SERVER / "python_backend_stubs" / python / _STUB:
        return backend / _STUB
    return None


def unpack(wheel: Path, target: Path, python: str) -> None:
    """Raises ValueError when the wheel has no stub for this Python."""
    with zipfile.ZipFile(wheel) as archive:
        places = {name: where for name in archive.namelist() if (where := place(name, python))}
        if PurePosixPath("backends/python", _STUB) not in places.values():
            raise ValueError(f"{wheel.name} has no Python backend for Python {python}")
        for name, where in places.items():
            path = target / where
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(name))
            path.chmod(0o755)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]), f"{sys.version_info[0]}.{sys.version_info[1]}")
