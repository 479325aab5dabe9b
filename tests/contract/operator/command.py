"""The operator's command as a process of its own, with the rights of a kubeconfig."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.request import urlopen

from llmengine_operator.config import Config
from tests.cluster.paths import REPOSITORY
from tests.cluster.ports import free_port
from tests.cluster.waiting import wait_for
from tests.contract.store.place import Place


class OperatorCommand:
    """`llmengine-operator`, from its start to SIGTERM."""

    def __init__(self, folder: Path, config: Config, kubeconfig: Path, place: Place) -> None:
        self.metrics_port = free_port()
        ports = {"health_port": free_port(), "metrics_port": self.metrics_port}
        settings = config.model_copy(update=ports)
        self._file = folder / "config.yaml"
        self._file.write_text(settings.model_dump_json(by_alias=True))
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "POD_NAME": f"operator-{self.metrics_port}",
            "STORE_AWS_ACCESS_KEY_ID": place.user.access_key,
            "STORE_AWS_SECRET_ACCESS_KEY": place.user.secret_key,
        }
        self.logs: list[dict[str, Any]] = []

    def __enter__(self) -> OperatorCommand:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llmengine_operator.main", "--config", str(self._file)],
            cwd=REPOSITORY,
            env=self._environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        wait_for(lambda: self.logged("working, with"), 60, lambda: f"work: {self.logs}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(20)
        self._reader.join(10)
        assert self._process.stderr is not None
        self._process.stderr.close()
        assert error is not None or status == 0, self.logs[-20:]

    @property
    def pid(self) -> int:
        return self._process.pid

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It stands still meanwhile: what is changed has not been seen by it."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def logged(self, text: str) -> bool:
        return any(text in line["message"] for line in list(self.logs))

    def warnings(self) -> list[str]:
        return [line["message"] for line in list(self.logs) if line["level"] != "info"]

    def requests(self) -> dict[tuple[str, str], int]:
        """To the API server so far, by verb and kind; those of the watches are not among them."""
        with urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as response:
            text = response.read().decode()
        found: dict[tuple[str, str], int] = {}
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            if name.startswith("llmengine_api_requests_total{"):
                labels = dict(part.split("=") for part in name.partition("{")[2][:-1].split(","))
                found[labels["verb"].strip('"'), labels["kind"].strip('"')] = int(float(value))
        return found

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            try:
                self.logs.append(json.loads(line))
            except ValueError:
                self.logs.append({"message": line.rstrip(), "level": "not json"})
