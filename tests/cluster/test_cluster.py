"""Whatever ends a cluster, nothing of it stays; and it starts again from what was kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import images
from tests.cluster.cluster import Cluster
from tests.cluster.fake_nodes import end_pod
from tests.cluster.paths import REPOSITORY, ClusterError, State
from tests.cluster.waiting import wait_for
from tests.cluster.workloads import container, deployment, job, namespace, pod, pod_spec
from tests.tools import build as tools

NOBODY = 65534
NODES = ("node-1", "node-2")


@pytest.fixture
def name() -> Iterator[str]:
    """Of a cluster for one test, of which nothing is kept."""
    name = f"selftest-{os.getpid()}-{time.monotonic_ns() % 10**6}"
    yield name
    Cluster(name).remove()


@pytest.mark.cluster
def test_nothing_stays_of_two_nodes_that_ran_pods(name: str) -> None:
    before = _traces(name)
    steps: list[str] = []
    cluster = Cluster(name, nodes=2, fake_gpus=1, report=steps.append)
    with cluster:
        cluster.apply(namespace("work"), *_sleepers())
        _await_sleepers(cluster)
        assert _traces(name) != before
    assert _traces(name) == before
    assert not cluster.state.run.exists()
    assert any(step.startswith("importing") for step in steps)

    steps.clear()
    began = time.monotonic()
    with cluster:
        print(f"second start: {time.monotonic() - began:.1f} s")
        assert not any(step.startswith("importing") for step in steps)
        cluster.apply(namespace("work"), *_sleepers())
        _await_sleepers(cluster)
        began = time.monotonic()
    print(f"end: {time.monotonic() - began:.1f} s")
    assert _traces(name) == before


@pytest.mark.cluster
def test_a_tied_cluster_ends_with_its_killed_caller(name: str) -> None:
    before = _traces(name)
    code = f"""
