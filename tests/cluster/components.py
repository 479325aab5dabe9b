"""The command line of every component; nothing here runs one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import pki
from tests.cluster.node import CLUSTER_CIDR, NODE_IP, Node
from tests.cluster.paths import SOURCES, State

FAKE_POD_CIDR = "10.245.0.1/16"
SERVICE_CIDR = "10.96.0.0/16"
SERVICE_IP = "10.96.0.1"

_SERVICE_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc")
_ADMINS = "system:masters"
IDENTITIES = (
    pki.server(
        "apiserver",
        *("DNS:localhost", *(f"DNS:{name}" for name in _SERVICE_NAMES)),
        "DNS:kubernetes.default.svc.cluster.local",
        *("IP:127.0.0.1", f"IP:{NODE_IP}", f"IP:{SERVICE_IP}"),
    ),
    pki.client("admin", "admin", _ADMINS),
    pki.client("apiserver-kubelet", "apiserver-kubelet", _ADMINS),
    pki.client("coredns", "coredns", _ADMINS),
    pki.client("kwok", "kwok", _ADMINS),
    pki.client("kube-controller-manager", "system:kube-controller-manager"),
    pki.client("kube-proxy", "system:kube-proxy"),
    pki.client("kube-scheduler", "system:kube-scheduler"),
)
_OF_NODES = ("containerd.toml", "kubelet.yaml", "kube-proxy.yaml", "cni.conflist")


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the control plane listens, on loopback but for the API server of a node."""

    api: int = 6443
    etcd: int = 2379
    etcd_peer: int = 2380


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command lines depend on."""

    state: State
    ports: Ports
    node: bool
    fake_gpus: int
    node_labels: Mapping[str, str]
    hyperkube: Path
    coredns: Path | None
    pause_image: str


def command_lines(settings: Settings) -> dict[str, list[str]]:
    """By component; the ones of a node only where there is a node."""
    commands = _control_plane(settings)
    if settings.node:
        commands |= node_command_lines(settings, Node(settings.state))
    return commands


def write_configuration(settings: Settings) -> None:
    """Writes what the control plane and the first node, if there is one, read at their start."""
    run = settings.state.run
    values = {"RUN": str(run), "NODE_IP": NODE_IP}
    for name in ("Corefile", "kwok-stages.yaml"):
        (run / name).write_text(_filled_in(name, values))
    for identity in IDENTITIES:
        user = identity.name
        file = settings.state.kubeconfig if user == "admin" else run / f"{user}.kubeconfig"
        _write_kubeconfig(settings, file, user, "127.0.0.1")
    if settings.node:
        write_node_configuration(settings, Node(settings.state))


def write_node_configuration(settings: Settings, node: Node) -> None:
    """Writes what the components of a node read at their start into its run folder."""
    run = node.folder.run
    values = {
        "PKI": str(settings.state.pki),
        "RUN": str(run),
        "IMAGES": str(node.folder.images),
        "CGROUP": node.cgroup,
        "NODE": node.name,
        "DNS": NODE_IP,
        "POD_CIDR": node.pod_cidr,
        "CLUSTER_CIDR": CLUSTER_CIDR,
        "PAUSE_IMAGE": settings.pause_image,
    }
    for name in _OF_NODES:
        target = run / ("cni/10-pods.conflist" if name == "cni.conflist" else name)
        target.parent.mkdir(exist_ok=True)
        target.write_text(_filled_in(name, values))
    for user, file in ((node.kubelet.name, "kubelet"), ("kube-proxy", "kube-proxy")):
        _write_kubeconfig(settings, run / f"{file}.kubeconfig", user, NODE_IP)
    etc = run / "etc"
    etc.mkdir()
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n{node.address} {node.name}\n")
    (etc / "resolv.conf").write_text(
        f"nameserver {NODE_IP}\nsearch svc.cluster.local cluster.local\noptions ndots:5\n"
    )


def _filled_in(name: str, values: Mapping[str, str]) -> str:
    text = (SOURCES / "conf" / name).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def _write_kubeconfig(settings: Settings, file: Path, user: str, host: str) -> None:
    file.write_text(_kubeconfig(settings, user, host))
    file.chmod(0o600)


def _kubeconfig(settings: Settings, user: str, host: str) -> str:
    pki = settings.state.pki
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": settings.state.name,
                "cluster": {
                    "server": f"https://{host}:{settings.ports.api}",
                    "certificate-authority": str(pki / "ca.crt"),
                },
            }
        ],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate": str(pki / f"{user}.crt"),
                    "client-key": str(pki / f"{user}.key"),
                },
            }
        ],
        "contexts": [
            {
                "name": settings.state.name,
                "context": {"cluster": settings.state.name, "user": user},
            }
        ],
        "current-context": settings.state.name,
    }
    return json.dumps(config, indent=2) + "\n"


def _control_plane(settings: Settings) -> dict[str, list[str]]:
    run, pki, ports = settings.state.run, settings.state.pki, settings.ports
    hyperkube = str(settings.hyperkube)
    etcd = f"http://127.0.0.1:{ports.etcd}"
    etcd_peer = f"http://127.0.0.1:{ports.etcd_peer}"
    if settings.node:
        # kubectl logs and exec would dial the node by its name, which only the node can resolve.
        reach = ["--bind-address=0.0.0.0", f"--advertise-address={NODE_IP}"]
        reach += ["--kubelet-preferred-address-types=InternalIP"]
    else:
        # Nothing reaches a ClusterIP; an address for documentation satisfies the check.
        reach = ["--bind-address=127.0.0.1", "--advertise-address=192.0.2.1"]
        reach += ["--endpoint-reconciler-type=none"]
    return {
        "etcd": [
            *(hyperkube, "etcd", "--name=etcd", f"--data-dir={run}/etcd"),
            *("--unsafe-no-fsync", "--log-level=warn"),  # the state is thrown away with the cluster
            *(f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}"),
            *(f"--listen-peer-urls={etcd_peer}", f"--initial-advertise-peer-urls={etcd_peer}"),
            f"--initial-cluster=etcd={etcd_peer}",
        ],
        "kube-apiserver": [
            *(hyperkube, "kube-apiserver", *reach),
            *(f"--etcd-servers={etcd}", f"--secure-port={ports.api}"),
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            *("--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"),
            *("--allow-privileged=true", "--anonymous-auth=true", "--profiling=false", "--v=1"),
            f"--client-ca-file={pki}/ca.crt",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            f"--kubelet-client-certificate={pki}/apiserver-kubelet.crt",
            f"--kubelet-client-key={pki}/apiserver-kubelet.key",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki}/sa.pub",
            f"--service-account-signing-key-file={pki}/sa.key",
        ],
        "kube-controller-manager": [
            *(hyperkube, "kube-controller-manager", "--v=1"),
            f"--kubeconfig={run}/kube-controller-manager.kubeconfig",
            # The default of 20 requests a second alone costs 5 s at the start.
            *("--kube-api-qps=200", "--kube-api-burst=400"),
            # By default an autoscaler measures every 15 s and takes pods away after 5 minutes.
            "--horizontal-pod-autoscaler-sync-period=2s",
            "--horizontal-pod-autoscaler-downscale-stabilization=5s",
            *("--leader-elect=false", "--secure-port=0", "--profiling=false"),
            *("--use-service-account-credentials", f"--root-ca-file={pki}/ca.crt"),
            f"--service-account-private-key-file={pki}/sa.key",
        ],
        "kube-scheduler": [
            *(hyperkube, "kube-scheduler", "--v=1"),
            f"--kubeconfig={run}/kube-scheduler.kubeconfig",
            *("--leader-elect=false", "--secure-port=0", "--profiling=false"),
        ],
    }


def kwok(state: State, binary: Path) -> list[str]:
    run = state.run
    return [
        *(str(binary), f"--kubeconfig={run}/kwok.kubeconfig", f"--config={run}/kwok-stages.yaml"),
        *(
            "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
        ),
        *("--node-lease-duration-seconds=40", f"--cidr={FAKE_POD_CIDR}"),
        "--server-address=127.0.0.1:0",
    ]


def node_command_lines(settings: Settings, node: Node) -> dict[str, list[str]]:
    """By component; the cluster's DNS is one of the first node's."""
    run, hyperkube = node.folder.run, str(settings.hyperkube)
    labels = ",".join(f"{key}={value}" for key, value in settings.node_labels.items())
    commands = {
        "containerd": ["containerd", f"--config={run}/containerd.toml"],
        "kubelet": [
            *(hyperkube, "kubelet", "--v=2", f"--config={run}/kubelet.yaml"),
            f"--kubeconfig={run}/kubelet.kubeconfig",
            f"--hostname-override={node.name}",
            *(f"--node-ip={node.address}", f"--node-labels={labels}"),
        ],
        "kube-proxy": [hyperkube, "kube-proxy", f"--config={run}/kube-proxy.yaml", "--v=1"],
    }
    if settings.coredns is not None and node.first:
        commands["coredns"] = [str(settings.coredns), "-conf", f"{run}/Corefile"]
    if settings.fake_gpus:
        commands["fake-gpus"] = [hyperkube, "fake-gpus", str(settings.fake_gpus)]
    return commands
