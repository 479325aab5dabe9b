"""`llmengine-alive`: is the engine loop turning? Fast enough to be run every few seconds.

Triton itself answers "ready" long after the process with the engine died, and a probe that
generates would queue behind full slots and kill busy pods. So the loop leaves a heartbeat in a
file, and this reads it. Stands alone: it imports little, and nothing of ours.
"""

from __future__ import annotations

import os
import sys
import time

RUN_DIRECTORY = os.environ.get("LLMENGINE_RUN_DIRECTORY", "/run/llmengine")
# The heartbeat: process id of the loop and the time on the system's monotonic clock.
HEARTBEAT = "loop"
# Made by the supervisor when the pod is to stop: take nothing new, finish what runs. In it stands
# until when, in seconds of the system's monotonic clock.
DRAINING = "draining"
# Made by the loop when nothing runs any more.
DRAINED = "drained"
# Why the process with the engine does not serve it.
REFUSED = "refused"

MAX_AGE = 15.0
_HTTP_TIMEOUT = 2.0


def loop_process(directory: str) -> tuple[int, float] | None:
    """The loop's process id and the time of its last heartbeat; None before the first one."""
    try:
        with open(os.path.join(directory, HEARTBEAT)) as file:  # noqa: PTH118, PTH123
            process, beat = file.read().split()
        return int(process), float(beat)
    except (FileNotFoundError, ValueError):
        return None


def runs(process: int) -> bool:
    """False for a process that is gone, or dead and not yet collected (Triton collects none)."""
    try:
        with open(f"/proc/{process}/stat") as file:  # noqa: PTH123
            # The name is in parentheses and may hold anything; the state follows it.
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def loop_problem(directory: str, now: float, max_age: float) -> str | None:
    """What is wrong with the loop at `now` (seconds, monotonic clock), or None."""
    found = loop_process(directory)
    if found is None:
        return f"the engine loop has not started: {directory}/{HEARTBEAT} does not exist"
    process, beat = found
    if not runs(process):
        return f"the engine's process {process} died"
    if now - beat > max_age:
        return f"the engine loop stands still for {now - beat:.0f} s (at most {max_age:g} s)"
    return None


def readiness_problem(directory: str, port: int) -> str | None:
    """Why new requests should go elsewhere, or None."""
    if os.path.exists(os.path.join(directory, DRAINING)):  # noqa: PTH110, PTH118
        return "the server is shutting down"
    import socket  # noqa: PLC0415 - the liveness probe needs none

    try:
        with socket.create_connection(("127.0.0.1", port), _HTTP_TIMEOUT) as connection:
            connection.sendall(b"GET /v2/health/ready HTTP/1.0\r\nHost: localhost\r\n\r\n")
            status = connection.recv(64).split(b" ")[1:2]
    except OSError as error:
        return f"Triton does not answer on port {port}: {error}"
    return None if status == [b"200"] else f"Triton is not ready on port {port}"


def main() -> int:
    """Exit status 0: alive (with --ready: and ready). 1: not, and stderr says why."""
    arguments = sys.argv[1:]
    ready = "--ready" in arguments
    if ready:
        arguments.remove("--ready")
    max_age = MAX_AGE
    if arguments[:1] == ["--max-age"] and len(arguments) == 2:
        max_age = float(arguments[1])
    elif arguments:
        sys.stderr.write("usage: llmengine-alive [--ready] [--max-age SECONDS]\n")
        return 2
    problem = loop_problem(RUN_DIRECTORY, time.monotonic(), max_age)
    if problem is None and ready:
        port = int(os.environ.get("LLMENGINE_HTTP_PORT", "8000"))
        problem = readiness_problem(RUN_DIRECTORY, port)
    if problem:
        sys.stderr.write(f"{problem}\n")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
