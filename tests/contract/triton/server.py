"""`llmengine-serve` as the container runs it, as a plain process on ports of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, Self

from llmengine_server import alive
from tests.contract.triton import tritonserver

ALIVE = [sys.executable, "-IS", alive.__file__]
START_SECONDS = 60


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def eventually(holds: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait until something holds; the seconds that it took. Raises AssertionError."""
    started = time.monotonic()
    while not holds():
        waited = time.monotonic() - started
        assert waited < seconds, f"{what}: not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - started


@dataclass
class Answer:
    """An HTTP answer: its status and body."""

    status: int
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed


@dataclass
class Server:
    """One server of one model, which is to be entered."""

    repository: Path
    model: str
    work: Path
    exit_timeout: float = 20
    ports: list[int] = field(default_factory=lambda: free_ports(3))

    def __enter__(self) -> Self:
        self.run_directory = self.work / "run"
        self.log = self.work / "log"
        http_port, grpc_port, metrics_port = self.ports
        command = [sys.executable, "-m", "llmengine_server.serve"]
        command += [f"--model-repository={self.repository}", "--address=127.0.0.1"]
        command += [f"--http-port={http_port}", f"--grpc-port={grpc_port}"]
        command += [f"--metrics-port={metrics_port}", f"--exit-timeout={self.exit_timeout}"]
        self.environment = {
            **os.environ,
            "LLMENGINE_TRITON_DIRECTORY": str(tritonserver.folder()),
            "LLMENGINE_RUN_DIRECTORY": str(self.run_directory),
            "LLMENGINE_HTTP_PORT": str(http_port),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self.start_seconds = eventually(self._started, START_SECONDS, "the server is ready")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(self.exit_timeout + 10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _started(self) -> bool:
        assert self.process.poll() is None, f"the server ended:\n{self.log.read_text()}"
        return self.probe("--ready").returncode == 0

    @property
    def http(self) -> int:
        return self.ports[0]

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.ports[1]}"

    @property
    def stub(self) -> int:
        """The process that holds the engine."""
        found = alive.loop_process(str(self.run_directory))
        assert found is not None
        return found[0]

    def probe(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`llmengine-alive` with these arguments."""
        return subprocess.run(
            [*ALIVE, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def generate(self, timeout: float = 60, **body: Any) -> Answer:
        """POST .../generate."""
        with self.post("generate", body, timeout) as response:
            return Answer(response.status, response.read())

    def stream(self, timeout: float = 60, **body: Any) -> list[dict[str, Any]]:
        """All events of POST .../generate_stream."""
        with self.post("generate_stream", {"stream": True, **body}, timeout) as response:
            assert response.status == 200, response.read()
            return list(events(response))

    @contextmanager
    def post(self, verb: str, body: dict[str, Any], timeout: float = 60) -> Iterator[HTTPResponse]:
        connection = HTTPConnection("127.0.0.1", self.http, timeout=timeout)
        try:
            connection.request("POST", f"/v2/models/{self.model}/{verb}", json.dumps(body))
            yield connection.getresponse()
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """Every series of the metrics port."""
        connection = HTTPConnection("127.0.0.1", self.ports[2], timeout=10)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def slots_taken(self) -> float:
        labels = f'model="{self.model}",request_type="active",version="1"'
        return self.metrics()[f"nv_trt_llm_request_metrics{{{labels}}}"]

    def kill(self, process: int, number: int = signal.SIGKILL) -> None:
        os.kill(process, number)


def events(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The events of a streamed answer, as they come."""
    for line in response:
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))
