"""Bad input and faults on a real GPU: each ends as it is said to, and leaves the GPU free."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmengine.api.v1alpha1 import DType, EngineOptions
from llmengine.architecture import Architecture
from llmengine.artifact import Manifest
from llmengine_server.session import EngineError
from llmengine_server.session.device import used_memory
from llmengine_server.session.opening import open_session
from tests.contract.triton.server import Server
from tests.gpu.commands import Pods
from tests.gpu.hog import hog
from tests.gpu.machine import wait_for

_SLACK = 64 << 20
_CLIENTS = 32


def check(pods: Pods, model: str, options: EngineOptions, engine: Path) -> list[str]:
    """One line a fault. `engine`: a fetched engine of this machine. Raises AssertionError."""
    manifest = Manifest.parse((engine / "manifest.json").read_bytes())
    return [
        _wrong_label(pods, model, options),
        _too_large(pods, model, options),
        _truncated(engine, manifest),
        _other_version(engine, manifest),
        _no_room(engine, manifest),
        _neighbour(engine),
        _cancelled(pods, model, options),
    ]


def _wrong_label(pods: Pods, model: str, options: EngineOptions) -> str:
    wrong = replace(pods.target, architecture=Architecture.parse("sm_80/NVIDIA-A100-SXM4-80GB"))
    other = replace(pods, target=wrong)
    ended = other.build(other.request(model, options))
    assert (ended.code, ended.last["reason"]) == (13, "WrongDevice"), ended.last
    return f"a wrong GPU under the label: exit 13 in {ended.seconds:.1f} s: {ended.last['message']}"


def _too_large(pods: Pods, model: str, options: EngineOptions) -> str:
    huge = options.model_copy(
        update={
            "dtype": DType.FLOAT32,
            "max_batch_size": 256,
            "max_sequence_length": 8192,
        }
    )
    ended = pods.build(pods.request(model, huge))
    assert (ended.code, ended.last["reason"]) == (10, "GpuTooSmall"), ended.last
    return (
        f"an engine larger than the GPU: exit 10 in {ended.seconds:.1f} s: {ended.last['message']}"
    )


def _refused(open_it: Callable[[], object]) -> str:
    try:
        open_it()
    except EngineError as error:
        return str(error)
    raise AssertionError("the engine was loaded")


def _truncated(engine: Path, manifest: Manifest) -> str:
    folder = engine.with_name("truncated")
    folder.mkdir()
    plan = folder / "engine.plan"
    shutil.copyfile(engine / "engine.plan", plan)
    with plan.open("r+b") as file:
        file.truncate(plan.stat().st_size // 2)
    return f"a truncated plan: {_refused(lambda: open_session(folder, manifest))}"


def _other_version(engine: Path, manifest: Manifest) -> str:
    other = manifest.model_copy(update={"factors": {**manifest.factors, "backendVersion": "9.9.9"}})
    return f"another TensorRT version: {_refused(lambda: open_session(engine, other))}"


def _no_room(engine: Path, manifest: Manifest) -> str:
    with hog(manifest.size_bytes // 2):
        refusal = _refused(lambda: open_session(engine, manifest))
    assert "something else uses" in refusal, refusal
    return f"a GPU that somebody else has filled: {refusal}"


def _neighbour(engine: Path) -> str:
    """Somebody takes the last byte of the GPU while clients are served."""
    folder = engine.parent
    asked: dict[str, Any] = {"text_input": "Once upon a time", "max_tokens": 200, "end_id": -1}
    with Server(folder / "models", folder.name, folder) as server:
        alone = server.generate(**asked).json["text_output"]
        with hog(0), ThreadPoolExecutor(_CLIENTS) as clients:
            answers = list(clients.map(lambda _: server.generate(**asked), range(_CLIENTS)))
        statuses = {answer.status for answer in answers}
        assert statuses == {200}, statuses
        assert server.probe("--ready").returncode == 0
        equal = sum(answer.json["text_output"] == alone for answer in answers)
    return (
        f"no memory left while serving: {_CLIENTS} of {_CLIENTS} clients were answered, {equal} as"
        " one alone was before"
    )


def _cancelled(pods: Pods, model: str, options: EngineOptions) -> str:
    before = used_memory()
    process, last = pods.start_build(pods.request(model, options, revision="cancelled"))
    assert process.stdout is not None
    for line in process.stdout:
        said = json.loads(line)
        if said.get("phase") == "Compile":
            break
    wait_for(lambda: used_memory() > before + _SLACK, 60)
    process.send_signal(signal.SIGTERM)
    seconds = wait_for(lambda: used_memory() < before + _SLACK, 10)
    process.wait(10)
    assert json.loads(last.read_text())["reason"] == "Interrupted"
    return f"a build that was cancelled: the GPU is free after {seconds:.1f} s"
