"""A plan is loaded by a TensorRT that works, or there is a sentence."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmengine_server.session import EngineError, tensorrt_engine
from llmengine_server.session.tensorrt_engine import TensorRtEngine


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class Logger:
    Severity = Severity


class Library(SimpleNamespace):
    """A TensorRT that says something when it starts, and then loads anything, or nothing."""

    def __init__(self, severity: Severity, text: str, engine: object) -> None:
        def runtime(logger: Any) -> SimpleNamespace:
            logger.log(severity, text)
            return SimpleNamespace(deserialize_cuda_engine=lambda data: engine)

        super().__init__(ILogger=Logger, Runtime=runtime, __version__="11.2.1.2")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "engine.plan"
    path.write_bytes(b"ftrt" + bytes(100))
    return path


def use(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_engine, "load_tensorrt", lambda: library)
    monkeypatch.setattr(tensorrt_engine, "register_attention", lambda: None)


def test_a_runtime_that_did_not_start_is_not_used(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT hands out an object all the same, and ends the process when that is asked."""
    library = Library(Severity.ERROR, "CUDA initialization failure with error: 35", object())
    use(library, monkeypatch)
    with pytest.raises(EngineError, match=r"11.2.1.2 does not start: .* error: 35; is the node's"):
        TensorRtEngine(plan)


def test_a_warning_is_no_failure(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SimpleNamespace(device_memory_size_v2=7)
    use(Library(Severity.WARNING, "CUDA lazy loading is not enabled", engine), monkeypatch)
    assert TensorRtEngine(plan).scratch_bytes == 7


def test_a_plan_that_is_not_loaded_is_refused_with_what_tensorrt_says(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(Library(Severity.WARNING, "built by another version", None), monkeypatch)
    with pytest.raises(EngineError, match=r"does not load engine\.plan: built by another version"):
        TensorRtEngine(plan)


def test_what_is_no_plan_is_not_given_to_tensorrt(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(Library(Severity.INFO, "", pytest.fail), monkeypatch)
    plan.write_bytes(b"{}")
    with pytest.raises(EngineError, match=r"engine\.plan is no TensorRT plan"):
        TensorRtEngine(plan)
