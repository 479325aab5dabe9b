"""`llmengine-serve`: starts tritonserver and stays as its parent.

Four things Triton does not do by itself: end when the process with the engine is dead; wait for
generations that run or queue but not for idle connections; send elsewhere what comes meanwhile, and
what there is no time for; tell the pod's status why an engine is not served.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

from llmengine_server import alive

# Triton waits this long for connections that clients keep open, then unloads and exits.
TRITON_EXIT_SECONDS = 2
# From SIGTERM to Triton until it is killed.
_STOP_SECONDS = TRITON_EXIT_SECONDS + 2
# Until then every client must have been told how its request ended: a step may be under way.
_ANSWER_SECONDS = 1
_LOOK_SECONDS = 0.25


def main() -> int:
    """The container's main process. Returns tritonserver's exit status, 0 after a SIGTERM.

    Where the engine is refused: one of llmengine.requests.ExitCode.
    """
    options = _options().parse_args()
    run_directory = Path(alive.RUN_DIRECTORY)
    prepare(run_directory, options.http_port)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    triton = subprocess.Popen(command(options), env=environment(options))
    try:
        status = Supervisor(triton, run_directory, options.exit_timeout).run(stop)
    finally:
        triton.kill()
        triton.wait()
        # The stub is Triton's child, and nobody else ends it when Triton was killed.
        found = alive.loop_process(str(run_directory))
        if found and alive.runs(found[0]):
            os.kill(found[0], signal.SIGKILL)
        remove_shared_memory(options.http_port)
    if not (run_directory / alive.REFUSED).exists():
        return status
    # Its imports would cost every server's parent some 40 MB.
    from llmengine_server import refusal  # noqa: PLC0415

    return refusal.speak(run_directory)


class Supervisor:
    """Watches one tritonserver until it ends, or ends it.

    `exit_timeout`: seconds from the wish to stop until the process must be gone.
    """

    def __init__(
        self, triton: subprocess.Popen[bytes], run_directory: Path, exit_timeout: float
    ) -> None:
        self._triton = triton
        self._directory = run_directory
        self._exit_timeout = exit_timeout

    def run(self, stop: threading.Event) -> int:
        """The exit status of the container."""
        while not stop.wait(_LOOK_SECONDS):
            status = self._triton.poll()
            if status is not None:
                _say(f"tritonserver ended with status {status}")
                return status or 1  # nobody asked it to
            if problem := self._dead_loop():
                _say(f"{problem}: the container ends, to be started anew")
                return 1
        self._drain(time.monotonic() + self._exit_timeout - _STOP_SECONDS)
        self._triton.terminate()
        try:
            self._triton.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _say("tritonserver did not end in time and is killed")
        return 0

    def _drain(self, deadline: float) -> None:
        """Wait until nothing runs any more; what cannot be finished is refused before."""
        if alive.loop_process(str(self._directory)) is None:
            return
        self._ask_for_an_end(deadline - _ANSWER_SECONDS)
        _say("stopping: what runs or queues is finished as time allows, nothing new is taken")
        while time.monotonic() < deadline:
            if (self._directory / alive.DRAINED).exists():
                return
            now = time.monotonic()
            if self._triton.poll() is not None or alive.loop_problem(
                str(self._directory), now, alive.MAX_AGE
            ):
                return
            time.sleep(_LOOK_SECONDS / 5)
        _say("some requests are not answered within LLMENGINE_EXIT_TIMEOUT and are cut off")

    def _ask_for_an_end(self, until: float) -> None:
        wish = self._directory / alive.DRAINING
        written = wish.with_suffix(".new")
        written.write_text(f"{until:.3f}\n")
        written.rename(wish)  # whoever sees it can read it

    def _dead_loop(self) -> str | None:
        found = alive.loop_process(str(self._directory))
        if found is None or alive.runs(found[0]):
            return None
        return f"the engine's process {found[0]} died"


def prepare(run_directory: Path, http_port: int) -> None:
    """Remove what an earlier container of the same pod left behind."""
    run_directory.mkdir(parents=True, exist_ok=True)
    for name in (alive.HEARTBEAT, alive.DRAINING, alive.DRAINED, alive.REFUSED):
        (run_directory / name).unlink(missing_ok=True)
    remove_shared_memory(http_port)


def remove_shared_memory(http_port: int) -> None:
    """A killed Triton leaves its region, and a pod's restarts would fill its memory with them."""
    for region in Path("/dev/shm").glob(f"{shm_prefix(http_port)}*"):  # noqa: S108 - Triton's place
        region.unlink(missing_ok=True)


def shm_prefix(http_port: int) -> str:
    """Names this server's shared memory: on one machine no two servers have one port."""
    return f"llmengine-{http_port}-"


def command(options: argparse.Namespace) -> list[str]:
    """tritonserver's command line."""
    root = Path(options.triton)
    return [
        str(root / "bin/tritonserver"),
        f"--model-repository={options.model_repository}",
        f"--backend-directory={root / 'backends'}",
        "--model-control-mode=none",
        "--strict-readiness=true",
        "--disable-auto-complete-config",
        "--allow-gpu-metrics=false",
        "--pinned-memory-pool-byte-size=0",
        f"--exit-timeout-secs={TRITON_EXIT_SECONDS}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix(options.http_port)}",
        f"--http-address={options.address}",
        f"--http-port={options.http_port}",
        f"--grpc-address={options.address}",
        f"--grpc-port={options.grpc_port}",
        f"--metrics-address={options.address}",
        f"--metrics-port={options.metrics_port}",
    ]


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Makes Triton's Python stub find this very Python, its library and its packages."""
    libraries = [f"{options.triton}/lib", str(sysconfig.get_config_var("LIBDIR"))]
    return {
        **os.environ,
        "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ.get('PATH', '')}",
        "LD_LIBRARY_PATH": ":".join([*libraries, os.environ.get("LD_LIBRARY_PATH", "")]).strip(":"),
        "LLMENGINE_RUN_DIRECTORY": alive.RUN_DIRECTORY,
    }


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llmengine-serve", description=__doc__)
    variables = os.environ
    parser.add_argument("--model-repository", default="/models")
    parser.add_argument("--address", default="0.0.0.0", help="address to listen on")  # noqa: S104
    parser.add_argument(
        "--http-port", type=int, default=int(variables.get("LLMENGINE_HTTP_PORT", "8000"))
    )
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--metrics-port", type=int, default=8002)
    parser.add_argument(
        "--triton", default=variables.get("LLMENGINE_TRITON_DIRECTORY", "/opt/tritonserver")
    )
    parser.add_argument(
        "--exit-timeout",
        type=float,
        default=float(variables.get("LLMENGINE_EXIT_TIMEOUT", "50")),
        help="seconds that a SIGTERM leaves for running generations and the exit",
    )
    return parser


def _say(sentence: str) -> None:
    sys.stderr.write(f"llmengine-serve: {sentence}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
