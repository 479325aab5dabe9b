"""Which engine options a backend can compile for an architecture: asked before a Job is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llmengine.api.v1alpha1 import (
    BackendName,
    CacheQuantization,
    DType,
    EngineOptions,
    Portability,
    WeightQuantization,
)
from llmengine.architecture import Architecture
from llmengine.key import resolve_dtype

# The backends of this release. An EngineRuntime may name others; engines that use it say so.
BACKENDS = (BackendName.ONNXRUNTIME, BackendName.TENSORRT)
# TensorRT's support matrix: Volta went with 10.5; bfloat16 needs the tensor cores of Ampere.
_TENSORRT_OLDEST = (7, 5)
_BFLOAT16_OLDEST = (8, 0)


@dataclass(frozen=True)
class _Case:
    backend: BackendName
    architecture: Architecture
    options: EngineOptions


_Check = Callable[[_Case], str | None]


def unsupported(
    backend: BackendName, architecture: Architecture, options: EngineOptions
) -> str | None:
    """Why this backend cannot compile these options for this architecture, or None."""
    case = _Case(backend, architecture, options)
    checks = (_backend, *_CHECKS.get(backend, ()))
    return next((sentence for check in checks if (sentence := check(case))), None)


def _backend(case: _Case) -> str | None:
    if case.backend in BACKENDS:
        return None
    return (
        f"this release has no backend {case.backend}: use an EngineRuntime with one of"
        f" {', '.join(BACKENDS)}"
    )


def _cpu(case: _Case) -> str | None:
    if case.architecture.is_cpu:
        return None
    return (
        f"{case.backend} compiles for CPUs, and {case.architecture} is a GPU: use a tensorrt"
        " runtime, or take it off spec.architectures"
    )


def _float32(case: _Case) -> str | None:
    dtype = resolve_dtype(case.options.dtype, case.architecture)
    if dtype is DType.FLOAT32:
        return None
    return (
        f"{case.backend} computes in float32, and spec.engine.dtype is {dtype}: write auto or"
        " float32"
    )


def _weights(case: _Case) -> str | None:
    weights = case.options.quantization.weights
    if weights is WeightQuantization.NONE:
        return None
    return f"{case.backend} has no {weights} weights: set spec.engine.quantization.weights to none"


def _kv_cache(case: _Case) -> str | None:
    kv_cache = case.options.quantization.kv_cache
    if kv_cache is CacheQuantization.NONE:
        return None
    return (
        f"{case.backend} has no {kv_cache} KV cache: set spec.engine.quantization.kvCache to none"
    )


def _one_device(case: _Case) -> str | None:
    if case.options.portability is Portability.DEVICE:
        return None
    return "spec.engine.portability is for GPUs: remove it, or use a tensorrt runtime"


def _gpu(case: _Case) -> str | None:
    if not case.architecture.is_cpu:
        return None
    return (
        f"{case.backend} compiles for GPUs, and {case.architecture} is a CPU: use an onnxruntime"
        " runtime, or take it off spec.architectures"
    )


def _new_enough(case: _Case) -> str | None:
    capability = case.architecture.compute_capability
    if capability is None or capability >= _TENSORRT_OLDEST:
        return None
    return (
        f"TensorRT compiles for compute capability 7.5 and up, and {case.architecture} has"
        f" {_written(capability)}: leave it out with spec.architectures, or with"
        " spec.serving.nodeSelector"
    )


def _bfloat16(case: _Case) -> str | None:
    capability = case.architecture.compute_capability
    dtype = resolve_dtype(case.options.dtype, case.architecture)
    if dtype is not DType.BFLOAT16 or capability is None or capability >= _BFLOAT16_OLDEST:
        return None
    return (
        f"bfloat16 needs compute capability 8.0, and {case.architecture} has"
        f" {_written(capability)}: set spec.engine.dtype to auto, which is float16 there, or to"
        " float16"
    )


def _written(capability: tuple[int, int]) -> str:
    return "{}.{}".format(*capability)


_CHECKS: Mapping[BackendName, tuple[_Check, ...]] = {
    BackendName.ONNXRUNTIME: (_cpu, _float32, _weights, _kv_cache, _one_device),
    BackendName.TENSORRT: (_gpu, _new_enough, _bfloat16, _weights, _kv_cache),
}
