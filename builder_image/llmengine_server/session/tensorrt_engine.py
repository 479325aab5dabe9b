"""A TensorRT plan, loaded: contexts that run it on memory that others own.

What can be wrong with a plan is found here, before anything is served: TensorRT itself would say
so in its log only.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from llmengine_server.session import EngineError, OutOfMemoryError
from llmengine_server.session.tensorrt_attention import register_attention
from llmengine_server.session.tensorrt_library import load_tensorrt, make_logger

# What a serialized engine begins with.
_MAGIC = b"ftrt"


class Context(Protocol):
    """One way to run the engine: a profile, shapes and addresses. Keeps none of the memory."""

    def bind(self, name: str, address: int, shape: Sequence[int] | None = None) -> None:
        """Where a tensor lies; `shape` for inputs. Raises EngineError for one out of range."""
        ...

    def run(self, stream: int) -> None:
        """Enqueue one run. Raises EngineError, and OutOfMemoryError."""
        ...


class Engine(Protocol):
    """A loaded plan. Profile 0 is for prompts, the others for decode steps of one size each."""

    @property
    def scratch_bytes(self) -> int:
        """Device memory that a run needs at most, of any profile."""
        ...

    def context(self, profile: int, scratch: int, size: int, stream: int) -> Context:
        """`scratch`: address of `size` bytes, which contexts may share that never run at once."""
        ...

    def close(self) -> None: ...


class TensorRtEngine:
    """See `Engine`. `plan`: a file that was verified: to load one is to run native code.

    Raises EngineError, and OutOfMemoryError where the device has no memory for the weights.
    """

    def __init__(self, plan: Path) -> None:
        self._trt = load_tensorrt()
        self._logger = make_logger(self._trt)
        register_attention()
        self._runtime = self._trt.Runtime(self._logger)
        if self._logger.failed:
            # It is none: to use it, or to delete it, would end the process without a word.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._runtime))
            raise EngineError(
                f"TensorRT {self._trt.__version__} does not start: {self._said()}; is the node's"
                " NVIDIA driver older than the image's CUDA?"
            )
        self._engine = self._load(plan)

    @property
    def scratch_bytes(self) -> int:
        return int(self._engine.device_memory_size_v2)

    def context(self, profile: int, scratch: int, size: int, stream: int) -> TensorRtContext:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise _failure("TensorRT makes no execution context", self._said())
        context.set_device_memory(scratch, size)
        if not context.set_optimization_profile_async(profile, stream):
            raise EngineError(f"the engine has no optimization profile {profile}: {self._said()}")
        return TensorRtContext(context, self._said)

    def close(self) -> None:
        self._engine = None
        self._runtime = None

    def _load(self, plan: Path) -> Any:
        try:
            with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
                if data[: len(_MAGIC)] != _MAGIC:
                    raise EngineError(f"{plan.name} is no TensorRT plan: fetch the engine anew")
                engine = self._runtime.deserialize_cuda_engine(data)
        except (OSError, ValueError) as error:
            raise EngineError(f"{plan} cannot be read: {error}") from error
        if engine is None:
            raise _failure(
                f"TensorRT {self._trt.__version__} does not load {plan.name}", self._said()
            )
        return engine

    def _said(self) -> str:
        """The last words of TensorRT."""
        messages = list(self._logger.messages)[-3:]
        self._logger.messages.clear()
        return "; ".join(messages) or "it does not say why"


class TensorRtContext:
    """See `Context`."""

    def __init__(self, context: Any, said: Any) -> None:
        self._context = context
        self._said = said

    def bind(self, name: str, address: int, shape: Sequence[int] | None = None) -> None:
        if shape is not None and not self._context.set_input_shape(name, tuple(shape)):
            raise EngineError(
                f"the engine does not take {name} of shape {list(shape)}: {self._said()}"
            )
        if not self._context.set_tensor_address(name, address):
            raise EngineError(f"the engine has no tensor {name}: {self._said()}")

    def run(self, stream: int) -> None:
        if self._context.execute_async_v3(stream):
            return
        raise _failure("the engine does not run", self._said())


def _failure(what: str, said: str) -> Exception:
    """Memory that is used up is no fault of the engine's: others may give it back."""
    if "out of memory" in said.lower() or "outofmemory" in said.lower():
        return OutOfMemoryError(f"{what}: {said}")
    return EngineError(f"{what}: {said}")
