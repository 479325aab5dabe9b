"""Servers that tests need beside Kubernetes: in a node's network, or on this machine's loopback.

One in a cluster ends with the cluster; any other ends with the thread that started it.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tests.cluster.cluster import Cluster
from tests.cluster.paths import ClusterError
from tests.cluster.ports import free_port
from tests.cluster.processes import tail
from tests.cluster.waiting import WaitTimeoutError, wait_for

T = TypeVar("T")


class Service:
    """One server. `name` is also that of the component, where it belongs to a cluster.

    `folder` is a place for its files, which is removed with it.
    """

    def __init__(self, name: str, cluster: Cluster | None = None) -> None:
        self.name = name
        self.cluster = cluster if cluster is not None and cluster.mode == "node" else None
        self.port = 0
        self._started = False
        self._process: subprocess.Popen[bytes] | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if self.cluster is not None:
            self.folder = self.cluster.state.run / name
            self.folder.mkdir(exist_ok=True)
        else:
            self._temporary = tempfile.TemporaryDirectory(prefix=f"{name}-")
            self.folder = Path(self._temporary.name)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def host(self) -> str:
        """The address to listen on: the node's, which pods reach too, else loopback."""
        return self.cluster.node_ip if self.cluster is not None else "127.0.0.1"

    @property
    def log(self) -> Path:
        return self.cluster.log(self.name) if self.cluster is not None else self.folder / "log"

    def call(self, function: Callable[[], T]) -> T:
        """What `function` returns where the server can be reached; see Namespace.call()."""
        return self.cluster.namespace.call(function) if self.cluster is not None else function()

    def free_port(self) -> int:
        return self.call(lambda: free_port(self.host))

    def command(self) -> tuple[list[str], Mapping[str, str]]:
        """The command line, and what is added to the environment. `port` is where to listen."""
        raise NotImplementedError

    def start(self) -> None:
        """Starts the server, again where it has been before, and waits until it listens.

        Raises ClusterError with the end of its log when it does not.
        """
        if self.running() and self._started:
            return
        self.kill()  # what another process has left of that name in a cluster
        self.port = self.port or self.free_port()
        command, environment = self.command()
        line = ["env", *(f"{name}={value}" for name, value in environment.items()), *command]
        if self.cluster is not None:
            self.cluster.add_component(self.name, line)
        else:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", *line],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # an interrupt from the terminal is for the tests alone
                )
        try:
            # Long, for a machine that is busy: the end of the process ends it at once.
            wait_for(lambda: not self.running() or self._listens(), 60, interval=0.01)
            listens = self.running()
        except WaitTimeoutError:
            listens = False
        if not listens:
            raise ClusterError(f"{self.name} does not listen on port {self.port}\n{tail(self.log)}")
        self._started = True

    def _listens(self) -> bool:
        self.call(lambda: socket.create_connection((self.host, self.port), 1)).close()
        return True

    def running(self) -> bool:
        if self.cluster is not None:
            return self.cluster.is_up() and self.name in self.cluster.components()
        return self._process is not None and self._process.poll() is None

    def stop(self, how: int = signal.SIGTERM, timeout: float = 10) -> None:
        """Ends the server and waits for its end; start() goes on with its data. It need not run."""
        if not self.running():
            return
        if self.cluster is not None:
            self.cluster.stop(self.name, how, timeout)
        elif self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout)

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def restart(self, how: int = signal.SIGTERM) -> None:
        self.stop(how)
        self.start()

    def close(self) -> None:
        """Ends the server and removes its folder."""
        self.kill()
        if self._temporary is not None:
            self._temporary.cleanup()
