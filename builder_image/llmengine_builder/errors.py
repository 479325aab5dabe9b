"""Ways in which a build ends other than well: each has a reason, a sentence and an exit code.

The class says what the caller must do: only a TransientError is worth another try as it is.
"""

from __future__ import annotations

from typing import ClassVar

from llmengine.requests import BuildReason, ExitCode


class BuildError(Exception):
    """The build cannot go on.

    `reason` is one word for machines; `message` a sentence that says what happened, to which
    object, and what to do.
    """

    exit_code: ClassVar[ExitCode]

    def __init__(self, reason: BuildReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class BadInputError(BuildError):
    """What the user gave is wrong or damaged; the same input will fail again."""

    exit_code = ExitCode.BAD_INPUT


class UnsupportedError(BuildError):
    """The input may be fine, but this release cannot build it."""

    exit_code = ExitCode.UNSUPPORTED


class VerificationError(BuildError):
    """The engine does not compute what the model does; it is not published."""

    exit_code = ExitCode.VERIFICATION_FAILED


class WrongDeviceError(BuildError):
    """The build runs on a device other than the one that its request names."""

    exit_code = ExitCode.WRONG_DEVICE


class TransientError(BuildError):
    """Something outside the build failed, and may work later."""

    exit_code = ExitCode.TRANSIENT
