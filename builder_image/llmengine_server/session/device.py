"""Which GPU this really is: node labels say what was promised, only the device knows.

Asked by way of NVML, which needs no CUDA context and works before anything else is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from llmengine.architecture import Architecture, device_name
from llmengine.artifact import Device
from llmengine_server.session import EngineError


class WrongDeviceError(EngineError):
    """The device here is not the one that an engine is for."""


@dataclass(frozen=True)
class Gpu:
    """What a GPU says of itself; `divided`: it is a slice of one, or divided into slices (MIG)."""

    name: str
    compute_capability: tuple[int, int]
    driver: str
    memory_bytes: int
    divided: bool = False

    @property
    def architecture(self) -> Architecture:
        return Architecture(
            compute_capability=self.compute_capability, device=device_name(self.name)
        )

    def record(self) -> Device:
        """As a manifest tells it, the name as in architectures."""
        return Device(
            name=device_name(self.name),
            compute_capability="{}.{}".format(*self.compute_capability),
            driver=self.driver,
            memory_bytes=self.memory_bytes,
        )


class Gpus(Protocol):
    """The GPUs that this container was given."""

    def list(self) -> Sequence[Gpu]:
        """Raises WrongDeviceError when they cannot be asked."""
        ...


class NvmlGpus:
    """See `Gpus`."""

    def list(self) -> Sequence[Gpu]:
        with _nvml() as nvml:
            driver = str(nvml.nvmlSystemGetDriverVersion())
            return [_read(nvml, handle, driver) for handle in _handles(nvml)]


def used_memory() -> int:
    """Bytes of the first GPU here that are in use, by anybody. Raises WrongDeviceError."""
    with _nvml() as nvml:
        handles = _handles(nvml)
        if not handles:
            raise WrongDeviceError("there is no GPU here")
        return int(nvml.nvmlDeviceGetMemoryInfo(handles[0]).used)


def find_gpu(gpus: Gpus, wanted: Architecture) -> Gpu:
    """The GPU here, which is of the architecture that is wanted. Raises WrongDeviceError."""
    found = gpus.list()
    if not found:
        raise WrongDeviceError(
            f"this pod has no GPU, and its work is for {wanted}: it needs the resource"
            " nvidia.com/gpu"
        )
    gpu = found[0]
    if gpu.divided:
        raise WrongDeviceError(
            f"{gpu.name} is divided (MIG), which is not supported: use nodes with whole GPUs"
        )
    here = gpu.architecture
    same = here.compute_capability == wanted.compute_capability
    if not same or (wanted.device is not None and here.device != wanted.device):
        raise WrongDeviceError(
            f"this pod's work is for {wanted}, but its GPU is a {here}: correct the node's labels"
            " nvidia.com/gpu.product and gpu.compute.*, or the engine's nodeSelector"
        )
    return gpu


def visible(uuids: Sequence[str], named: str | None) -> list[int]:
    """Which of the driver's GPUs CUDA uses, in its order, by the variable CUDA_VISIBLE_DEVICES.

    It names indices, or beginnings of UUIDs, up to the first that is no GPU (CUDA C++ Programming
    Guide, "CUDA Environment Variables"); without it (`named` is None) all are used.
    """
    if named is None:
        return list(range(len(uuids)))
    found: list[int] = []
    for entry in (part.strip() for part in named.split(",")):
        if entry.isdigit() and int(entry) < len(uuids):
            index = int(entry)
        else:
            begins = [at for at, uuid in enumerate(uuids) if entry and uuid.startswith(entry)]
            if len(begins) != 1:
                break
            index = begins[0]
        found.append(index)
    return found


@contextmanager
def _nvml() -> Iterator[Any]:
    """NVML, which is left as it is: its end and its next start would take longer than asking."""
    import pynvml  # noqa: PLC0415 - images for CPUs have none

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise WrongDeviceError(
            f"no NVIDIA driver answers here ({error}): the pod needs the resource"
            " nvidia.com/gpu, and a runtimeClassName where the cluster's default runtime"
            " does not bring the driver"
        ) from error
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise WrongDeviceError(f"the NVIDIA driver does not tell its GPUs: {error}") from error


def _handles(nvml: Any) -> list[Any]:
    """Of the GPUs that CUDA uses: NVML itself tells of all that the container has."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    uuids = [str(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    return [handles[index] for index in visible(uuids, os.environ.get("CUDA_VISIBLE_DEVICES"))]


def _read(nvml: Any, handle: Any, driver: str) -> Gpu:
    return Gpu(
        name=str(nvml.nvmlDeviceGetName(handle)),
        compute_capability=tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)),
        driver=driver,
        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        divided=_is_divided(nvml, handle),
    )


def _is_divided(nvml: Any, handle: Any) -> bool:
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError_NotSupported:
        return False
    return bool(current)
