"""Entering a node's network namespace: from a shell, for one call, or for the rest of a test run.

Only the network changes hands: files, processes and users stay those of the machine, except that
names are resolved by the cluster's DNS.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.cluster.paths import ClusterError

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_CLONE_NEWNS = 0x00020000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18

# Runs a command with the resolver files of the namespace over the machine's, in a mount namespace
# that ends with it.
_WITH_RESOLVER = """
for file in resolv.conf hosts; do mount --bind "$0/$file" "/etc/$file" || exit; done
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Namespace:
    """The network namespace of process `pid`, with its resolver files in `etc`."""

    pid: int
    etc: Path

    @property
    def _net(self) -> Path:
        return Path(f"/proc/{self.pid}/ns/net")

    def entered(self) -> bool:
        """Whether the calling thread is inside."""
        try:
            return self._net.samefile("/proc/thread-self/ns/net")
        except OSError:
            return False

    def command(self, *command: str) -> list[str]:
        """The command line that runs `command` inside."""
        if self.entered():
            return list(command)
        resolver = ["sh", "-c", _WITH_RESOLVER, str(self.etc)]
        return ["nsenter", f"--net={self._net}", "unshare", "--mount", *resolver, *command]

    def call(self, function: Callable[[], T]) -> T:
        """What `function` returns, called inside by a thread of its own, without name resolution.

        Sockets stay in the namespace in which they were made, so one that is made here can be used
        by any thread afterwards.
        """
        if self.entered():
            return function()
        returned: list[T] = []
        raised: list[BaseException] = []

        def run() -> None:
            try:
                with self._net.open() as net:
                    _setns(net.fileno(), _CLONE_NEWNET)
                returned.append(function())
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=run, name="in-namespace")
        thread.start()
        thread.join()
        if raised:
            raise raised[0]
        return returned[0]

    def connect(self, host: str, port: int, timeout: float) -> socket.socket:
        return self.call(lambda: socket.create_connection((host, port), timeout))

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Moves this process inside, with name resolution, and back at the end.

        Namespaces belong to threads: call it in the main thread before there are others, which then
        inherit it. Raises ClusterError when there are others already.
        """
        if self.entered():
            yield
            return
        # The native threads of numpy and the like do not count: they connect to nothing.
        others = [it.name for it in threading.enumerate() if it is not threading.current_thread()]
        if others:
            raise ClusterError(f"threads would stay outside the namespace: {', '.join(others)}")
        folder = Path.cwd()
        with Path("/proc/self/ns/net").open() as net, Path("/proc/self/ns/mnt").open() as mounts:
            try:
                _libc("unshare", _CLONE_NEWNS)
                _mount("none", "/", _MS_REC | _MS_PRIVATE)  # so that no mount shows outside
                for file in ("resolv.conf", "hosts"):
                    _mount(str(self.etc / file), f"/etc/{file}", _MS_BIND)
                with self._net.open() as inside:
                    _setns(inside.fileno(), _CLONE_NEWNET)
                yield
            finally:
                _setns(net.fileno(), _CLONE_NEWNET)
                _setns(mounts.fileno(), _CLONE_NEWNS)
                os.chdir(folder)  # entering a mount namespace leads to its root folder


def _setns(descriptor: int, kind: int) -> None:
    _libc("setns", descriptor, kind)


def _mount(source: str, target: str, flags: int) -> None:
    _libc("mount", source.encode(), target.encode(), None, ctypes.c_ulong(flags), None)


def _libc(name: str, *arguments: object) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
