"""Opens the engine in a folder with the session of the backend that built it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmengine.architecture import Architecture
from llmengine.artifact import Cache, Limits, Manifest
from llmengine.quantity import readable
from llmengine_server.session import EngineError, OutOfMemoryError, Session
from llmengine_server.session.device import Gpu, Gpus, NvmlGpus, find_gpu
from llmengine_server.session.tensorrt_library import installed_version

GRAPH = "graph.onnx"
WEIGHTS = "model"
PLAN = "engine.plan"


def open_session(
    directory: Path, manifest: Manifest, threads: int | None = None, gpus: Gpus | None = None
) -> Session:
    """The session of the engine in `directory`, which holds the files that `manifest` lists.

    `threads`: CPU threads of a step; None takes what the container may use. `gpus`: those that
    the container has; None asks the driver. Raises EngineError for an engine that this image, or
    this device, cannot serve.
    """
    backend = manifest.factors.get("backend")
    if backend == "onnxruntime":
        return _open_onnxruntime(directory, manifest, threads)
    if backend == "tensorrt" and installed_version() is not None:
        return _open_tensorrt(directory, manifest, gpus or NvmlGpus())
    raise EngineError(
        f"engine {manifest.key[:12]} was built by the backend {backend}, which this image cannot"
        " serve: give its EngineRuntime the image of that backend"
    )


def _open_onnxruntime(directory: Path, manifest: Manifest, threads: int | None) -> Session:
    # Only the image of this backend has ONNX Runtime.
    from llmengine_server.session.onnxruntime import (  # noqa: PLC0415
        VERSION,
        OnnxRuntimeSession,
        start_runtime,
    )

    built = manifest.factors.get("backendVersion")
    if built != VERSION:
        raise EngineError(
            f"engine {manifest.key[:12]} was built by ONNX Runtime {built}, but this image has"
            f" {VERSION}: give its EngineRuntime the image of version {built}"
        )
    try:
        graph = (directory / GRAPH).read_bytes()
    except OSError as error:
        raise EngineError(f"{directory} holds no graph: {error}") from error
    return OnnxRuntimeSession(
        start_runtime(graph, directory / WEIGHTS, threads),
        cache=manifest.cache,
        limits=manifest.limits,
        vocabulary=manifest.vocabulary,
    )


def _open_tensorrt(directory: Path, manifest: Manifest, gpus: Gpus) -> Session:
    built, here = manifest.factors.get("backendVersion"), installed_version()
    if built != here:
        raise EngineError(
            f"engine {manifest.key[:12]} was built by TensorRT {built}, but this image has {here}:"
            f" give its EngineRuntime the image of version {built}"
        )
    gpu = find_gpu(gpus, built_for(manifest))
    return open_plan(directory / PLAN, manifest.cache, manifest.limits, manifest.vocabulary, gpu)


def built_for(manifest: Manifest) -> Architecture:
    """The GPU that an engine is tied to, by its factors; its name only where it is tied to that."""
    factors = manifest.factors
    capability = str(factors.get("architecture.computeCapability", "0.0")).split(".")
    device = factors.get("architecture.device")
    return Architecture(
        compute_capability=(int(capability[0]), int(capability[1])),
        device=None if device is None else str(device),
    )


def open_plan(plan: Path, cache: Cache, limits: Limits, vocabulary: int, gpu: Gpu) -> Session:
    """A session over a TensorRT plan. Raises EngineError, also for one that the GPU is too small
    for."""
    # Only the image of this backend has TensorRT and the bindings of CUDA.
    from llmengine_server.session.cuda_driver import CudaDriver  # noqa: PLC0415
    from llmengine_server.session.tensorrt import TensorRtSession  # noqa: PLC0415
    from llmengine_server.session.tensorrt_engine import TensorRtEngine  # noqa: PLC0415
    from llmengine_server.session.tensorrt_memory import Needs, check_memory  # noqa: PLC0415

    needs = Needs(
        engine=plan.stat().st_size, scratch=0, cache=cache, limits=limits, vocabulary=vocabulary
    )
    name = gpu.record().name
    check_memory(needs, name, gpu.memory_bytes)
    driver = CudaDriver()
    try:
        engine = TensorRtEngine(plan)
        check_memory(replace(needs, scratch=engine.scratch_bytes), name, gpu.memory_bytes)
        return TensorRtSession(driver, engine, cache=cache, limits=limits, vocabulary=vocabulary)
    except OutOfMemoryError as error:
        free = readable(driver.memory().free)
        driver.close()
        raise EngineError(
            f"the GPU has no memory left for the engine ({error}; {free} are free): something else"
            f" uses {name} too, and engines take a GPU for themselves"
        ) from error
    except BaseException:
        driver.close()
        raise
