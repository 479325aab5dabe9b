"""How a build or a fetch ends: an exit code, one line for the log, and a termination message.

A kubelet shows the message in the pod's status, so it is cut to fit and holds no secret.
"""

from __future__ import annotations

import errno
import json
import sys
import threading
import traceback
from bisect import bisect_right
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llmengine.requests import (
    TERMINATION_MESSAGE_BYTES,
    BuildFailure,
    BuildReason,
    BuildResult,
    ExitCode,
)
from llmengine.store import DiskFullError, StoreError

TERMINATION_LOG_VARIABLE = "LLMENGINE_TERMINATION_LOG"
_TERMINATION_LOG = "/dev/termination-log"
_SECRET_VARIABLES = ("SECRET_ACCESS_KEY", "SESSION_TOKEN", "HF_TOKEN")
_SHORTEST_SECRET = 6
_FULL = (errno.ENOSPC, errno.EDQUOT)
_BUG = 1


@dataclass(frozen=True)
class Ending:
    """An exit code and the words that go with it."""

    code: int
    words: BuildResult | BuildFailure

    @classmethod
    def failure(cls, code: ExitCode, reason: str, message: str) -> Ending:
        return cls(int(code), BuildFailure(reason=reason, message=message))

    @classmethod
    def of(cls, error: BaseException, disk: BuildReason = BuildReason.DISK_FULL) -> Ending:
        """What an exception means that nobody has explained; `disk` is the reason for a full one.

        Only an unreachable store is worth another try as it is.
        """
        if isinstance(error, StoreError):
            code = ExitCode.TRANSIENT if error.retry else ExitCode.BAD_INPUT
            return cls.failure(code, error.reason, str(error))
        if isinstance(error, DiskFullError):
            return cls.failure(ExitCode.BAD_INPUT, disk, str(error))
        if isinstance(error, OSError) and error.errno in _FULL:
            message = f"the disk of {error.filename or 'this pod'} is full: give the pod more disk"
            return cls.failure(ExitCode.BAD_INPUT, disk, message)
        if isinstance(error, MemoryError):
            message = "the process ran out of memory: raise its memory limit"
            return cls.failure(ExitCode.BAD_INPUT, BuildReason.MEMORY_TOO_SMALL, message)
        where = traceback.extract_tb(error.__traceback__)
        at = f" at {Path(where[-1].filename).name}:{where[-1].lineno}" if where else ""
        message = f"{type(error).__name__}{at}: {error}; this is a bug, its log has the rest"
        return cls(_BUG, BuildFailure(reason=BuildReason.BUG, message=message))


class LastWords:
    """Writes how a process ends, once: who comes second, such as SIGTERM, is not heard."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._path = Path(environment.get(TERMINATION_LOG_VARIABLE, _TERMINATION_LOG))
        self._hide = redactor(environment)
        self._lock = threading.Lock()
        self._code: int | None = None

    def speak(self, ending: Ending) -> int:
        """Print the words as a line of JSON, and leave them where the kubelet looks.

        Returns the exit code: that of the ending that was spoken first.
        """
        with self._lock:
            if self._code is not None:
                return self._code
            self._code = ending.code
            words = ending.words
            if isinstance(words, BuildFailure):
                words = words.model_copy(update={"message": self._hide(words.message)})
            print_line(words.model_dump(by_alias=True))
            # Outside a pod there is no such file, and the line above says it all.
            with suppress(OSError):
                self._path.write_bytes(fitting(words))
            return self._code

    def log(self, error: BaseException) -> None:
        """The whole traceback, for whoever mends the bug."""
        text = "".join(traceback.format_exception(error))
        sys.stderr.write(self._hide(text))


def fitting(words: BuildResult | BuildFailure) -> bytes:
    """The words as JSON of at most TERMINATION_MESSAGE_BYTES.

    A message is cut short if need be; warnings, which the manifest has too, are left out.
    """
    data = words.model_dump_json(by_alias=True).encode()
    if len(data) <= TERMINATION_MESSAGE_BYTES:
        return data
    if isinstance(words, BuildResult):
        return words.model_copy(update={"warnings": ()}).model_dump_json(by_alias=True).encode()

    def cut(length: int) -> bytes:
        short = words.model_copy(update={"message": words.message[:length] + "..."})
        return short.model_dump_json(by_alias=True).encode()

    # Searched for, because a letter may take one byte of JSON, or six.
    lengths = range(len(words.message))
    first_too_long = bisect_right(
        lengths, TERMINATION_MESSAGE_BYTES, key=lambda length: len(cut(length))
    )
    return cut(max(first_too_long - 1, 0))


def redactor(environment: Mapping[str, str]) -> Callable[[str], str]:
    """Takes the values of secret variables out of any text."""
    secrets = {
        value.strip()
        for name, value in environment.items()
        if name.endswith(_SECRET_VARIABLES) and len(value.strip()) >= _SHORTEST_SECRET
    }

    def hide(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, "***")
        return text

    return hide


def print_line(fields: Mapping[str, object]) -> None:
    """One line of JSON on stdout."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()
