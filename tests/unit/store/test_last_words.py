"""The end of a process: one exit code, one line, and a message that a kubelet can show."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmengine.last_words import Ending, LastWords, fitting, redactor
from llmengine.requests import BuildFailure, BuildReason, BuildResult, ExitCode
from llmengine.store import (
    DiskFullError,
    ManifestMismatchError,
    StoreDeniedError,
    StoreUnreachableError,
)

RESULT = BuildResult(key="a" * 64, manifest_digest="sha256:" + "b" * 64, size_bytes=1, seconds=2)


@pytest.mark.parametrize(
    ("error", "code", "reason", "message"),
    [
        pytest.param(
            StoreUnreachableError("away"), 20, "StoreUnreachable", "away", id="worth another try"
        ),
        pytest.param(StoreDeniedError("no"), 10, "StoreDenied", "no", id="not before it is mended"),
        pytest.param(ManifestMismatchError("x"), 10, "EngineCorrupted", "x", id="corrupted"),
        pytest.param(DiskFullError("full"), 10, "ScratchTooSmall", "full", id="too small a disk"),
        pytest.param(
            OSError(errno.ENOSPC, "No space left", "/scratch/x"),
            10,
            "ScratchTooSmall",
            "the disk of /scratch/x is full: give the pod more disk",
            id="a disk that filled up",
        ),
        pytest.param(
            MemoryError(), 10, "MemoryTooSmall", "the process ran out of memory", id="memory"
        ),
        pytest.param(ValueError("odd"), 1, "Bug", "ValueError: odd; this is a bug", id="a bug"),
    ],
)
def test_an_exception_has_an_ending(error: Exception, code: int, reason: str, message: str) -> None:
    ending = Ending.of(error, disk=BuildReason.SCRATCH_TOO_SMALL)
    assert isinstance(ending.words, BuildFailure)
    assert (ending.code, ending.words.reason) == (code, reason)
    assert ending.words.message.startswith(message)


def test_a_bug_says_where_it_is() -> None:
    try:
        json.loads("{")
    except ValueError as error:
        words = Ending.of(error).words
    assert isinstance(words, BuildFailure)
    assert "JSONDecodeError at decoder.py:" in words.message


def test_words_are_said_and_left_for_the_kubelet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "termination-log"
    words = LastWords({"LLMENGINE_TERMINATION_LOG": str(log)})
    assert words.speak(Ending(ExitCode.OK, RESULT)) == 0
    assert BuildResult.model_validate_json(log.read_bytes()) == RESULT
    assert json.loads(capsys.readouterr().out) == json.loads(log.read_text())


def test_only_the_first_words_count(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    words = LastWords({"LLMENGINE_TERMINATION_LOG": str(log)})
    interrupted = Ending.failure(ExitCode.TRANSIENT, "Interrupted", "stopped")
    assert words.speak(Ending(ExitCode.OK, RESULT)) == 0
    assert words.speak(interrupted) == 0
    assert BuildResult.model_validate_json(log.read_bytes()) == RESULT


def test_outside_a_pod_nothing_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    words = LastWords({"LLMENGINE_TERMINATION_LOG": "/nonexistent/termination-log"})
    assert words.speak(Ending.failure(ExitCode.BAD_INPUT, "Bad", "a sentence")) == 10
    assert json.loads(capsys.readouterr().out) == {"reason": "Bad", "message": "a sentence"}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("x" * 5000, id="plain letters"),
        pytest.param("ü" * 5000, id="letters of two bytes"),
        pytest.param('"' * 5000, id="letters that are escaped"),
        pytest.param("\x00" * 5000, id="letters that are escaped at length"),
    ],
)
def test_a_message_is_cut_to_what_a_kubelet_keeps(text: str) -> None:
    data = fitting(BuildFailure(reason="Bad", message="It begins so. " + text))
    assert len(data) <= 2048
    words = BuildFailure.model_validate_json(data)
    assert words.message.startswith("It begins so. ")
    assert words.message.endswith("...")


def test_a_message_that_fits_is_left_alone() -> None:
    words = BuildFailure(reason="Bad", message="x" * 2000)
    assert BuildFailure.model_validate_json(fitting(words)) == words


def test_secrets_are_taken_out_of_whatever_is_said() -> None:
    hide = redactor(
        {
            "STORE_AWS_SECRET_ACCESS_KEY": "store-secret\n",
            "MODEL_AWS_SESSION_TOKEN": "session-token",
            "MODEL_HF_TOKEN": "hf_secret",
            "STORE_AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
            "OTHER_HF_TOKEN": "",
        }
    )
    assert hide("AKIAEXAMPLE store-secret session-token hf_secret x") == "AKIAEXAMPLE *** *** *** x"


def test_sigterm_ends_a_process_that_is_busy_in_c() -> None:
    script = (
        "import hashlib\n"
        "from llmengine.interruption import on_sigterm\n"
        "on_sigterm(lambda: print('told to stop', flush=True) or 20)\n"
        "print('busy', flush=True)\n"
        "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == "busy\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "told to stop\n"
        assert process.wait(5) == 20
