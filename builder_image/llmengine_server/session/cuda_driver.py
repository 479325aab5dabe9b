"""The CUDA driver behind `Driver`, by way of NVIDIA's own bindings; kernels are compiled at start.

Importable where cuda-bindings is installed; usable where a driver is.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import driver as cuda
from cuda.bindings import nvrtc
from numpy.typing import NDArray

from llmengine_server.session import EngineError, OutOfMemoryError, cuda_attention
from llmengine_server.session.cuda import Argument, Bytes, DeviceError, Memory

_SOURCE = Path(__file__).with_name("cuda_kernels.cu")
_KERNELS = ("survey", "choose", "move_rows", "move_state", "count")
_ATTENTION = Path(__file__).with_name("cuda_attention.cu")
# Capability from which on tensor cores multiply both of the types of 16 bits.
_TENSOR_CORES = (8, 0)


class CudaDriver:
    """Device 0 of those that this process sees. Raises EngineError when it cannot be used."""

    def __init__(self) -> None:
        try:
            _call(cuda.cuInit(0))
            self._device = _call(cuda.cuDeviceGet(0))
            # The context that TensorRT, which is written against the runtime API, uses too.
            self._context = _call(cuda.cuDevicePrimaryCtxRetain(self._device))
        except DeviceError as error:
            raise EngineError(
                f"no CUDA device can be used ({error}): the pod needs one nvidia.com/gpu, and its"
                " node a driver that is not older than the image's CUDA"
            ) from error
        self._thread = -1
        self.attach()
        self._allocated: set[int] = set()
        self._pinned: list[int] = []
        self._stream = _call(cuda.cuStreamCreate(cuda.CUstream_flags.CU_STREAM_NON_BLOCKING))
        self._module = _call(cuda.cuModuleLoadData(_compile(_SOURCE, _capability(self._device))))
        self._functions = _functions(self._module, _KERNELS)

    @property
    def stream(self) -> int:
        return int(self._stream)

    def attach(self) -> None:
        thread = threading.get_ident()
        if thread != self._thread:
            _call(cuda.cuCtxSetCurrent(self._context))
            self._thread = thread

    def memory(self) -> Memory:
        free, total = _call(cuda.cuMemGetInfo())
        return Memory(free=int(free), total=int(total))

    def allocate(self, size: int) -> int:
        address = int(_call(cuda.cuMemAlloc(size)))
        self._allocated.add(address)
        _call(cuda.cuMemsetD8Async(address, 0, size, self._stream))
        return address

    def pinned(self, size: int) -> Bytes:
        address = int(_call(cuda.cuMemHostAlloc(size, 0)))
        self._pinned.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def upload(self, address: int, source: NDArray[Any]) -> None:
        # From memory that is not pinned the driver takes a copy before it returns.
        _call(cuda.cuMemcpyHtoDAsync(address, source.ctypes.data, source.nbytes, self._stream))

    def download(self, target: Bytes, address: int) -> None:
        _call(cuda.cuMemcpyDtoHAsync(target.ctypes.data, address, target.nbytes, self._stream))

    def fill(self, address: int, word: int, count: int) -> None:
        _call(cuda.cuMemsetD32Async(address, word, count, self._stream))

    def launch(
        self, kernel: str, grid: tuple[int, int, int], threads: int, *arguments: Argument
    ) -> None:
        _launch(self._functions[kernel], grid, threads, self._stream, arguments)

    def capture(self, work: Callable[[], None]) -> CudaGraph:
        mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _call(cuda.cuStreamBeginCapture(self._stream, mode))
        try:
            work()
        except BaseException:
            # Ends the capture, whatever it says of what was captured.
            cuda.cuStreamEndCapture(self._stream)
            raise
        graph = _call(cuda.cuStreamEndCapture(self._stream))
        try:
            return CudaGraph(_call(cuda.cuGraphInstantiate(graph, 0)), self._stream)
        finally:
            _call(cuda.cuGraphDestroy(graph))

    def mark(self) -> CudaMark:
        return CudaMark(self._stream)

    def synchronize(self) -> None:
        _call(cuda.cuStreamSynchronize(self._stream))

    def close(self) -> None:
        """After a failure of the device nothing answers any more: what can be freed is."""
        self._thread = -1
        self.attach()
        for address in self._allocated:
            cuda.cuMemFree(address)
        for address in self._pinned:
            cuda.cuMemFreeHost(address)
        self._allocated.clear()
        self._pinned.clear()
        cuda.cuModuleUnload(self._module)
        cuda.cuStreamDestroy(self._stream)
        cuda.cuDevicePrimaryCtxRelease(self._device)


class AttentionModule:
    """A `Launcher` on the device whose context is current. Raises EngineError."""

    def __init__(self, heads: cuda_attention.Heads) -> None:
        device = _call(cuda.cuCtxGetDevice())
        # Sessions come and go; kernels stay as long as the process does.
        _call(cuda.cuDevicePrimaryCtxRetain(device))
        capability = _capability(device)
        defines = {
            "ELEMENT": cuda_attention.ELEMENTS.index(heads.dtype),
            "HEAD_DIM": heads.head_dim,
            "GROUP": heads.group,
        }
        self._tensor_cores = (
            capability >= _TENSOR_CORES and heads.dtype != "float32" and heads.head_dim % 16 == 0
        )
        names = ["append_rows", "attend_one", "attend_each"]
        if self._tensor_cores:
            names.append("attend_many")
            if heads.steps_by_tensor_cores:
                names.append("attend_step")
        module = _call(cuda.cuModuleLoadData(_compile(_ATTENTION, capability, defines)))
        self._functions = _functions(module, names)

    @property
    def tensor_cores(self) -> bool:
        return self._tensor_cores

    def __call__(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        threads: int,
        stream: int,
        *arguments: Argument,
    ) -> None:
        _launch(self._functions[kernel], grid, threads, cuda.CUstream(stream), arguments)


class CudaGraph:
    """See `Graph`."""

    def __init__(self, executable: Any, stream: Any) -> None:
        self._executable = executable
        self._stream = stream
        # What a first launch would wait for.
        _call(cuda.cuGraphUpload(executable, stream))

    def launch(self) -> None:
        _call(cuda.cuGraphLaunch(self._executable, self._stream))

    def close(self) -> None:
        cuda.cuGraphExecDestroy(self._executable)


class CudaMark:
    """See `Mark`."""

    def __init__(self, stream: Any) -> None:
        flags = cuda.CUevent_flags
        # A thread that waits in a loop would keep the other threads of the server from running.
        self._event = _call(
            cuda.cuEventCreate(flags.CU_EVENT_DISABLE_TIMING | flags.CU_EVENT_BLOCKING_SYNC)
        )
        self._stream = stream

    def record(self) -> None:
        _call(cuda.cuEventRecord(self._event, self._stream))

    def wait(self) -> None:
        _call(cuda.cuEventSynchronize(self._event))


def _capability(device: Any) -> tuple[int, int]:
    attribute = cuda.CUdevice_attribute
    major, minor = (
        _call(cuda.cuDeviceGetAttribute(which, device))
        for which in (
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    return major, minor


def _functions(module: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: _call(cuda.cuModuleGetFunction(module, name.encode())) for name in names}


def _launch(
    function: Any, grid: tuple[int, int, int], threads: int, stream: Any, arguments: Sequence[Any]
) -> None:
    values = tuple(argument.value or 0 for argument in arguments)
    types = tuple(type(argument) for argument in arguments)
    _call(cuda.cuLaunchKernel(function, *grid, threads, 1, 1, 0, stream, (values, types), 0))


def _compile(
    source: Path, capability: tuple[int, int], defines: Mapping[str, int] | None = None
) -> bytes:
    """Machine code of kernels. Raises EngineError."""
    architecture = "sm_{}{}".format(*capability)
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
    options += [f"-D{name}={value}".encode() for name, value in (defines or {}).items()]
    try:
        program = _compiled(
            nvrtc.nvrtcCreateProgram(source.read_bytes(), source.name.encode(), 0, [], [])
        )
    except RuntimeError as error:  # of the bindings, when the library is not there
        raise EngineError(
            f"CUDA's run-time compiler cannot be loaded ({error}): give the image libnvrtc"
        ) from error
    (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = b" " * _compiled(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise EngineError(
            f"{source.name} does not compile for {architecture}: {log.decode().strip()}"
        )
    code = bytes(_compiled(nvrtc.nvrtcGetCUBINSize(program)))
    _compiled(nvrtc.nvrtcGetCUBIN(program, code))
    return code


def _compiled(answer: tuple[Any, ...]) -> Any:
    status, *values = answer
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise EngineError(f"CUDA's run-time compiler failed: {status.name}")
    return values[0] if values else None


def _call(answer: tuple[Any, ...]) -> Any:
    status, *values = answer
    if status == cuda.CUresult.CUDA_SUCCESS:
        return values[0] if len(values) == 1 else values
    if status == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise OutOfMemoryError(_describe(status))
    raise DeviceError(_describe(status))


def _describe(status: Any) -> str:
    _, text = cuda.cuGetErrorString(status)
    return f"{status.name}: {text.decode() if text else 'no description'}"
