"""Why the engine is not served, as the container's last words.

Only the process with the engine knows, and Triton buries what that says under its own log, of
which a pod's status keeps the end.
"""

from __future__ import annotations

import os
from pathlib import Path

from llmengine.last_words import Ending, LastWords
from llmengine.requests import BuildFailure, BuildReason, ExitCode
from llmengine_server import alive
from llmengine_server.session import EngineError
from llmengine_server.session.device import WrongDeviceError


def leave(directory: Path, error: EngineError) -> None:
    """For whoever started Triton."""
    wrong = isinstance(error, WrongDeviceError)
    reason = BuildReason.WRONG_DEVICE if wrong else BuildReason.ENGINE_UNSUPPORTED
    words = BuildFailure(reason=reason, message=str(error))
    (directory / alive.REFUSED).write_text(words.model_dump_json(by_alias=True))


def speak(directory: Path) -> int:
    """Say what was left there. Returns the exit code that goes with it."""
    words = BuildFailure.model_validate_json((directory / alive.REFUSED).read_text())
    wrong = words.reason == BuildReason.WRONG_DEVICE
    code = ExitCode.WRONG_DEVICE if wrong else ExitCode.BAD_INPUT
    return LastWords(os.environ).speak(Ending(int(code), words))
