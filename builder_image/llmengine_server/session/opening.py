"""Opens the engine in a folder with the session of the backend that built it."""

from __future__ import annotations

from pathlib import Path

from llmengine.artifact import Manifest
from llmengine_server.session import EngineError, Session

GRAPH = "graph.onnx"
WEIGHTS = "model"


def open_session(directory: Path, manifest: Manifest, threads: int | None = None) -> Session:
    """The session of the engine in `directory`, which holds the files that `manifest` lists.

    `threads`: CPU threads of a step; None takes what the container may use. Raises EngineError
    for an engine that this image cannot serve.
    """
    backend = manifest.factors.get("backend")
    if backend == "onnxruntime":
        return _open_onnxruntime(directory, manifest, threads)
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
