"""What the process with the engine left behind is how the container ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmengine.last_words import TERMINATION_LOG_VARIABLE
from llmengine.requests import BuildFailure, ExitCode
from llmengine_server import refusal
from llmengine_server.session import EngineError
from llmengine_server.session.device import WrongDeviceError


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (WrongDeviceError("no driver answers here"), ExitCode.WRONG_DEVICE, "WrongDevice"),
        (EngineError("built by another version"), ExitCode.BAD_INPUT, "EngineUnsupported"),
    ],
)
def test_a_refusal_has_an_exit_code_and_a_sentence(
    error: EngineError,
    code: ExitCode,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(TERMINATION_LOG_VARIABLE, str(tmp_path / "last"))
    refusal.leave(tmp_path, error)
    assert refusal.speak(tmp_path) == code
    last = BuildFailure.model_validate_json((tmp_path / "last").read_text())
    assert last == BuildFailure(reason=reason, message=str(error))
