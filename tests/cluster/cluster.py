"""A real Kubernetes cluster on this machine, with a life of its own or that of its caller.

It lives in namespaces and cgroups of its own, and ending it is killing one process. Whatever ended
the last run, the next up() or down() of the same name first removes what is left of it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from tests.cluster import components, fake_nodes, processes, startup
from tests.cluster.api import Api
from tests.cluster.containerd import Containerd
from tests.cluster.image_store import ImageStore
from tests.cluster.images import Image
from tests.cluster.namespace import Namespace
from tests.cluster.node import NODE_IP, Node
from tests.cluster.paths import ClusterError, JoinedFolder, State
from tests.cluster.startup import Description, Mode, Report, Running
from tests.cluster.waiting import wait_for
from tests.tools import build as tools


class Cluster:
    """One local cluster.

    `node` mode has real nodes, with real pods, and needs root. `control-plane` mode has none (see
    fake_nodes()), needs no root, and listens on free ports of loopback. A cluster that is `tied`
    ends with the thread that calls up(), even if that is killed; others live until down().

    Components of the first node and of the control plane go by their names, those of any other
    node by names like node-2/kubelet.
    """

    def __init__(
        self,
        name: str,
        *,
        mode: Mode = "node",
        nodes: int = 1,
        fake_gpus: int = 0,
        node_labels: Mapping[str, str] | None = None,
        images: Sequence[Image] = (),
        tied: bool = False,
        report: Report = lambda step: None,
    ) -> None:
        self.state = State(name)
        self.description = Description(mode, fake_gpus, dict(node_labels or {}))
        self.nodes = nodes
        self.images = list(images)
        self.tied = tied
        self._report = report
        self._claim: TextIO | None = None

    @classmethod
    def attach(cls, name: str) -> Cluster:
        """The cluster of that name, which runs. Raises ClusterError when it does not."""
        cluster = cls(name)
        cluster.description = cluster._running.description
        return cluster

    @classmethod
    def claim(cls, prefix: str, **parameters: Any) -> Cluster:
        """A cluster for this process alone: the first of PREFIX-1, PREFIX-2, ... that is free.

        The claim ends with down(), or with the process.
        """
        for number in range(1, 100):
            cluster = cls(f"{prefix}-{number}", **parameters)
            cluster.state.claim.parent.mkdir(parents=True, exist_ok=True)
            claim = cluster.state.claim.open("w")
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                claim.close()
            else:
                cluster._claim = claim
                return cluster
        raise ClusterError(f"all clusters from {prefix}-1 to {prefix}-99 are in use")

    # Its life.

    def __enter__(self) -> Cluster:
        self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.down()

    def up(self) -> None:
        """Starts the cluster and waits until it can be used.

        Raises ClusterError when it is up already, or with the log of what did not come up; then
        nothing is left running.
        """
        if self.mode == "control-plane" and self.nodes != 1:
            raise ClusterError("a control plane has no node of its own: see fake_nodes()")
        startup.check_machine(self.mode)
        with self._locked():
            if self.is_up():
                raise ClusterError(f"cluster {self.name} is up already: end it with 'down' first")
            self._clear()
            try:
                running = startup.start(
                    self.state, self.description, self.images, tied=self.tied, report=self._report
                )
                for number in range(2, self.nodes + 1):
                    self._join(running, Node(self.state, number))
            except BaseException:
                self._clear()
                raise

    def down(self) -> None:
        """Ends the cluster and removes what it has made, but for images, certificates and logs.

        It need not be up.
        """
        with self._locked():
            self._clear()
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def remove(self) -> None:
        """Ends the cluster and removes what outlives down() too."""
        self.down()
        shutil.rmtree(self.state.root, ignore_errors=True)
        self.state.lock.unlink(missing_ok=True)
        self.state.claim.unlink(missing_ok=True)

    def is_up(self) -> bool:
        return self.state.complete.exists() and processes.find(self.state) is not None

    # Its nodes.

    def add_node(self) -> str:
        """Has one more node join the running cluster; its name, once pods may run on it.

        It is like the first one, images included, but for those that were loaded later. If the
        cluster is tied it ends with the calling thread. Raises ClusterError with the log of what
        did not come up; then nothing of it is left.
        """
        if self.mode != "node":
            raise ClusterError("a control plane has no network to join: see fake_nodes()")
        with self._locked():
            running = self._running
            taken = {node.number for node in running.supervisors()}
            node = Node(self.state, next(it for it in range(2, 255) if it not in taken))
            self._clear_node(node)
            try:
                self._join(running, node)
            except BaseException:
                self._clear_node(node)
                raise
        return node.name

    def remove_node(self, name: str) -> None:
        """Moves the pods of a node that has joined elsewhere, and ends it; it may be dead."""
        node = self._joined(name)
        if processes.find(node.folder):
            self.drain(name, "--force", "--disable-eviction")
        with self._locked():
            self._clear_node(node)
        self.kubectl("delete", "node", name)
        of_node = f"--field-selector=spec.nodeName={name}"
        self.kubectl("delete", "pods", "-A", of_node, "--grace-period=0", "--force")

    def drain(self, name: str, *options: str) -> None:
        """`kubectl drain` of any node, within two minutes unless options say otherwise.

        Raises ClusterError when it was not allowed to take every pod; `uncordon` undoes it.
        """
        usual = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s")
        self.kubectl("drain", name, *usual, *options, timeout=130)

    @contextmanager
    def drained(self, name: str, *options: str) -> Iterator[None]:
        """A node without pods, which takes some again at the end; options are those of drain()."""
        try:
            self.drain(name, *options)
            yield
        finally:
            self.kubectl("uncordon", name)

    def kill_node(self, name: str) -> None:
        """Ends everything on a node that has joined, at once, as if it lost its power.

        Nobody hears a word of it, neither the API server nor who is connected to its pods.
        remove_node() takes the rest away.
        """
        node = self._joined(name)
        # A process that is killed closes its connections, which a machine without power does not.
        self._running.supervisor.on_node("ip", "link", "set", name, "down")
        processes.end(node.folder, node.cgroup)

    def _joined(self, name: str) -> Node:
        if name not in {folder.name for folder in self.state.joined()}:
            raise ClusterError(f"no node {name} has joined cluster {self.name}")
        return Node.of(JoinedFolder(self.state, name))

    def _join(self, running: Running, node: Node) -> None:
        startup.join(running, node, tied=self.tied, report=self._report)

    # Its parts.

    @property
    def name(self) -> str:
        return self.state.name

    @property
    def mode(self) -> Mode:
        return self.description.mode

    @property
    def kubeconfig(self) -> Path:
        """Of cluster-admin; its server is on the loopback of the cluster's network."""
        return self.state.kubeconfig

    @property
    def namespace(self) -> Namespace:
        """The network in which the cluster is reached: the machine's own where there is no node."""
        return self._running.namespace

    @property
    def api(self) -> Api:
        return self._running.api

    @property
    def node_ip(self) -> str:
        """Where pods, and whoever is in the cluster's network, reach servers that run there."""
        return NODE_IP if self.mode == "node" else "127.0.0.1"

    @property
    def _running(self) -> Running:
        supervisor = processes.find(self.state)
        if supervisor is None or not self.is_up():
            raise ClusterError(f"cluster {self.name} is not up: start it with 'cluster up'")
        return Running(self.state, supervisor, Description.read(self.state))

    def components(self) -> dict[str, int]:
        """The components that run, with their pids."""
        return {name: process.pid for name, process in sorted(self._processes().items())}

    def _processes(self) -> dict[str, processes.Process]:
        return {
            f"{node.prefix}{name}": process
            for node, supervisor in self._running.supervisors().items()
            for name, process in supervisor.components().items()
        }

    def send_signal(self, component: str, number: int) -> None:
        """Sends a signal, such as SIGSTOP or SIGCONT, to one component."""
        self._component(component).signal(number)

    def stop(self, component: str, how: int = signal.SIGKILL, timeout: float = 15) -> None:
        """Ends one component and waits for its end; nothing starts it again but start()."""
        process = self._component(component)
        process.signal(how)
        if not process.wait(timeout):
            raise ClusterError(f"{component} has not ended in {timeout:g} s")

    def start(self, component: str) -> None:
        """Starts a component that does not run; the API server is waited for until it is ready."""
        running = self._running
        if component in self._processes():
            raise ClusterError(f"{component} runs already")
        node, name = self._place(component)
        supervisor = running.supervisors().get(node)
        if supervisor is None or not (node.folder.components / name).exists():
            raise ClusterError(f"cluster {self.name} has no component {component}")
        supervisor.start(name)
        supervisor.wait(f"{component} to start", lambda: name in supervisor.components(), 5)
        if component == "kube-apiserver":
            supervisor.wait("the API server", running.api.ready, 60, component)

    def add_component(self, name: str, command: Sequence[str]) -> None:
        """Starts another program in the cluster's network, which ends with the cluster."""
        processes.write_scripts(self.state, {name: list(command)})
        self.start(name)

    def restart(self, component: str, how: int = signal.SIGKILL) -> None:
        self.stop(component, how)
        self.start(component)

    def log(self, component: str) -> Path:
        node, name = self._place(component)
        return node.folder.logs / f"{name}.log"

    def logs(self) -> list[str]:
        """The components that have a log, of this run or of the last one."""
        folders = (self.state, *self.state.joined())
        return [
            f"{Node.of(folder).prefix}{log.stem}"
            for folder in folders
            for log in sorted(folder.logs.glob("*.log"))
        ]

    def _place(self, component: str) -> tuple[Node, str]:
        """The node to which a component belongs, and its name there."""
        where, _, name = component.rpartition("/")
        return (self._joined(where) if where else Node(self.state)), name

    def _component(self, name: str) -> processes.Process:
        running = self._processes()
        if name not in running:
            raise ClusterError(f"{name} does not run; these do: {', '.join(sorted(running))}")
        return running[name]

    # Its use.

    def environment(self) -> dict[str, str]:
        """For programs that use the cluster: its kubeconfig, and its kubectl before any other."""
        return {
            **os.environ,
            "KUBECONFIG": str(self.kubeconfig),
            "PATH": f"{self.state.bin}:{os.environ.get('PATH', os.defpath)}",
        }

    def command(self, *command: str) -> list[str]:
        """The command line that runs a program in the cluster's network; it wants environment()."""
        return self.namespace.command(*command)

    def exec(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs a program in the cluster's network; options are those of subprocess.run."""
        options = {"text": True, "env": self.environment(), **options}
        check = options.pop("check", True)
        return subprocess.run(self.command(*command), check=check, **options)

    def wait_forwarded(self, namespace: str, service: str, port: int, timeout: float = 60) -> None:
        """Waits until a Service forwards to some pod: kube-proxy learns of a ready one last."""
        path = f"/api/v1/namespaces/{namespace}/services/{service}"
        address = str(self.api.get(path)["spec"]["clusterIP"])

        def connects() -> bool:
            self.namespace.connect(address, port, 5).close()
            return True

        wait_for(connects, timeout, f"{namespace}/{service}:{port} to lead to a pod")

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """What kubectl prints. Raises ClusterError with its error output when it fails."""
        done = self.exec(
            *("kubectl", *arguments), input=stdin, capture_output=True, check=False, timeout=timeout
        )
        if done.returncode != 0:
            raise ClusterError(f"kubectl {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout

    def apply(self, *documents: str | Mapping[str, Any]) -> None:
        """Applies manifests: YAML text or objects."""
        objects = [document for document in documents if not isinstance(document, str)]
        texts = [document for document in documents if isinstance(document, str)]
        texts += [json.dumps(document) for document in objects]
        self.kubectl("apply", "-f", "-", stdin="\n---\n".join(texts))

    def fake_nodes(self, count: int, **parameters: Any) -> list[str]:
        """Adds nodes that kwok plays (see fake_nodes.add); their names, once they are Ready."""
        if "kwok" not in self.components():
            self.add_component("kwok", components.kwok(self.state, tools.path("kwok")))
        return fake_nodes.add(self.api, count, **{"taint": self.mode == "node", **parameters})

    def load(self, *images: Image) -> None:
        """Imports images into the running nodes; the next start forgets them unless given them."""
        for supervisor in self._running.supervisors().values():
            containerd = Containerd(supervisor)
            present = containerd.images()
            for image in images:
                if image.reference not in present:
                    self._report(f"importing {image.reference}")
                    containerd.load(image.reference, image.archive, image.overlay)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.state.lock.parent.mkdir(parents=True, exist_ok=True)
        with self.state.lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _clear(self) -> None:
        for folder in (*self.state.joined(), self.state):
            self._clear_node(Node.of(folder))

    def _clear_node(self, node: Node) -> None:
        folder = node.folder
        processes.end(folder, node.cgroup)
        shutil.rmtree(folder.run, ignore_errors=True)
        if folder.run.exists():
            raise ClusterError(f"cannot remove {folder.run}: is something mounted there?")
        if folder.images.exists():
            ImageStore(folder.images).reset()
