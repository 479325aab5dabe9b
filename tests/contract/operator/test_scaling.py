"""Who sets the number of pods: Kubernetes' own autoscaler by the servers' metrics, or nobody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llmengine_operator.kinds import DEPLOYMENT, HPA, POD
from tests.contract.operator.builder import Builder, request_of
from tests.contract.operator.custom_metrics import MetricsAdapter
from tests.contract.operator.running import LiveOperator, Stepper
from tests.contract.operator.stage import Stage

pytestmark = pytest.mark.controlplane

PER_SLOT = "llmengine_requests_per_slot"
WAITING = "llmengine_requests_waiting_per_slot"
BY_REQUESTS = {
    "autoscaling": {"minReplicas": 1, "maxReplicas": 4, "targetRequestsWaitingPerSlot": "500m"}
}


@pytest.fixture
def adapter(stage: Stage) -> Iterator[MetricsAdapter]:
    with MetricsAdapter(stage.cluster, stage.team) as registered:
        yield registered


def deployment(stage: Stage) -> dict[str, Any]:
    found = stage.get(DEPLOYMENT, "chat-amd64")
    assert found is not None
    return found


def replicas(stage: Stage) -> int:
    return int(deployment(stage)["spec"]["replicas"])


def writers_of_replicas(stage: Stage) -> set[tuple[str, str]]:
    """Managers that own the number of pods, with the subresource that they wrote it by."""
    return {
        (entry["manager"], entry.get("subresource", ""))
        for entry in deployment(stage)["metadata"]["managedFields"]
        if "f:replicas" in entry["fieldsV1"].get("f:spec", {})
    }


def serve(stage: Stage, builder: Builder, **serving: Any) -> None:
    stage.create(serving=serving)
    builder.finish(stage.until_job())
    stage.until_reason("Serving")


def test_the_autoscaler_of_kubernetes_scales_an_engine_by_its_requests_and_nobody_else_does(
    stage: Stage, builder: Builder, adapter: MetricsAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter.values = {WAITING: "0"}
    fights: list[Any] = []
    with LiveOperator(stage) as operator:
        monkeypatch.setattr(operator.client, "scale", lambda *asked: fights.append(asked))
        serve(stage, builder, **BY_REQUESTS)
        stage.until("the autoscaler to ask", lambda: (stage.team, WAITING) in adapter.asked)
        assert replicas(stage) == 1
        # Twice as many wait as should: twice the pods, and again, up to the limit.
        adapter.values[WAITING] = "1"
        stage.until("two pods or more", lambda: replicas(stage) >= 2)
        stage.until("all that may be", lambda: stage.status()["summary"]["replicas"] == "4/4")
        assert writers_of_replicas(stage) == {("kube-controller-manager", "scale")}
        # An edit in the midst of it.
        stage.edit(serving={"modelName": "other"})
        stage.until_reason("Serving")
        for _ in range(3):
            operator.resync()
        assert replicas(stage) == 4
        adapter.values[WAITING] = "0"
        stage.until("one pod", lambda: stage.status()["summary"]["replicas"] == "1/1")
        stage.until_reason("Serving")
    assert fights == []
    assert writers_of_replicas(stage) == {("kube-controller-manager", "scale")}


def test_the_larger_of_two_targets_counts(
    stage: Stage, builder: Builder, adapter: MetricsAdapter
) -> None:
    """Nobody waits, but the slots are full: by what waits alone the pods would go."""
    adapter.values = {WAITING: "0", PER_SLOT: "900m"}
    scaling = {**BY_REQUESTS["autoscaling"], "targetRequestsPerSlot": "450m"}
    with LiveOperator(stage):
        serve(stage, builder, autoscaling=scaling)
        stage.until("all that may be", lambda: stage.status()["summary"]["replicas"] == "4/4")
        assert {(stage.team, WAITING), (stage.team, PER_SLOT)} <= adapter.asked


def test_who_has_no_metrics_keeps_his_pods_and_hears_of_it(stage: Stage, builder: Builder) -> None:
    with LiveOperator(stage) as operator:
        serve(stage, builder, **BY_REQUESTS)

        def hindered() -> bool:
            operator.resync()  # it looks again by itself, half a minute later
            return "the autoscaler cannot scale chat-amd64 (FailedGetPodsMetric)" in stage.message()

        stage.until("the autoscaler's trouble", hindered, interval=0.5)
        assert stage.conditions()["Ready"] == ("True", "Serving")
        assert replicas(stage) == 1


def test_passes_over_a_deployment_that_somebody_scales_leave_its_number_alone(
    stage: Stage, builder: Builder
) -> None:
    operator = Stepper(stage)
    stage.create(serving=BY_REQUESTS)
    operator.run()
    builder.finish(stage.until_job())

    def serves() -> bool:
        operator.run()
        return stage.conditions()["Ready"] == ("True", "Serving")

    stage.until("it to serve", serves)
    assert writers_of_replicas(stage) == {("llmengine-operator-replicas", "")}
    scale = DEPLOYMENT.path(stage.team, "chat-amd64", "scale")
    for number in (3, 1, 2):
        stage.api.merge(f"{scale}?fieldManager=vertical", {"spec": {"replicas": number}})
        operator.run()
        grace = 60 + number
        stage.edit(serving={"terminationGracePeriodSeconds": grace})
        for _ in range(3):
            operator.run()
        template = deployment(stage)["spec"]["template"]["spec"]
        assert template["terminationGracePeriodSeconds"] == grace
        assert replicas(stage) == number
        assert writers_of_replicas(stage) == {("vertical", "scale")}
    stage.until("it to serve", serves)
    assert stage.status()["serving"][0]["replicas"] == 2


def test_an_engine_that_is_scaled_to_zero_is_built_kept_and_done(
    stage: Stage, builder: Builder
) -> None:
    with LiveOperator(stage) as operator:
        stage.create(serving={"replicas": 0})
        first = stage.until_job()
        builder.finish(first)
        status = stage.until_reason("ScaledToZero")
        assert status["summary"] == {"engines": "1/1", "replicas": "0/0"}
        assert stage.conditions() == {
            "Ready": ("True", "ScaledToZero"),
            "Available": ("False", "NoPodReady"),
            "EnginesBuilt": ("True", "Cached"),
        }
        # As kstatus asks: done is the newest generation, with nothing under way.
        assert status["observedGeneration"] == 1
        assert stage.items(POD, labels="llmengine.io/engine=chat") == []
        # Another model is built, without a pod of either.
        stage.edit(model={"revision": "v2"})
        stage.until_reason("Building")
        (second,) = [job for job in stage.jobs() if request_of(job).revision == "v2"]
        builder.finish(second)
        stage.until_reason("ScaledToZero")
        row = stage.status()["serving"][0]
        assert (row["key"], row["replicas"]) == (request_of(second).key, 0)
        # And it serves at once when it is wanted.
        stage.edit(serving={"replicas": 2})
        stage.until("two pods", lambda: stage.status()["summary"]["replicas"] == "2/2")
        stage.until_reason("Serving")
        stage.edit(serving={"replicas": 0})
        stage.until_reason("ScaledToZero")
        assert operator.client.requests["create", "Job"] == 2
        assert stage.get(HPA, "chat-amd64") is None
