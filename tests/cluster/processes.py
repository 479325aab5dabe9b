"""The processes of a cluster, found by what the kernel says of them, never by a name alone."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.api import ApiError
from tests.cluster.paths import SOURCES, ClusterError, Folder

COMPONENT_VARIABLE = "LLMENGINE_COMPONENT"


@dataclass(frozen=True, slots=True)
class Process:
    """A process, and when it was started (in ticks since boot): pids are used again."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        fields = _stat(pid)
        return None if fields is None or fields[0] == "Z" else cls(pid, int(fields[19]))

    def alive(self) -> bool:
        return Process.of(self.pid) == self

    def signal(self, number: int) -> None:
        """Sends a signal, unless the process has ended."""
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                if self.alive():
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after at most so many seconds."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            fields = _stat(self.pid)
            if fields is None or int(fields[19]) != self.started:
                return True
            # Not alive(): a zombie may have threads that still hold its ports, and the kernel says
            # that it has ended when they are gone.
            return bool(select.select([descriptor], [], [], seconds)[0])
        finally:
            os.close(descriptor)


def children(pid: int) -> list[int]:
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal()
        and (fields := _stat(int(entry.name))) is not None
        and int(fields[1]) == pid
    ]


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


@dataclass(frozen=True, slots=True)
class Supervisor:
    """The process that all components of a node descend from, and that takes them with it.

    Those of the control plane belong to the first node, or stand for themselves.
    """

    folder: Folder
    init: Process

    def components(self) -> dict[str, Process]:
        """The ones that run."""
        running = {}
        for pid in children(self.init.pid):
            with suppress(OSError):
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                for variable in environment:
                    name, _, value = variable.decode(errors="replace").partition("=")
                    if name == COMPONENT_VARIABLE and (process := Process.of(pid)):
                        running[value] = process
        return running

    def start(self, component: str) -> None:
        """Has a component started, whose script write_scripts() has written."""
        try:
            pipe = os.open(self.folder.control, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            raise ClusterError(f"{self.folder.name} takes no orders: {error}") from None
        with os.fdopen(pipe, "w") as orders:
            orders.write(f"{component}\n")

    def wait(self, what: str, condition: Callable[[], bool], seconds: float, *needed: str) -> None:
        """Waits for a condition, but no longer than the components live that it needs.

        Raises ClusterError with the end of their logs.
        """
        started = time.monotonic()
        while True:
            try:
                if condition():
                    return
            except (OSError, ApiError):
                pass  # not yet
            passed = time.monotonic() - started
            running = self.components()
            dead = [component for component in needed if component not in running]
            if passed > seconds or (dead and passed > 2):
                why = f"{', '.join(dead)} ended" if dead else f"not within {seconds:g} s"
                logs = [self.folder.logs / f"{component}.log" for component in dead or needed]
                tails = "\n".join(map(tail, logs))
                raise ClusterError(f"waited for {what}: {why}\n{tails}")
            time.sleep(0.05)

    def enter(self, *command: str) -> list[str]:
        """The command line that runs a command on the node: with its files, network, processes."""
        spaces = ["--mount", "--net", "--pid"]
        return ["nsenter", f"--target={self.init.pid}", *spaces, "--", *command]

    def on_node(self, *command: str) -> str:
        """What a command prints that runs on the node. Raises ClusterError when it fails."""
        line = self.enter(*command)
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ClusterError(f"{' '.join(command)} failed: {done.stderr.strip()}")
        return done.stdout


def write_scripts(folder: Folder, commands: dict[str, list[str]]) -> None:
    folder.components.mkdir(exist_ok=True)
    for name, command in commands.items():
        script = folder.components / name
        script.write_text(
            f"#!/bin/sh\nexport {COMPONENT_VARIABLE}={name}\nexec {shlex.join(command)}\n"
        )
        script.chmod(0o755)


def launch(folder: Folder, cgroup: str | None, *node: str, tied: bool) -> Supervisor:
    """Starts a supervisor: in a cgroup, as a node (with the arguments of init.sh), or as it is.

    `tied`: it ends with the calling thread, however that ends.
    """
    os.mkfifo(folder.control)
    command = [str(SOURCES / "init.sh"), str(folder.root), *node]
    if cgroup is not None:
        command = [str(SOURCES / "launch.sh"), cgroup, *command]
    if tied:
        command = ["setpriv", "--pdeathsig", "KILL", *command]
    log = folder.logs / "init.log"
    with log.open("w") as output:
        launcher = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # an interrupt from the terminal is for the caller alone
        )
    _launchers.append(launcher)
    ready = folder.run / "ready"
    deadline = time.monotonic() + 10
    while not ready.exists():
        if launcher.poll() is not None or time.monotonic() > deadline:
            raise ClusterError(f"the init of {folder.name} did not start:\n{tail(log)}")
        time.sleep(0.02)
    supervisor = find(folder)
    if supervisor is None:
        raise ClusterError(f"the init of {folder.name} has ended:\n{tail(log)}")
    return supervisor


_launchers: list[subprocess.Popen[bytes]] = []  # to be reaped by end()


def find(folder: Folder) -> Supervisor | None:
    """The supervisor of a cluster or of a node that has joined one, if it runs."""
    try:
        pid, started, boot = (folder.run / "init").read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    if boot != Path("/proc/sys/kernel/random/boot_id").read_text().strip():
        return None
    init = Process(int(pid), int(started))
    return Supervisor(folder, init) if init.alive() else None


def end(folder: Folder, cgroup: str) -> None:
    """Ends every process of a cluster or a node, of whatever run, and removes its cgroups.

    Nothing is asked to end by itself: a graceful API server takes 10 s, and its state is not kept.
    """
    if supervisor := find(folder):
        components = supervisor.components()
        for process in (supervisor.init, *components.values()):
            process.signal(signal.SIGKILL)
        for process in (supervisor.init, *components.values()):
            process.wait(5)
    groups = _cgroup_folders(cgroup)
    deadline = time.monotonic() + 10
    while members := {pid for group in groups for pid in _members(group)}:
        for pid in members:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise ClusterError(f"processes of {folder.name} do not end: {sorted(members)}")
        time.sleep(0.02)
    for group in groups:
        _remove_cgroup(group, deadline)
    _launchers[:] = [launcher for launcher in _launchers if launcher.poll() is None]


def _cgroup_folders(cgroup: str) -> list[Path]:
    """A cluster's folder in each hierarchy that has one."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    folders = [Path(fields[1]) / cgroup for fields in mounts if fields[2] in ("cgroup", "cgroup2")]
    return [folder for folder in folders if folder.is_dir()]


def _members(folder: Path) -> list[int]:
    pids: list[int] = []
    for file in folder.rglob("cgroup.procs"):
        with suppress(OSError):  # gone meanwhile
            pids += map(int, file.read_text().split())
    return pids


def _remove_cgroup(folder: Path, deadline: float) -> None:
    for below in sorted(folder.rglob("*/"), reverse=True):  # the deepest first
        if below.is_dir():
            _remove_folder(below, deadline)
    _remove_folder(folder, deadline)


def _remove_folder(folder: Path, deadline: float) -> None:
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:  # busy until the kernel has buried the last process
            if time.monotonic() > deadline:
                raise ClusterError(f"cannot remove the cgroup {folder}: {error}") from None
            time.sleep(0.02)
        else:
            return


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log, for an error message."""
    try:
        text = log.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return f"(no log {log})"
    return "\n".join([f"the end of {log}:", *text[-lines:]])
