"""What turns a graph into an engine, one module a backend; the request names which.

A backend refuses what it cannot do before any work is done, and says what to ask for instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from llmengine.api.v1alpha1 import DType, Quantization
from llmengine.architecture import Architecture
from llmengine.artifact import Cache, Device, Footprint, Limits
from llmengine.requests import BuildReason
from llmengine_builder.errors import BadInputError
from llmengine_builder.graph import Model
from llmengine_server.session import Session
from llmengine_server.session.tensorrt_library import installed_version

# Called with the percentage of the compilation that is done.
Report = Callable[[int], None]


@dataclass(frozen=True)
class CompileOptions:
    """How the model is to be compiled; `dtype` is resolved, never `auto`.

    `portable`: for every GPU of the device's compute capability, and not for its model only.
    """

    dtype: DType
    quantization: Quantization
    limits: Limits
    portable: bool = False


@dataclass(frozen=True)
class CompiledEngine:
    """An engine on disk, and what its manifest says of it.

    `files`: path within the artifact -> local path. Weights stand where the model has them.
    `warnings`: sentences for the manifest. `timing`: what the compiler measured, for the next
    build on this architecture; empty where it measures nothing.
    """

    files: Mapping[str, Path]
    cache: Cache
    limits: Limits
    model_type: str
    vocabulary: int
    footprint: Footprint = field(default_factory=Footprint)
    warnings: tuple[str, ...] = ()
    timing: bytes = b""


class Backend(Protocol):
    """Compiles for one runtime of one exact version."""

    @property
    def version(self) -> str:
        """Of the runtime that is installed here."""
        ...

    @property
    def measures(self) -> bool:
        """Whether compiling takes and gives timings."""
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

    def disk_bytes(self, model: Model, options: CompileOptions) -> int:
        """Scratch disk that compiling takes at most beside the model, in bytes."""
        ...

    def check_model(self, model: Model, options: CompileOptions, device: Device) -> None:
        """Raise BuildError for a model that this device cannot serve with these options."""
        ...

    def compile(
        self,
        model: Model,
        options: CompileOptions,
        folder: Path,
        report: Report,
        timing: bytes = b"",
    ) -> CompiledEngine:
        """Build the engine into `folder`, which is empty. Raises BuildError.

        `timing`: that of an earlier engine for this architecture, which makes this build shorter.
        """
        ...

    def open(self, engine: CompiledEngine, slots: int) -> Session:
        """Run the engine here, with fewer slots than it has, to verify it.

        Raises VerificationError when it does not even load.
        """
        ...


# Names of EngineRuntime.spec.backend -> the module of the backend, and whether its runtime is here.
_BACKENDS: Mapping[str, tuple[str, Callable[[], bool]]] = {
    "onnxruntime": (
        "llmengine_builder.backends.onnxruntime",
        lambda: find_spec("onnxruntime") is not None,
    ),
    "tensorrt": (
        "llmengine_builder.backends.tensorrt",
        lambda: installed_version() is not None,
    ),
}


def find_backend(name: str, version: str) -> Backend:
    """The backend `name`, whose runtime must have exactly this version.

    Raises BadInputError when this image lacks it or has another version.
    """
    here = [name for name, (_, is_here) in _BACKENDS.items() if is_here()]
    if name not in here:
        raise BadInputError(
            BuildReason.BACKEND_MISMATCH,
            f"this image lacks the backend {name} (it has {', '.join(here) or 'none'}): give the"
            " EngineRuntime the image of its backend",
        )
    backend: Backend = import_module(_BACKENDS[name][0]).BACKEND
    if backend.version != version:
        raise BadInputError(
            BuildReason.BACKEND_MISMATCH,
            f"the EngineRuntime asks for {name} {version}, but its image has {backend.version}:"
            " correct spec.version or the image",
        )
    return backend
