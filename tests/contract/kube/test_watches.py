"""What the watches bring, and that they ask for nothing else and write nothing at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmengine_operator.kinds import DEPLOYMENT, EVENT, JOB, LLMENGINE, POD, RUNTIME
from llmengine_operator.kube import KubeClient
from tests.contract.kube.conftest import Setting, a_managed_job, an_engine
from tests.contract.kube.operator_process import OperatorProcess
from tests.contract.kube.proxy import ApiProxy, Fault

pytestmark = pytest.mark.controlplane

MANAGED = {"app.kubernetes.io/managed-by": "llmengine-operator"}


def a_pod(namespace: str, name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }


def a_deployment(namespace: str, name: str) -> dict[str, Any]:
    selector = {"app": name}
    pod = {"metadata": {"labels": selector}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    return {
        "metadata": {"namespace": namespace, "name": name, "labels": MANAGED},
        "spec": {"replicas": 0, "selector": {"matchLabels": selector}, "template": pod},
    }


def a_runtime(name: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {
            "backend": "onnxruntime",
            "version": "1.32.0",
            "accelerator": "cpu",
            "image": {"repository": "localhost/llmengine/onnxruntime", "tag": "1"},
        },
    }


@pytest.fixture
def operator(setting: Setting, proxy: ApiProxy, tmp_path: Path) -> OperatorProcess:
    return OperatorProcess(tmp_path, setting.kubeconfig(tmp_path, proxy.port))


def test_each_kind_wakes_when_it_comes_changes_and_goes(
    operator: OperatorProcess, kube: KubeClient, namespace: str
) -> None:
    runtime = f"runtime-{namespace}"
    with operator:
        operator.until_working()
        kube.create(LLMENGINE, an_engine(namespace, "chat"))
        kube.create(RUNTIME, a_runtime(runtime))
        kube.create(JOB, a_managed_job(namespace, "build", annotations={"llmengine.io/key": "k"}))
        kube.create(DEPLOYMENT, a_deployment(namespace, "web"))
        kube.create(POD, a_pod(namespace, "pod", MANAGED))
        kube.create(POD, a_pod(namespace, "stranger", {"app": "other"}))
        events: list[dict[str, Any]] = [
            {"wake": "LLMEngine", "namespace": namespace, "name": "chat"},
            {"wake": "EngineRuntime", "name": runtime},
            {"wake": "Deployment", "namespace": namespace},
            {"wake": "Pod", "namespace": namespace, "labels": MANAGED},
        ]
        for event in events:
            operator.until(lambda event=event: operator.said(**event))  # type: ignore[misc]
        operator.until(lambda: operator.said(wake="Job", annotations={"llmengine.io/key": "k"}))
        operator.until(lambda: operator.said(ends=f"{namespace}/chat"))

        operator.lines.clear()
        kube.delete(LLMENGINE, namespace, "chat")
        kube.delete(RUNTIME, None, runtime)
        kube.delete(DEPLOYMENT, namespace, "web")
        kube.delete(POD, namespace, "pod")
        kube.delete(POD, namespace, "stranger")
        kube.delete(JOB, namespace, "build")
        for event in events:
            operator.until(lambda event=event: operator.said(**event))  # type: ignore[misc]
        operator.until(lambda: operator.said(wake="Job", namespace=namespace))
        assert not any(line.get("labels", MANAGED).get("app") == "other" for line in operator.lines)


def test_watching_writes_nothing_and_reads_nothing_but_what_is_watched(
    operator: OperatorProcess, proxy: ApiProxy, kube: KubeClient, namespace: str
) -> None:
    engine = kube.create(LLMENGINE, an_engine(namespace, "chat"))
    with operator:
        operator.until(lambda: operator.said(ends=f"{namespace}/chat"))
        edited = {**engine, "spec": {**engine["spec"], "suspend": True}}
        edited = kube.replace(LLMENGINE, edited)
        operator.until(
            lambda: (
                operator.lines.count({"ends": f"{namespace}/chat"}) == 2
                and sum(seen.watch for seen in proxy.requests) >= 6
            )
        )
        found = kube.get(LLMENGINE, namespace, "chat")
    assert found == edited
    assert "finalizers" not in found["metadata"]
    assert kube.list(EVENT, namespace) == []
    kopf = [seen for seen in proxy.requests if seen.agent.startswith("kopf")]
    assert {seen.method for seen in kopf} == {"GET"}
    listed = {seen.path for seen in kopf if "limit=" in seen.query or seen.watch}
    assert listed == {
        "/apis/llmengine.io/v1alpha1/llmengines",
        "/apis/llmengine.io/v1alpha1/engineruntimes",
        "/apis/batch/v1/jobs",
        "/apis/apps/v1/deployments",
        "/api/v1/pods",
        "/api/v1/nodes",
    }
    for seen in kopf:
        if seen.path.endswith(("/jobs", "/deployments", "/pods")):
            assert "labelSelector=app.kubernetes.io/managed-by%3Dllmengine-operator" in seen.query


def test_only_the_namespaces_that_are_configured_are_watched(
    setting: Setting, proxy: ApiProxy, kube: KubeClient, namespace: str, tmp_path: Path
) -> None:
    builds = "llmengine-builds"
    setting.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": builds}})
    for where in (namespace, builds, "default"):
        kube.apply(LLMENGINE, an_engine(where, f"chat-{namespace}"))
    operator = OperatorProcess(
        tmp_path,
        setting.kubeconfig(tmp_path, proxy.port),
        watch_namespaces=(namespace,),
    )
    with operator:
        operator.until(lambda: operator.said(ends=f"{namespace}/chat-{namespace}"))
        kube.create(JOB, a_managed_job(builds, f"build-{namespace}"))
        operator.until(lambda: operator.said(wake="Job", namespace=builds))
        assert not operator.said(begins=f"{builds}/chat-{namespace}")
        assert not operator.said(begins=f"default/chat-{namespace}")
    paths = {seen.path for seen in proxy.requests if "limit=" in seen.query}
    assert "/apis/batch/v1/jobs" not in paths
    assert f"/apis/batch/v1/namespaces/{builds}/jobs" in paths
    for where in (builds, "default"):
        kube.delete(LLMENGINE, where, f"chat-{namespace}")


def test_a_deletion_that_the_watch_has_lost_wakes_all_the_same(
    operator: OperatorProcess, proxy: ApiProxy, kube: KubeClient, namespace: str
) -> None:
    kube.create(JOB, a_managed_job(namespace, "build"))
    with operator:
        operator.until(lambda: operator.said(wake="Job", namespace=namespace))
        operator.lines.clear()
        jobs_lose: Callable[[Any], Fault] = lambda seen: (  # noqa: E731
            Fault.ONLY_BOOKMARKS if seen.path.endswith("/jobs") else Fault.NONE
        )
        proxy.faults = jobs_lose
        kube.delete(JOB, namespace, "build")
        operator.until(lambda: operator.said(wake="Job", namespace=namespace))
        assert operator.logged("the watch of jobs has not told of 1 deletion(s)")
        proxy.faults = lambda seen: Fault.NONE
        kube.create(JOB, a_managed_job(namespace, "next"))
        operator.until(lambda: operator.said(wake="Job", namespace=namespace))


def test_a_watch_whose_connection_is_cut_goes_on_where_it_was(
    operator: OperatorProcess, proxy: ApiProxy, kube: KubeClient, namespace: str
) -> None:
    with operator:
        operator.until_working()
        kube.create(LLMENGINE, an_engine(namespace, "before"))
        operator.until(lambda: operator.said(ends=f"{namespace}/before"))
        proxy.faults = lambda seen: Fault.CUT if seen.watch else Fault.NONE
        kube.create(LLMENGINE, an_engine(namespace, "during"))
        operator.until(lambda: sum(seen.watch for seen in proxy.requests) > 12)
        proxy.faults = lambda seen: Fault.NONE
        operator.until(lambda: operator.said(ends=f"{namespace}/during"))
