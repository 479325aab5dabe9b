"""Ends processes of pods as the kernel would, and knows which requests ended with them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmengine_server.alive import runs
from tests.cluster.waiting import wait_for
from tests.demo.platform import OPERATOR_NAMESPACE, Platform
from tests.e2e.load import Fate, Loss

HTTP_PORT = 8000
# States of a connection in /proc/net/tcp that a request can be on: established, and closed by the
# client alone.
_OPEN = ("01", "08")
_PROC = Path("/proc")


@dataclass(frozen=True)
class Killed:
    """A server's end: the clients' ports of all connections that its HTTP server had, or was about
    to accept, and between which moments of the monotonic clock it went on.
    """

    ports: frozenset[int]
    began: float
    ended: float

    def took(self, loss: Loss) -> bool:
        """Whether the lost answer's request was with the server."""
        meanwhile = self.began <= loss.connected <= self.ended
        return loss.fate is Fate.BROKEN and (loss.port in self.ports or meanwhile)


def kill_server(pod: dict[str, Any]) -> Killed:
    """SIGKILL for every process of a server pod at once, its first one included, at a moment when
    it has requests.
    """
    processes = list(_processes(str(pod["metadata"]["uid"])))
    if not processes:
        raise ValueError(f"pod {pod['metadata']['name']} has no process on this machine")
    caught = wait_for(lambda: _caught(processes), 60, "requests to kill", interval=0.02)
    assert caught is not None
    began, ports = caught
    for process in processes:
        with suppress(ProcessLookupError):  # the first one's end is that of all
            os.kill(process, signal.SIGKILL)
    wait_for(lambda: not any(map(runs, processes)), 30, "the processes to be gone", interval=0.01)
    return Killed(ports, began, time.monotonic())


def _caught(processes: list[int]) -> tuple[float, frozenset[int]] | None:
    """Stop them, so that nothing more is answered while one looks: when that was, and the ports of
    their clients. They go on if they had none.
    """
    began = time.monotonic()
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    if ports := frozenset(_clients(processes[0])):
        return began, ports
    for process in processes:
        os.kill(process, signal.SIGCONT)
    return None


def kill_operator(platform: Platform) -> None:
    """End it without a word; another pod of it is made."""
    platform.cluster.kubectl(
        *("delete", "pod", "-n", OPERATOR_NAMESPACE, "--grace-period=0", "--force"),
        *("-l", "app.kubernetes.io/name=llmengine-operator"),
    )


def _processes(uid: str) -> Iterator[int]:
    """Of a pod, without the one that only holds its namespaces."""
    names = (f"pod{uid}", f"pod{uid.replace('-', '_')}")
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            groups, name = (entry / "cgroup").read_text(), (entry / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name != "pause" and any(pod in groups for pod in names):
            yield int(entry.name)


def _clients(process: int) -> Iterator[int]:
    """Ports at the other end of a pod's HTTP connections."""
    for table in ("tcp", "tcp6"):
        for line in (_PROC / str(process) / "net" / table).read_text().splitlines()[1:]:
            _, here, there, state, *_ = line.split()
            if int(here.rpartition(":")[2], 16) == HTTP_PORT and state in _OPEN:
                yield int(there.rpartition(":")[2], 16)
