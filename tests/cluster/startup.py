"""The order in which a cluster comes up, and what each step waits for."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from tests.cluster import components, pki, processes
from tests.cluster.api import Api, ApiError
from tests.cluster.containerd import Containerd
from tests.cluster.image_store import ImageStore, superseded
from tests.cluster.images import Image, pause_image
from tests.cluster.namespace import Namespace
from tests.cluster.paths import ClusterError, State
from tests.cluster.ports import free_port
from tests.tools import build as tools

Mode = Literal["node", "control-plane"]
Report = Callable[[str], None]


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

    supervisor: processes.Supervisor
    description: Description

    @property
    def state(self) -> State:
        return self.supervisor.state

    @property
    def namespace(self) -> Namespace:
        return Namespace(self.supervisor.init.pid, self.state.run / "etc")

    @property
    def api(self) -> Api:
        return Api(self.state, self.description.api_port, self.namespace)

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
            running = self.supervisor.components()
            dead = [component for component in needed if component not in running]
            if passed > seconds or (dead and passed > 2):
                why = f"{', '.join(dead)} ended" if dead else f"not within {seconds:g} s"
                logs = [self.state.logs / f"{component}.log" for component in dead or needed]
                tails = "\n".join(map(processes.tail, logs))
                raise ClusterError(f"waited for {what}: {why}\n{tails}")
            time.sleep(0.05)


def start(
    state: State, wanted: Description, images: list[Image], *, tied: bool, report: Report
) -> None:
    """Starts a cluster of which nothing is left, and returns when it can be used.

    Raises ClusterError when it does not come up; what has been started is left to the caller.
    """
    node = wanted.mode == "node"
    binaries = tools.build("hyperkube", *(["coredns"] if node else []))
    if node:
        images = [pause_image(), *images]
    ports = components.Ports() if node else _free_ports()
    wanted = Description(wanted.mode, wanted.fake_gpus, wanted.node_labels, ports.api)

    shutil.rmtree(state.logs, ignore_errors=True)
    for folder in (state.run / "etcd", state.bin, state.logs):
        folder.mkdir(parents=True)
    (state.bin / "kubectl").symlink_to(binaries["hyperkube"])
    pki.make_certificates(state.pki, *components.IDENTITIES)
    pki.make_key_pair(state.pki, "sa")
    settings = components.Settings(
        state=state,
        ports=ports,
        node=node,
        fake_gpus=wanted.fake_gpus,
        node_labels=wanted.node_labels,
        hyperkube=binaries["hyperkube"],
        coredns=binaries.get("coredns"),
        pause_image=images[0].reference if node else "",
    )
    components.write_configuration(settings)
    commands = components.command_lines(settings)
    processes.write_scripts(state, commands)
    wanted.write(state)
    if node:
        place = (settings.cgroup, components.NODE, components.NODE_IP)
        supervisor = processes.launch(state, *place, tied=tied)
    else:
        supervisor = processes.launch(state, None, tied=tied)
    cluster = Running(supervisor, wanted)

    first = ["etcd", "kube-apiserver", *(["containerd"] if node else [])]
    for component in first:
        supervisor.start(component)
    if node:
        _import(cluster, images, report)
    # A client that asks before the RBAC roles are made is refused and backs off, which makes the
    # whole start slower: so none is started before.
    cluster.wait("the API server", cluster.api.ready, 90, "etcd", "kube-apiserver")
    report("the API server is ready")
    for component in commands:
        if component not in first:
            supervisor.start(component)
    for what, condition, needed in _usable(cluster):
        cluster.wait(what, condition, 60, *needed)
        report(f"{what}: ready")
    state.complete.touch()


def _usable(cluster: Running) -> list[tuple[str, Callable[[], bool], list[str]]]:
    """What a user of the cluster relies on: name, check, and the components that it takes."""

    def default_account() -> bool:
        return bool(cluster.api.get("/api/v1/namespaces/default/serviceaccounts/default"))

    def node() -> bool:
        status = cluster.api.get(f"/api/v1/nodes/{components.NODE}")["status"]
        gpus = int(status.get("allocatable", {}).get("nvidia.com/gpu", 0))
        ready = any(it["type"] == "Ready" and it["status"] == "True" for it in status["conditions"])
        return ready and gpus == cluster.description.fake_gpus

    def names() -> bool:
        cluster.namespace.connect(components.NODE_IP, 53, timeout=1).close()
        return True

    def services() -> bool:
        cluster.namespace.connect(components.SERVICE_IP, 443, timeout=0.2).close()
        return True

    checks = [("the default service account", default_account, ["kube-controller-manager"])]
    if cluster.description.mode == "node":
        checks += [
            ("the node", node, ["kubelet", "containerd"]),
            ("cluster DNS", names, ["coredns"]),
            ("ClusterIPs", services, ["kube-proxy"]),
        ]
    return checks


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
    cluster.wait("containerd", containerd.answers, 20, "containerd")
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
