"""TensorRT's Python module, with the libraries that belong to it, and which version they are.

The same code runs on TensorRT 10 and 11, from the wheels or from an image's own libraries.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections import deque
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from llmengine_server.session import EngineError

# A folder with libnvinfer and its companions, where the loader does not find them by itself.
LIBRARIES_VARIABLE = "LLMENGINE_TENSORRT_LIBS"
MODULES = ("tensorrt", "tensorrt_bindings")
_DISTRIBUTIONS = ("tensorrt", "tensorrt_cu13_bindings", "tensorrt_cu12_bindings")
# In the order in which they need one another.
_LIBRARIES = ("libnvinfer.so", "libnvinfer_plugin.so", "libnvonnxparser.so")
_REMEMBERED = 40


def installed_version() -> str | None:
    """The version by the installed packages, without loading a library; None without any."""
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


@cache
def load_tensorrt() -> Any:
    """The module. Raises EngineError when it, or a library, is missing or of another version."""
    if folder := os.environ.get(LIBRARIES_VARIABLE):
        for path in _libraries(Path(folder)):
            try:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                raise EngineError(
                    f"{path} of {LIBRARIES_VARIABLE} cannot be loaded: {error}"
                ) from error
    problems = []
    for name in MODULES:
        try:
            module = import_module(name)
        except ImportError as error:
            problems.append(f"{name}: {error}")
            continue
        _compare_with_library(module)
        return module
    raise EngineError(
        f"TensorRT's Python module cannot be loaded ({'; '.join(problems)}): give the image the"
        f" wheel of its version, and the folder of its libraries in {LIBRARIES_VARIABLE}"
    )


def tensorrt_version() -> str:
    """Of the module that is loaded here. Raises EngineError."""
    return str(load_tensorrt().__version__)


def _libraries(folder: Path) -> list[Path]:
    found = []
    for name in _LIBRARIES:
        versions = sorted(folder.glob(f"{name}.*"), key=lambda path: len(path.name))
        if not versions:
            raise EngineError(
                f"{folder}, which {LIBRARIES_VARIABLE} names, has no {name}: complete it"
            )
        found.append(versions[0])
    return found


def _compare_with_library(module: Any) -> None:
    """The module's own version says nothing about the library that the loader found."""
    stated = [int(part) for part in re.findall(r"\d+", module.__version__)[:3]]
    try:
        library = ctypes.CDLL(f"libnvinfer.so.{stated[0]}")
    except OSError as error:
        raise EngineError(f"libnvinfer.so.{stated[0]} cannot be loaded: {error}") from error
    number = int(library.getInferLibVersion())
    found = [number // 10000, number // 100 % 100, number % 100]
    if found != stated:
        raise EngineError(
            f"TensorRT's Python module is of version {module.__version__}, its library of version"
            f" {'.'.join(map(str, found))}: give the image both in one version"
        )


def make_logger(tensorrt: Any, log: Any = None) -> Any:
    """A logger that remembers the newest warnings and errors, in `messages`, and in `failed`
    whether there was an error.

    `log(severity, text)`: called with every message from INFO on; severities are TensorRT's names.
    """
    levels = tensorrt.ILogger.Severity

    class Messages(tensorrt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self.messages: deque[str] = deque(maxlen=_REMEMBERED)
            self.failed = False

        def log(self, severity: Any, text: str) -> None:
            wrong = severity in (levels.INTERNAL_ERROR, levels.ERROR)
            self.failed = self.failed or wrong
            if wrong or severity == levels.WARNING:
                self.messages.append(text)
            if log is not None and severity != levels.VERBOSE:
                log(severity.name, text)

    return Messages()


def main() -> int:
    """Says which TensorRT is here, or what is wrong with it: the last step of an image's build."""
    try:
        sys.stdout.write(f"TensorRT {tensorrt_version()}\n")
    except EngineError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
