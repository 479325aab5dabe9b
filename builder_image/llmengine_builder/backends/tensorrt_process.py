"""Runs the compiler's process: reports how far it is, and turns its end into an answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from llmengine.last_words import print_line
from llmengine_builder.backends import Report
from llmengine_builder.backends.tensorrt_compiler import Order, Result
from llmengine_builder.backends.tensorrt_failures import explain, explain_end

_COMMAND = (sys.executable, "-m", "llmengine_builder.backends.tensorrt_compiler")
_REMEMBERED = 12
_TOLD = ("WARNING", "ERROR", "INTERNAL_ERROR")


def run_compiler(
    order: Order, version: str, report: Report, say: Callable[[Any], None] = print_line
) -> Result:
    """Compile in a process of its own. Raises BuildError, or CompilerCrashError for a bug.

    `say`: takes what the compiler warns of, an object a line.
    """
    newest: deque[str] = deque(maxlen=_REMEMBERED)
    process = subprocess.Popen(
        _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    done: Result | None = None
    failed: list[str] | None = None
    try:
        process.stdin.write(order.serialize())
        process.stdin.close()
        for line in process.stdout:
            match _parsed(line):
                case str(text) if text:
                    # What aborts a process says so on stderr, if at all.
                    newest.append(text)
                case {"percent": int(percent)}:
                    report(percent)
                case {"log": str(text), "severity": str(severity)} if severity in _TOLD:
                    newest.append(text)
                    say({"tensorrt": severity, "message": text[:1000]})
                case {"done": dict(fields)}:
                    done = Result(**fields)
                case {"failed": list(messages)}:
                    failed = [str(message) for message in messages]
        status = process.wait()
    except BrokenPipeError:
        status = process.wait()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    if failed is not None:
        raise explain(failed, version)
    if done is None or status != 0:
        raise explain_end(status, list(newest), version)
    report(100)
    return done


def _parsed(line: bytes) -> Any:
    """A line's object, or its text where it is none: libraries write too."""
    try:
        return json.loads(line)
    except ValueError:
        return line.decode(errors="replace").strip()
