"""Operator processes as a test sees them: what they say, when they end, and with which status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from tests.cluster.paths import REPOSITORY
from tests.cluster.ports import free_port

# Impatient, but with the proportions of the defaults.
QUICK: Mapping[str, Any] = {
    "watch": {"error_backoffs": [0.2, 0.2, 0.4], "request_timeout": 3, "connect_timeout": 1},
    "audit": {"interval": 1, "grace": 1.5, "patience": 2, "retry": 0.5, "request": 2},
    "startup_retry": 0.3,
}


class OperatorProcess:
    """A stand-in process (see stand_in.py) against the cluster that a kubeconfig names."""

    def __init__(
        self,
        folder: Path,
        kubeconfig: Path,
        *,
        name: str = "operator-1",
        timing: Mapping[str, Any] = QUICK,
        lease: float | None = None,
        namespace: str = "llmengine-system",
        watch_namespaces: tuple[str, ...] = (),
        pass_seconds: float = 0,
    ) -> None:
        self.health_port, self.metrics_port = free_port(), free_port()
        self.lines: list[dict[str, Any]] = []
        self.logs: list[dict[str, Any]] = []
        config = {
            "namespace": namespace,
            "store": {"bucket": "engines"},
            "healthPort": self.health_port,
            "metricsPort": self.metrics_port,
            "watchNamespaces": list(watch_namespaces),
            "leaderElection": {"enabled": lease is not None, "leaseSeconds": lease or 15},
        }
        self._config = folder / f"{name}.yaml"
        self._config.write_text(json.dumps(config))
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "POD_NAME": name,
            "STAND_IN": json.dumps({**timing, "pass_seconds": pass_seconds}),
        }
        self.name = name

    def __enter__(self) -> OperatorProcess:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.contract.kube.stand_in", str(self._config)],
            cwd=REPOSITORY,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._readers = [
            threading.Thread(target=self._read, args=(self._process.stdout, self.lines)),
            threading.Thread(target=self._read, args=(self._process.stderr, self.logs)),
        ]
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(10)
        for reader in self._readers:
            reader.join(10)
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()
        if error is not None:
            print(f"--- {self.name} said", *self.lines[-30:], sep="\n")
            print(f"--- {self.name} logged", *self.logs[-30:], sep="\n")

    def _read(self, stream: Any, into: list[dict[str, Any]]) -> None:
        for line in stream:
            try:
                into.append(json.loads(line))
            except ValueError:
                into.append({"message": line.rstrip(), "level": "not json"})

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """The exit status. Fails the test when the process does not end in time."""
        return self._process.wait(seconds)

    def until(self, condition: Callable[[], bool], seconds: float = 45) -> None:
        """Waits for something that this process is to bring about."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.running, f"{self.name} ended with status {self._process.returncode}"
            assert time.monotonic() < deadline, f"{self.name}: not in {seconds:g} s"
            time.sleep(0.02)

    def until_working(self) -> None:
        self.until(lambda: self.logged("working, with"))

    def said(self, **fields: Any) -> bool:
        """Whether it said a line with these fields."""
        return any(fields.items() <= line.items() for line in list(self.lines))

    def logged(self, text: str) -> bool:
        return any(text in line.get("message", "") for line in list(self.logs))

    def last_words(self) -> str:
        """The message with which it said that it ends."""
        critical = [line["message"] for line in self.logs if line["level"] == "critical"]
        return critical[0] if critical else ""

    def probe(self, path: str) -> int:
        """The HTTP status of a probe; 0 when nobody answers."""
        try:
            with urlopen(f"http://127.0.0.1:{self.health_port}{path}", timeout=2) as response:
                return int(response.status)
        except HTTPError as error:
            with error:
                return error.code
        except URLError:
            return 0

    def metrics(self) -> str:
        with urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=2) as response:
            return str(response.read().decode())