from tests.cluster.cluster import Cluster
Cluster({name!r}, nodes=2, tied=True).up()
print("up", flush=True)
import signal; signal.pause()
"""
    caller = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert caller.stdout is not None
    with caller:
        assert caller.stdout.readline() == "up\n"
        assert _traces(name)["processes"]
        caller.kill()
    wait_for(lambda: not _traces(name)["processes"], 5, "the cluster's processes to end")
    assert not Cluster(name).is_up()
    Cluster(name).down()
    assert _traces(name) == before


@pytest.mark.cluster
def test_a_start_that_was_killed_half_way_does_not_hinder_the_next(name: str) -> None:
    before = _traces(name)
    starting = _cli("--name", name, "up")
    wait_for((State(name).run / "ready").exists, 20, "the node's init to run")
    starting.kill()
    starting.wait()
    assert _traces(name)["processes"]  # it was not tied
    with Cluster(name) as cluster:
        assert "node-1" in cluster.kubectl("get", "nodes")
    assert _traces(name) == before


@pytest.mark.cluster
def test_a_component_that_does_not_come_up_is_named_with_its_log(name: str) -> None:
    before = _traces(name)
    refused = {"kubernetes.io/not-for-kubelets": "x"}
    with pytest.raises(ClusterError, match=r"(?s)node-1: kubelet ended.*kubernetes.io/not-for"):
        Cluster(name, node_labels=refused).up()
    assert _traces(name) == before


@pytest.mark.controlplane
def test_control_planes_run_side_by_side(name: str) -> None:
    with (
        Cluster(f"{name}-a", mode="control-plane", tied=True) as one,
        Cluster(f"{name}-b", mode="control-plane", tied=True) as other,
    ):
        with pytest.raises(ClusterError, match="is up already"):
            Cluster(one.name, mode="control-plane").up()
        one.apply(namespace("only-here"))
        assert "only-here" in one.kubectl("get", "namespaces")
        assert "only-here" not in other.kubectl("get", "namespaces")
    for cluster in (one, other):
        assert not _traces(cluster.name)["processes"]
        cluster.remove()


@pytest.mark.controlplane
def test_fake_nodes_play_pods_and_jobs_end_as_they_are_told(name: str) -> None:
    gpu = {"nvidia.com/gpu": "8"}
    with Cluster(name, mode="control-plane", tied=True) as cluster:
        cluster.fake_nodes(2, labels={"pool": "auto"}, allocatable=gpu)
        cluster.fake_nodes(1, labels={"pool": "manual"}, manual=True)
        takes_gpus = container("any", ["x"], resources={"limits": {"nvidia.com/gpu": "4"}})
        cluster.apply(
            namespace("work"),
            deployment("web", "work", 4, pod_spec(takes_gpus)),
            job("good", "work", _on("auto")),
            job("bad", "work", _on("manual")),
        )
        wait_for(lambda: _status(cluster, "deployments", "web").get("availableReplicas") == 4)
        wait_for(lambda: _status(cluster, "jobs", "good").get("succeeded") == 1)
        wait_for(lambda: _status(cluster, "jobs", "bad").get("ready") == 1)
        run = cluster.kubectl("get", "pods", "-n", "work", "-l", "job-name=bad", "-o", "name")
        name_of_run = run.strip().removeprefix("pod/")
        end_pod(cluster.api, "work", name_of_run, exit_code=13, message="wrong device")
        wait_for(lambda: _status(cluster, "jobs", "bad").get("failed") == 1)
        (end,) = _status(cluster, "pods", name_of_run)["containerStatuses"]
        assert end["state"]["terminated"]["exitCode"] == 13
        assert end["state"]["terminated"]["message"] == "wrong device"


@pytest.mark.controlplane
def test_a_control_plane_needs_no_root(name: str) -> None:
    go = shutil.which("go")
    python = Path("/usr/bin/python3")
    if go is None or Path(go).resolve().is_relative_to("/root") or not python.exists():
        pytest.skip("nobody can run Go or Python here")
    folder = Path(tempfile.mkdtemp(prefix="selftest-"))
    try:
        folder.chmod(0o755)
        for part in ("tests/cluster", "tests/tools"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / part, folder / part, ignore=ignored)
        cache = folder / "cache"
        for tool, binary in tools.build("hyperkube", "kwok").items():
            copy = cache / "llmengine/tools" / binary.parent.name / tool
            copy.parent.mkdir(parents=True)
            shutil.copy(binary, copy)
        for path in (cache, *cache.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        environment = {"XDG_CACHE_HOME": str(cache), "PATH": f"{Path(go).parent}:/usr/bin:/bin"}

        def cluster(*arguments: str, stdin: str = "") -> str:
            command = [str(python), str(folder / "tests/cluster/cluster"), "--name", name]
            user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
            done = subprocess.run(
                ["setpriv", *user, *command, *arguments],
                input=stdin,
                env=environment,
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        cluster("up", "--mode", "control-plane")
        try:
            cluster("fake-nodes", "1")
            create = ["create", "job", "done", "--image=any", "--", "x"]
            cluster("kubectl", *create)
            cluster("kubectl", "wait", "--for=condition=Complete", "job/done", "--timeout=20s")
        finally:
            cluster("down")
        assert not _traces(name)["processes"]
    finally:
        shutil.rmtree(folder)


def _cli(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(REPOSITORY / "tests/cluster/cluster"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _sleepers() -> list[dict[str, Any]]:
    """A pod on each node."""
    run = container(images.pause_image().reference, ["/pause"])
    return [
        pod(node, "work", pod_spec(run, nodeSelector={"kubernetes.io/hostname": node}))
        for node in NODES
    ]


def _await_sleepers(cluster: Cluster) -> None:
    def run() -> bool:
        return {_phase(cluster, "work", node) for node in NODES} == {"Running"}

    wait_for(run, 30, "the pods to run")


def _on(pool: str) -> dict[str, Any]:
    return pod_spec(container("any", ["x"]), nodeSelector={"pool": pool})


def _status(cluster: Cluster, kind: str, name: str) -> dict[str, Any]:
    groups = {"deployments": "apis/apps/v1", "jobs": "apis/batch/v1", "pods": "api/v1"}
    found = cluster.api.get(f"/{groups[kind]}/namespaces/work/{kind}/{name}")
    status: dict[str, Any] = found.get("status", {})
    return status


def _phase(cluster: Cluster, space: str, name: str) -> str:
    found = cluster.api.get(f"/api/v1/namespaces/{space}/pods/{name}")
    return str(found["status"]["phase"])


def _traces(name: str) -> dict[str, Any]:
    """What a cluster could leave on this machine. Of mounts, cgroups and processes: its own."""
    mark = f"llmengine-{name}"
    folder = str(State(name).root)
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    hierarchies = [Path(line.split()[4]) for line in mounts if " - cgroup" in line]
    rules = []
    if os.geteuid() == 0:
        listed = subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=False)
        rules = listed.stdout.decode().splitlines()
    settings = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")
    return {
        "mounts": [line for line in mounts if folder in line],
        "cgroups": [str(it / mark) for it in hierarchies if (it / mark).exists()],
        "processes": sorted(_processes(mark, folder)),
        "links": sorted(link.name for link in Path("/sys/class/net").iterdir()),
        "rules": rules,
        "settings": [Path("/proc/sys", setting).read_text() for setting in settings],
    }


def _processes(mark: str, folder: str) -> Iterator[int]:
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with suppress(OSError):
                cgroups = (process / "cgroup").read_text()
                command = (process / "cmdline").read_bytes().decode(errors="replace")
                if mark in cgroups or folder in command:
                    yield int(process.name)
