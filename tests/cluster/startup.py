"""The order in which a cluster comes up, and what each step waits for."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from tests.cluster import components, pki, processes
from tests.cluster.api import Api
from tests.cluster.containerd import Containerd
from tests.cluster.image_store import ImageStore, superseded
from tests.cluster.images import Image, pause_image
from tests.cluster.namespace import Namespace
from tests.cluster.node import NODE_IP, Node
from tests.cluster.paths import ClusterError, Folder, State
from tests.cluster.ports import free_port
from tests.tools import build as tools

Mode = Literal["node", "control-plane"]
Report = Callable[[str], None]

_PROGRAMS = ("setpriv", "openssl")
_NODE_PROGRAMS = ("containerd", "ctr", "runc", "nft", "ip", "unshare", "nsenter")
_CNI = Path("/usr/lib/cni/bridge")


@dataclass(frozen=True, slots=True)
class Description:
    """What a cluster was asked to be."""

    mode: Mode = "node"
    fake_gpus: int = 0
    node_labels: Mapping[str, str] = field(default_factory=dict)
    api_port: int = components.Ports().api

    def write(self, state: State) -> None:
        state.description.write_text(json.dumps(asdict(self), indent=2))

    @classmethod
    def read(cls, state: State) -> Description:
        return cls(**json.loads(state.description.read_text()))


@dataclass(frozen=True, slots=True)
class Running:
    """A cluster whose supervisor runs."""

    state: State
    supervisor: processes.Supervisor
    description: Description

    @property
    def namespace(self) -> Namespace:
        return _namespace(self.supervisor)

    @property
    def api(self) -> Api:
        return Api(self.state, self.description.api_port, self.namespace)

    def supervisors(self) -> dict[Node, processes.Supervisor]:
        """Those of the nodes that have joined too, as far as they run."""
        found = {Node(self.state): self.supervisor}
        for folder in self.state.joined():
            if supervisor := processes.find(folder):
                found[Node.of(folder)] = supervisor
        return found


def _namespace(supervisor: processes.Supervisor) -> Namespace:
    return Namespace(supervisor.init.pid, supervisor.folder.run / "etc")


def check_machine(mode: Mode) -> None:
    """Raises ClusterError with what is missing on this machine."""
    node = mode == "node"
    if node and os.geteuid() != 0:
        raise ClusterError("a cluster with a node needs root; --mode control-plane does not")
    search = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    needed = _PROGRAMS + (_NODE_PROGRAMS if node else ())
    missing = [program for program in needed if shutil.which(program, path=search) is None]
    if node and not _CNI.exists():
        missing.append(str(_CNI))
    if missing:
        raise ClusterError(f"missing: {', '.join(missing)}: run 'tests/cluster/cluster install'")


def start(
    state: State, wanted: Description, images: list[Image], *, tied: bool, report: Report
) -> Running:
    """Starts a cluster of which nothing is left, and returns when it can be used.

    Raises ClusterError when it does not come up; what has been started is left to the caller.
    """
    node = Node(state) if wanted.mode == "node" else None
    tools.build("hyperkube", *(["coredns"] if node else []))
    if node:
        images = [pause_image(), *images]
    ports = components.Ports() if node else _free_ports()
    wanted = Description(wanted.mode, wanted.fake_gpus, wanted.node_labels, ports.api)
    settings = _settings(state, wanted, ports)

    _make_folders(state)
    (state.run / "etcd").mkdir()
    state.bin.mkdir()
    (state.bin / "kubectl").symlink_to(settings.hyperkube)
    pki.make_certificates(state.pki, *components.IDENTITIES, Node(state).kubelet)
    pki.make_key_pair(state.pki, "sa")
    components.write_configuration(settings)
    commands = components.command_lines(settings)
    processes.write_scripts(state, commands)
    wanted.write(state)
    place = (node.cgroup, node.name, node.address) if node else (None,)
    supervisor = processes.launch(state, *place, tied=tied)
    cluster = Running(state, supervisor, wanted)

    first = ["etcd", "kube-apiserver", *(["containerd"] if node else [])]
    for component in first:
        supervisor.start(component)
    if node:
        _import(cluster, images, report)
    # A client that asks before the RBAC roles are made is refused and backs off, which makes the
    # whole start slower: so none is started before.
    supervisor.wait("the API server", cluster.api.ready, 90, "etcd", "kube-apiserver")
    report("the API server is ready")
    for component in commands:
        if component not in first:
            supervisor.start(component)
    _await(supervisor, _usable(cluster), report)
    state.complete.touch()
    return cluster


def join(cluster: Running, node: Node, *, tied: bool, report: Report) -> None:
    """Starts one more node, of whose name nothing runs, and returns when pods may run on it.

    Its images are those that the first one had at its start. Raises ClusterError when it does not
    come up; what has been started is left to the caller.
    """
    folder = node.folder
    _make_folders(folder)
    store, origin = ImageStore(folder.images), ImageStore(cluster.state.images)
    if store.images() != origin.images():
        store.clone(origin)
    settings = _settings(cluster.state, cluster.description, components.Ports())
    pki.make_certificate(cluster.state.pki, node.kubelet)
    components.write_node_configuration(settings, node)
    commands = components.node_command_lines(settings, node)
    processes.write_scripts(folder, commands)
    hub = f"/proc/{cluster.supervisor.init.pid}/ns/net"
    place = (node.name, node.address, node.pod_cidr, hub, NODE_IP)
    supervisor = processes.launch(folder, node.cgroup, *place, tied=tied)
    for component in commands:
        supervisor.start(component)
    _await(supervisor, _usable_node(cluster, node, supervisor), report)


def _make_folders(folder: Folder) -> None:
    shutil.rmtree(folder.logs, ignore_errors=True)
    for new in (folder.run, folder.logs):
        new.mkdir(parents=True)


def _settings(state: State, wanted: Description, ports: components.Ports) -> components.Settings:
    node = wanted.mode == "node"
    return components.Settings(
        state=state,
        ports=ports,
        node=node,
        fake_gpus=wanted.fake_gpus,
        node_labels=wanted.node_labels,
        hyperkube=tools.path("hyperkube"),
        coredns=tools.path("coredns") if node else None,
        pause_image=pause_image().reference if node else "",
    )


# What is relied on: its name, the check, and the components that it takes.
Check = tuple[str, Callable[[], bool], list[str]]


def _await(supervisor: processes.Supervisor, checks: list[Check], report: Report) -> None:
    for what, condition, needed in checks:
        supervisor.wait(what, condition, 60, *needed)
        report(f"{what}: ready")


def _usable(cluster: Running) -> list[Check]:
    """What a user of the cluster relies on."""

    def default_account() -> bool:
        return bool(cluster.api.get("/api/v1/namespaces/default/serviceaccounts/default"))

    def names() -> bool:
        cluster.namespace.connect(NODE_IP, 53, timeout=1).close()
        return True

    checks: list[Check] = []
    checks += [("the default service account", default_account, ["kube-controller-manager"])]
    if cluster.description.mode == "node":
        checks += _usable_node(cluster, Node(cluster.state), cluster.supervisor)
        checks += [("cluster DNS", names, ["coredns"])]
    return checks


def _usable_node(cluster: Running, node: Node, supervisor: processes.Supervisor) -> list[Check]:
    """What a pod on a node relies on."""

    def ready() -> bool:
        status = cluster.api.get(f"/api/v1/nodes/{node.name}")["status"]
        gpus = int(status.get("allocatable", {}).get("nvidia.com/gpu", 0))
        ready = any(it["type"] == "Ready" and it["status"] == "True" for it in status["conditions"])
        return ready and gpus == cluster.description.fake_gpus

    def services() -> bool:
        _namespace(supervisor).connect(components.SERVICE_IP, 443, timeout=0.2).close()
        return True

    return [
        (node.name, ready, ["kubelet", "containerd"]),
        (f"ClusterIPs on {node.name}", services, ["kube-proxy"]),
    ]


def _import(cluster: Running, images: list[Image], report: Report) -> None:
    """Makes the images part of the cluster's store, unless they are already."""
    store = ImageStore(cluster.state.images)
    containerd = Containerd(cluster.supervisor)
    present = store.images()
    wanted = {image.reference for image in images}
    missing = [image for image in images if image.reference not in present]
    if not missing:
        return
    store.unseal()
    cluster.supervisor.wait("containerd", containerd.answers, 20, "containerd")
    for image in missing:
        report(f"importing {image.reference}")
        containerd.load(image.reference, image.archive, image.overlay)
    old = superseded(present, wanted)
    containerd.remove(old)
    process = cluster.supervisor.components()["containerd"]
    process.signal(signal.SIGTERM)
    if not process.wait(10):
        raise ClusterError("containerd does not end")
    store.seal((present | wanted) - set(old))
    cluster.supervisor.start("containerd")


def _free_ports() -> components.Ports:
    ports: set[int] = set()
    while len(ports) < 3:
        ports.add(free_port())
    return components.Ports(*ports)
