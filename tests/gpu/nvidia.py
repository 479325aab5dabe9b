"""NVIDIA's libraries and Python modules, fetched once into the cache and unpacked there.

The libraries of TensorRT come from Maven, in a jar of about 1 GB; modules from the package index.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from llmengine_server.session.tensorrt_library import LIBRARIES_VARIABLE
from tests.cluster.paths import ClusterError, cache

# That engines are built with, and the newest one whose libraries are to be had.
VERSION, NEWEST = "10.6.0", "11.2.1"
BINDINGS = {
    VERSION: f"tensorrt_cu12_bindings=={VERSION}",
    NEWEST: "tensorrt_cu13_bindings==11.2.1.2",
}
_JARS = {
    VERSION: "org.bytedeco:tensorrt:10.6-1.5.11:jar:linux-x86_64-redist",
    NEWEST: "org.bytedeco:tensorrt:11.2-1.5.14:jar:linux-x86_64-redist",
}


def libraries(version: str = VERSION) -> Path:
    """A folder with TensorRT's libraries. LLMENGINE_TENSORRT_LIBS may name that of VERSION."""
    given = os.environ.get(LIBRARIES_VARIABLE)
    if given and version == VERSION:
        return Path(given)
    return _made(f"tensorrt-{version}", lambda folder: _unpack(_jar(_JARS[version]), folder))


def modules(*requirements: str) -> Path:
    """A folder with these packages, for PYTHONPATH."""

    def install(folder: Path) -> None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        _run([*command, "--target", str(folder), *requirements])

    python = "{}.{}".format(*sys.version_info)
    return _made("-".join((*requirements, python)).replace("==", "-"), install)


def _made(name: str, make: Callable[[Path], None]) -> Path:
    folder = cache() / "nvidia" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            new = folder.with_name(f"{name}.new")
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            make(new)
            new.rename(folder)
    return folder


def _jar(artifact: str) -> Path:
    group, name, version, kind, classifier = artifact.split(":")
    place = Path(group.replace(".", "/"), name, version, f"{name}-{version}-{classifier}.{kind}")
    jar = Path.home() / ".m2/repository" / place
    if jar.exists():
        return jar
    if shutil.which("mvn") is None:
        raise ClusterError(f"{jar} is not there, and mvn is not installed: install Maven")
    print(f"fetching {artifact}", flush=True)
    command = ["mvn", "--batch-mode", "--quiet", "dependency:get", "-Dtransitive=false"]
    _run([*command, f"-Dartifact={artifact}"])
    return jar


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"{command[0]} failed:\n{(done.stdout + done.stderr)[-2000:].rstrip()}")


def _unpack(jar: Path, folder: Path) -> None:
    with zipfile.ZipFile(jar) as archive:
        for name in archive.namelist():
            if re.search(r"\.so(\.\d+)*$", name):
                target = folder / Path(name).name
                with archive.open(name) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
                target.chmod(0o755)
