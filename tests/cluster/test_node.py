"""A real node behaves like one: what the other tests rely on."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster import images
from tests.cluster.cluster import Cluster
from tests.cluster.paths import ClusterError
from tests.cluster.s3 import S3Server
from tests.cluster.waiting import wait_for
from tests.cluster.workloads import (
    RESTRICTED,
    container,
    deployment,
    job,
    namespace,
    pod,
    pod_spec,
    service,
)

pytestmark = pytest.mark.cluster
SPACE = "work"
GREEDY = ("greedy-1", "greedy-2", "greedy-3")
GPU = "nvidia.com/gpu"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster with every workload of this module on it, so that none is waited for alone."""
    labels = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    base = images.base()
    parameters = {"fake_gpus": 2, "node_labels": labels, "images": [base], "tied": True}
    with Cluster.claim("selftest", **parameters) as cluster:
        cluster.apply(
            namespace(SPACE),
            namespace("strict", **{"pod-security.kubernetes.io/enforce": "restricted"}),
        )
        cluster.apply(*_workloads(base.reference))
        yield cluster


def _workloads(image: str) -> list[dict[str, Any]]:
    def python(code: str, **more: Any) -> dict[str, Any]:
        return container(image, ["python3", "-c", code], **more)

    serve = container(
        image,
        ["python3", "-m", "http.server", "8080"],
        workingDir="/srv",
        readinessProbe={"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
        livenessProbe={"httpGet": {"path": "/", "port": 8080}},
        lifecycle={"preStop": {"sleep": {"seconds": 2}}},
    )
    only_42 = {
        "rules": [
            {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
        ]
    }
    fail = "open('/dev/termination-log', 'w').write('wrong device'); raise SystemExit(42)"
    little = {"resources": {"limits": {"memory": "32Mi", "cpu": "1"}}}
    two_gpus = {"resources": {"limits": {GPU: "2"}}}
    scratch = [{"name": "scratch", "mountPath": "/scratch"}]
    write = (
        "open('/scratch/x', 'w').write('x')\ntry: open('/x', 'w')\nexcept OSError as e: print(e)"
    )
    return [
        deployment("web", SPACE, 2, pod_spec(serve)),
        service("web", SPACE, 8080),
        job("fails", SPACE, pod_spec(python(fail)), backoffLimit=6, podFailurePolicy=only_42),
        *(pod(name, SPACE, pod_spec(python("x = b'x' * (1 << 30)", **little))) for name in GREEDY),
        pod(
            "gpus",
            SPACE,
            pod_spec(python("import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'])", **two_gpus)),
        ),
        pod(
            "strict",
            "strict",
            pod_spec(
                python(write, securityContext=RESTRICTED, volumeMounts=scratch),
                volumes=[{"name": "scratch", "emptyDir": {"medium": "Memory"}}],
                securityContext={"fsGroup": 65532},
            ),
        ),
    ]


def test_a_deployment_becomes_ready_and_its_service_answers_by_name(cluster: Cluster) -> None:
    _await_rollout(cluster)
    with cluster.namespace.enter():
        for name in ("web.work", "web.work.svc", "web.work.svc.cluster.local"):
            with urllib.request.urlopen(f"http://{name}/", timeout=5) as answer:
                assert answer.status == 200
    found = cluster.exec("getent", "hosts", "web.work.svc", capture_output=True)
    assert found.stdout.startswith("10.96.")


def test_pods_reach_services_by_name_and_themselves_too(cluster: Cluster) -> None:
    _await_rollout(cluster)
    fetch = "import urllib.request as u; print(u.urlopen('http://web/', timeout=5).status)"
    for _ in range(4):  # of two pods: each is chosen at least once, with luck
        assert (
            cluster.kubectl("exec", "-n", SPACE, "deploy/web", "--", "python3", "-c", fetch)
            == "200\n"
        )


def test_a_job_fails_for_good_by_its_pod_failure_policy(cluster: Cluster) -> None:
    def failed() -> list[dict[str, Any]]:
        conditions = cluster.api.get(f"/apis/batch/v1/namespaces/{SPACE}/jobs/fails")["status"]
        return [it for it in conditions.get("conditions", []) if it["type"] == "Failed"]

    (condition,) = wait_for(failed, 30, lambda: _pods(cluster))
    assert condition["reason"] == "PodFailurePolicy"
    assert "exit code 42" in condition["message"]
    selector = "labelSelector=batch.kubernetes.io/job-name%3Dfails"
    (run,) = cluster.api.items(f"/api/v1/namespaces/{SPACE}/pods?{selector}")
    assert run["status"]["containerStatuses"][0]["state"]["terminated"]["message"] == "wrong device"


def test_a_container_over_its_memory_limit_is_oom_killed(cluster: Cluster) -> None:
    ends = [_await_end(cluster, name, SPACE) for name in GREEDY]
    assert {end["exitCode"] for end in ends} == {137}
    # containerd now and then hears of the kill after the end, and the reason is then "Error".
    assert "OOMKilled" in {end["reason"] for end in ends}


def test_a_restricted_pod_runs_on_a_read_only_root(cluster: Cluster) -> None:
    assert _await_end(cluster, "strict", "strict")["exitCode"] == 0
    assert "Read-only file system" in cluster.kubectl("logs", "-n", "strict", "strict")


def test_a_restricted_namespace_refuses_a_careless_pod(cluster: Cluster) -> None:
    careless = pod("careless", "strict", pod_spec(container("any", ["true"])))
    with pytest.raises(ClusterError, match="violates PodSecurity"):
        cluster.apply(careless)


def test_fake_gpus_are_counted_and_named(cluster: Cluster) -> None:
    assert _await_end(cluster, "gpus", SPACE)["exitCode"] == 0
    devices = cluster.kubectl("logs", "-n", SPACE, "gpus").strip()
    assert sorted(devices.split(",")) == ["GPU-fake-0", "GPU-fake-1"]


def test_a_rolling_update_loses_no_request(cluster: Cluster) -> None:
    _await_rollout(cluster)
    good, bad = [0], []
    stop = threading.Event()
    address = cluster.api.get(f"/api/v1/namespaces/{SPACE}/services/web")["spec"]["clusterIP"]

    def ask() -> None:
        while not stop.is_set():
            try:
                with urllib.request.urlopen(f"http://{address}/", timeout=5) as answer:
                    answer.read()
                    good[0] += 1
            except OSError as error:
                bad.append(error)

    asking = threading.Thread(target=lambda: cluster.namespace.call(ask))
    asking.start()
    try:
        cluster.kubectl("set", "env", "-n", SPACE, "deploy/web", "REVISION=2")
        _await_rollout(cluster)
        wait_for(lambda: len(_web(cluster)) == 2, 30, "the old pods to be gone")
    finally:
        stop.set()
        asking.join()
    assert not bad
    assert good[0] > 50


def test_pods_outlive_a_restart_of_kubelet_and_api_server(cluster: Cluster) -> None:
    _await_rollout(cluster)
    before = {it["metadata"]["name"]: it["status"] for it in _web(cluster)}
    cluster.restart("kubelet")
    cluster.restart("kube-apiserver")
    gpus = "/api/v1/nodes/node-1"
    wait_for(
        lambda: cluster.api.get(gpus)["status"]["allocatable"].get(GPU) == "2", 30, "GPUs again"
    )
    _await_rollout(cluster)
    after = {it["metadata"]["name"]: it["status"] for it in _web(cluster)}
    assert before.keys() == after.keys()
    assert all(status["containerStatuses"][0]["restartCount"] == 0 for status in after.values())


def test_pods_reach_an_s3_server_on_the_node(cluster: Cluster) -> None:
    _await_rollout(cluster)
    with S3Server(cluster) as server:
        assert server.endpoint.startswith("http://10.89.0.1:")
        fetch = f"""
import urllib.request, urllib.error
try: urllib.request.urlopen({server.endpoint!r}, timeout=5)
except urllib.error.HTTPError as error: print(error.code)
"""
        where = ["exec", "-n", SPACE, "deploy/web", "--"]
        assert cluster.kubectl(*where, "python3", "-c", fetch) == "403\n"
        server.kill()
        assert server.name not in cluster.components()


def test_fake_nodes_stand_beside_the_real_one(cluster: Cluster) -> None:
    cluster.fake_nodes(2, labels={"pool": "fake"})
    ready = cluster.kubectl("get", "nodes", "-l", "pool=fake", "-o", "name").split()
    assert ready == ["node/fake-0", "node/fake-1"]


def _await_rollout(cluster: Cluster) -> None:
    def done() -> bool:
        web = cluster.api.get(f"/apis/apps/v1/namespaces/{SPACE}/deployments/web")
        status = web["status"]
        seen = status.get("observedGeneration") == web["metadata"]["generation"]
        counts = [
            status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas")
        ]
        return seen and counts == [2, 2, 2]

    wait_for(done, 60, lambda: _pods(cluster))


def _web(cluster: Cluster) -> list[dict[str, Any]]:
    return cluster.api.items(f"/api/v1/namespaces/{SPACE}/pods?labelSelector=app%3Dweb")


def _await_end(cluster: Cluster, name: str, space: str) -> dict[str, Any]:
    """How the only container of a pod ended."""

    def end() -> dict[str, Any] | None:
        status = cluster.api.get(f"/api/v1/namespaces/{space}/pods/{name}")["status"]
        (state,) = status.get("containerStatuses") or [{"state": {}}]
        ended: dict[str, Any] | None = state["state"].get("terminated")
        return ended

    found = wait_for(end, 30, lambda: _pods(cluster))
    assert found is not None
    return found


def _pods(cluster: Cluster) -> str:
    return "the pods:\n" + cluster.kubectl("get", "pods", "-A", "-o", "wide")
