"""The heartbeat that the loop leaves and the probe reads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from llmengine_server import alive
from llmengine_server.heartbeat import Heartbeat


def probe(directory: Path, *arguments: str, port: int = 9) -> subprocess.CompletedProcess[str]:
    """`llmengine-alive` as the image runs it."""
    return subprocess.run(
        [sys.executable, "-IS", alive.__file__, *arguments],
        env={"LLMENGINE_RUN_DIRECTORY": str(directory), "LLMENGINE_HTTP_PORT": str(port)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def http_status() -> Iterator[tuple[int, list[int]]]:
    """A port and the status that /v2/health/ready answers there."""
    statuses = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses[0] if self.path == "/v2/health/ready" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, statuses
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_turning_loop_is_alive(tmp_path: Path) -> None:
    Heartbeat(tmp_path, time.monotonic).beat()
    assert probe(tmp_path).returncode == 0


def test_a_loop_that_never_started_is_not(tmp_path: Path) -> None:
    result = probe(tmp_path)
    assert result.returncode == 1
    assert "the engine loop has not started" in result.stderr


def test_a_loop_that_stands_still_is_dead_after_max_age(tmp_path: Path) -> None:
    Heartbeat(tmp_path, lambda: time.monotonic() - 20).beat()
    result = probe(tmp_path)
    assert result.returncode == 1
    assert "the engine loop stands still for 20 s (at most 15 s)" in result.stderr
    assert probe(tmp_path, "--max-age", "60").returncode == 0


def test_a_dead_process_is_seen_at_once_even_when_nobody_collected_it(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    (tmp_path / alive.HEARTBEAT).write_text(f"{child.pid} {time.monotonic()}\n")
    assert probe(tmp_path).returncode == 0
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    result = probe(tmp_path)
    child.wait()
    assert result.returncode == 1
    assert f"the engine's process {child.pid} died" in result.stderr
    assert "died" in probe(tmp_path).stderr


def test_a_pulse_is_written_a_few_times_a_second_at_most(tmp_path: Path) -> None:
    now = [100.0]
    heartbeat = Heartbeat(tmp_path, lambda: now[0])
    seen = []
    for _ in range(10):
        heartbeat.beat()
        seen.append(alive.loop_process(str(tmp_path)))
        now[0] += 0.11
    assert seen[0] == (os.getpid(), 100.0)
    assert len(set(seen)) == 5


def test_the_wish_to_drain_is_seen_and_its_end_is_told(tmp_path: Path) -> None:
    now = [100.0]
    heartbeat = Heartbeat(tmp_path, lambda: now[0])
    seen = []
    for _ in range(2):
        heartbeat.beat()
        seen.append(heartbeat.deadline)
        (tmp_path / alive.DRAINING).write_text("160.250\n")
        now[0] += 1
    assert seen == [None, 160.25]
    heartbeat.tell_drained()
    assert (tmp_path / alive.DRAINED).exists()


def test_ready_asks_triton_too(tmp_path: Path, http_status: tuple[int, list[int]]) -> None:
    port, statuses = http_status
    Heartbeat(tmp_path, time.monotonic).beat()
    assert probe(tmp_path, "--ready", port=port).returncode == 0
    statuses[0] = 400
    result = probe(tmp_path, "--ready", port=port)
    assert (result.returncode, result.stderr) == (1, f"Triton is not ready on port {port}\n")
    assert probe(tmp_path, port=port).returncode == 0


def test_ready_fails_when_triton_is_not_there(tmp_path: Path) -> None:
    Heartbeat(tmp_path, time.monotonic).beat()
    assert "Triton does not answer on port 9" in probe(tmp_path, "--ready").stderr


def test_a_draining_server_is_alive_but_not_ready(
    tmp_path: Path, http_status: tuple[int, list[int]]
) -> None:
    Heartbeat(tmp_path, time.monotonic).beat()
    (tmp_path / alive.DRAINING).touch()
    assert probe(tmp_path).returncode == 0
    result = probe(tmp_path, "--ready", port=http_status[0])
    assert (result.returncode, result.stderr) == (1, "the server is shutting down\n")


def test_a_wrong_argument_is_told() -> None:
    result = probe(Path("/"), "--reddy")
    assert result.returncode == 2
    assert "usage: llmengine-alive" in result.stderr
