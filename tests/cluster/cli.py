"""The clusters by hand: see `cluster --help`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.cluster.cluster import Cluster
from tests.cluster.images import Image
from tests.cluster.paths import ClusterError, cache
from tests.tools import build as tools
from tests.tools import crds

DEBIAN_PACKAGES = {
    "cluster": (
        *("containerd", "runc", "containernetworking-plugins", "nftables", "iproute2"),
        *("util-linux", "kmod", "openssl", "curl"),
    ),
    "images": ("buildah", "mmdebstrap", "ca-certificates", "gcc", "libc6-dev"),
}


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ClusterError, tools.ToolError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cluster", description="A local Kubernetes cluster.")
    parser.add_argument(
        "--name",
        default=os.environ.get("LLMENGINE_CLUSTER", "local"),
        help="which cluster (default: $LLMENGINE_CLUSTER, else local)",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    up = commands.add_parser("up", help="start it, and wait until it can be used")
    up.add_argument("--mode", choices=("node", "control-plane"), default="node")
    up.add_argument("--nodes", type=int, default=1, metavar="COUNT")
    up.add_argument("--fake-gpus", type=int, default=0, metavar="COUNT")
    up.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="of nodes")
    up.add_argument(
        *("--image", "-i"),
        nargs=2,
        action="append",
        default=[],
        metavar=("REFERENCE", "ARCHIVE"),
        help="as tests/cluster/images.py prints them",
    )
    up.set_defaults(run=_up)

    down = commands.add_parser("down", help="end it; images, certificates and logs are kept")
    down.add_argument("--remove", action="store_true", help="keep nothing")
    down.set_defaults(run=_down)

    kubectl = commands.add_parser("kubectl", help="its kubectl", add_help=False)
    kubectl.add_argument("arguments", nargs=argparse.REMAINDER)
    kubectl.set_defaults(run=_kubectl)

    execute = commands.add_parser("exec", help="run a command in its network; default: a shell")
    execute.add_argument("arguments", nargs=argparse.REMAINDER)
    execute.set_defaults(run=_exec)

    status = commands.add_parser("status", help="what runs")
    status.set_defaults(run=_status)

    logs = commands.add_parser("logs", help="the log of a component, of this run or the last one")
    logs.add_argument("component", nargs="?", help="default: list them")
    logs.add_argument("-f", "--follow", action="store_true")
    logs.set_defaults(run=_logs)

    for verb in ("stop", "start", "restart"):
        one = commands.add_parser(verb, help=f"{verb} one component, such as kubelet")
        one.add_argument("component")
        one.set_defaults(run=_component)

    fake = commands.add_parser("fake-nodes", help="add nodes that kwok plays")
    fake.add_argument("count", type=int)
    fake.add_argument("--prefix", default="fake")
    fake.add_argument("--label", action="append", default=[], metavar="KEY=VALUE")
    fake.add_argument("--allocatable", action="append", default=[], metavar="RESOURCE=AMOUNT")
    fake.add_argument("--manual", action="store_true", help="Jobs do not complete by themselves")
    fake.set_defaults(run=_fake_nodes)

    install = commands.add_parser("install", help="install Debian packages, build the Go programs")
    install.set_defaults(run=_install)
    return parser


def _up(options: argparse.Namespace) -> int:
    began = time.monotonic()
    cluster = Cluster(
        options.name,
        mode=options.mode,
        nodes=options.nodes,
        fake_gpus=options.fake_gpus,
        node_labels=_pairs(options.label),
        images=[Image(reference, Path(archive)) for reference, archive in options.image],
        report=lambda step: print(f"{time.monotonic() - began:5.1f} s  {step}", flush=True),
    )
    cluster.up()
    print(f"{time.monotonic() - began:5.1f} s  up: KUBECONFIG={cluster.kubeconfig}")
    return 0


def _down(options: argparse.Namespace) -> int:
    began = time.monotonic()
    cluster = Cluster(options.name)
    if options.remove:
        cluster.remove()
    else:
        cluster.down()
    print(f"{time.monotonic() - began:5.1f} s  down")
    return 0


def _kubectl(options: argparse.Namespace) -> int:
    return _become(options.name, ["kubectl", *options.arguments])


def _exec(options: argparse.Namespace) -> int:
    arguments = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments
    return _become(options.name, arguments or [os.environ.get("SHELL", "/bin/sh")])


def _become(name: str, command: list[str]) -> int:
    cluster = Cluster.attach(name)
    line = cluster.command(*command)
    try:
        os.execvpe(line[0], line, cluster.environment())
    except FileNotFoundError:
        raise ClusterError(f"no such program: {line[0]}") from None


def _status(options: argparse.Namespace) -> int:
    cluster = Cluster.attach(options.name)
    print(f"cluster {cluster.name}, mode {cluster.mode}, KUBECONFIG={cluster.kubeconfig}")
    for component, pid in cluster.components().items():
        resident = Path(f"/proc/{pid}/statm").read_text().split()[1]
        mebibytes = int(resident) * os.sysconf("SC_PAGE_SIZE") >> 20
        print(f"  {component:24} pid {pid:<8} {mebibytes:4} MiB")
    print(cluster.kubectl("get", "nodes"), end="")
    return 0


def _logs(options: argparse.Namespace) -> int:
    cluster = Cluster(options.name)
    if options.component is None:
        print("\n".join(cluster.logs()))
        return 0
    log = cluster.log(options.component)
    if not log.exists():
        raise ClusterError(f"no log {log}")
    command = ["tail", "-n", "+1", *(["-f"] if options.follow else []), str(log)]
    return subprocess.run(command, check=False).returncode


def _component(options: argparse.Namespace) -> int:
    getattr(Cluster.attach(options.name), options.command)(options.component)
    return 0


def _fake_nodes(options: argparse.Namespace) -> int:
    names = Cluster.attach(options.name).fake_nodes(
        options.count,
        prefix=options.prefix,
        labels=_pairs(options.label),
        allocatable=_pairs(options.allocatable),
        manual=options.manual,
    )
    print("\n".join(names))
    return 0


def _install(options: argparse.Namespace) -> int:
    packages = [package for group in DEBIAN_PACKAGES.values() for package in group]
    missing = [package for package in packages if not _installed(package)]
    if missing and os.geteuid() != 0:
        print(f"not root: skipping the Debian packages {' '.join(missing)}", file=sys.stderr)
    elif missing:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *missing],
        ):
            done = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
            if done.returncode != 0:
                raise ClusterError(f"failed: {' '.join(command)}")
    tools.build(*tools.TOOLS)
    crds.crds()
    print(f"installed: programs in {cache() / 'tools'}")
    return 0


def _installed(package: str) -> bool:
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    return found.stdout == "installed"


def _pairs(texts: list[str]) -> dict[str, str]:
    return {key: value for key, _, value in (text.partition("=") for text in texts)}
