"""What turns a graph into an engine, one module a backend; the request names which.

A backend refuses what it cannot do before any work is done, and says what to ask for instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from llmengine.api.v1alpha1 import DType, Quantization
from llmengine.architecture import Architecture
from llmengine.artifact import Cache, Device, Limits
from llmengine.requests import BuildReason
from llmengine_builder.errors import BadInputError
from llmengine_builder.graph import Model
from llmengine_server.session import Session

# Called with the percentage of the compilation that is done.
Report = Callable[[int], None]


@dataclass(frozen=True)
class CompileOptions:
    """How the model is to be compiled; `dtype` is resolved, never `auto`."""

    dtype: DType
    quantization: Quantization
    limits: Limits


@dataclass(frozen=True)
class CompiledEngine:
    """An engine on disk, and what its manifest says of it.

    `files`: path within the artifact -> local path. Weights stand where the model has them.
    """

    files: Mapping[str, Path]
    cache: Cache
    limits: Limits
    model_type: str
    vocabulary: int


class Backend(Protocol):
    """Compiles for one runtime of one exact version."""

    @property
    def version(self) -> str:
        """Of the runtime that is installed here."""
        ...

    def check(self, options: CompileOptions) -> None:
        """Raise UnsupportedError for options that this backend cannot build."""
        ...

    def device(self, architecture: Architecture) -> Device:
        """What the device here says of itself.

        Raises WrongDeviceError when it is not of the architecture that was asked for, and
        UnsupportedError when the backend knows no such architecture.
        """
        ...

    def host_bytes(self, model: Model, options: CompileOptions) -> int:
        """Host memory that compiling and verifying needs at most, in bytes."""
        ...

    def compile(
        self, model: Model, options: CompileOptions, folder: Path, report: Report
    ) -> CompiledEngine:
        """Build the engine into `folder`, which is empty. Raises BuildError."""
        ...

    def open(self, engine: CompiledEngine, slots: int) -> Session:
        """Run the engine here, with fewer slots than it has, to verify it.

        Raises VerificationError when it does not even load.
        """
        ...


# Names of EngineRuntime.spec.backend -> the module of the backend and what it needs installed.
_BACKENDS: Mapping[str, tuple[str, str]] = {
    "onnxruntime": ("llmengine_builder.backends.onnxruntime", "onnxruntime"),
}


def find_backend(name: str, version: str) -> Backend:
    """The backend `name`, whose runtime must have exactly this version.

    Raises BadInputError when this image lacks it or has another version.
    """
    module, needs = _BACKENDS.get(name, ("", ""))
    if not module or find_spec(needs) is None:
        here = [name for name, (_, needs) in _BACKENDS.items() if find_spec(needs) is not None]
        raise BadInputError(
            BuildReason.BACKEND_MISMATCH,
            f"this image lacks the backend {name} (it has {', '.join(here) or 'none'}): give the"
            " EngineRuntime the image of its backend",
        )
    backend: Backend = import_module(module).BACKEND
    if backend.version != version:
        raise BadInputError(
            BuildReason.BACKEND_MISMATCH,
            f"the EngineRuntime asks for {name} {version}, but its image has {backend.version}:"
            " correct spec.version or the image",
        )
    return backend
