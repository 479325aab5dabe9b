"""Which engine options a backend can compile for an architecture: asked before a Job is spent."""

from __future__ import annotations

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
BACKENDS = (BackendName.ONNXRUNTIME,)


@dataclass(frozen=True)
class _Case:
    backend: BackendName
    architecture: Architecture
    options: EngineOptions


def unsupported(
    backend: BackendName, architecture: Architecture, options: EngineOptions
) -> str | None:
    """Why this backend cannot compile these options for this architecture, or None."""
    case = _Case(backend, architecture, options)
    return next((sentence for check in _CHECKS if (sentence := check(case))), None)


def _backend(case: _Case) -> str | None:
    if case.backend in BACKENDS:
        return None
    return (
        f"this release has no backend {case.backend}: use an EngineRuntime with one of"
        f" {', '.join(BACKENDS)}"
    )


def _architecture(case: _Case) -> str | None:
    if case.architecture.is_cpu:
        return None
    return (
        f"{case.backend} compiles for CPUs, and {case.architecture} is a GPU: use a tensorrt"
        " runtime, or take it off spec.architectures"
    )


def _dtype(case: _Case) -> str | None:
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


def _portability(case: _Case) -> str | None:
    if case.options.portability is Portability.DEVICE:
        return None
    return "spec.engine.portability is for GPUs: remove it, or use a tensorrt runtime"


_CHECKS = (_backend, _architecture, _dtype, _weights, _kv_cache, _portability)
