"""Autoscalers and the priority of builds: what is asked of the cluster, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

from llmengine_operator.config import Config
from llmengine_operator.observation import Found
from llmengine_operator.plan import decide
from llmengine_operator.report import report
from llmengine_operator.resources.build_job import build_job
from tests.unit.operator.world import CONFIG, NOW, World

CPU = {"requests": {"cpu": "1"}}
AUTOSCALER = ("HorizontalPodAutoscaler", "chat-amd64")


def metrics(**autoscaling: Any) -> list[dict[str, Any]]:
    world = World(serving={"autoscaling": {"maxReplicas": 4, **autoscaling}, "resources": CPU})
    objects = [a.object for a in world.cached().decide().actions if hasattr(a, "object")]
    (made,) = [o for o in objects if o["kind"] == AUTOSCALER[0]]
    return list(made["spec"]["metrics"])


def on_cpu(percent: int) -> dict[str, Any]:
    target = {"type": "Utilization", "averageUtilization": percent}
    return {"type": "Resource", "resource": {"name": "cpu", "target": target}}


def on_requests(name: str, value: str) -> dict[str, Any]:
    target = {"type": "AverageValue", "averageValue": value}
    return {"type": "Pods", "pods": {"metric": {"name": name}, "target": target}}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        pytest.param({}, [on_cpu(80)], id="CPU by default"),
        pytest.param({"targetCPUUtilization": 60}, [on_cpu(60)], id="another share of the CPUs"),
        pytest.param(
            {"targetRequestsWaitingPerSlot": "500m"},
            [on_requests("llmengine_requests_waiting_per_slot", "500m")],
            id="waiting requests instead",
        ),
        pytest.param(
            {"targetRequestsPerSlot": 1},
            [on_requests("llmengine_requests_per_slot", "1")],
            id="all requests instead",
        ),
        pytest.param(
            {
                "targetRequestsWaitingPerSlot": 1,
                "targetRequestsPerSlot": "0.8",
                "targetCPUUtilization": 90,
            },
            [
                on_cpu(90),
                on_requests("llmengine_requests_per_slot", "0.8"),
                on_requests("llmengine_requests_waiting_per_slot", "1"),
            ],
            id="whichever takes the most pods",
        ),
    ],
)
def test_an_autoscaler_scales_on_what_was_given_a_target(
    options: dict[str, Any], wanted: list[dict[str, Any]]
) -> None:
    assert metrics(**options) == wanted


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        pytest.param({}, "CPURequestMissing", id="CPU by default"),
        pytest.param({"targetRequestsPerSlot": 1}, "BuildQueued", id="requests"),
        pytest.param(
            {"targetRequestsPerSlot": 1, "targetCPUUtilization": 50},
            "CPURequestMissing",
            id="requests and CPU",
        ),
    ],
)
def test_only_who_scales_on_cpu_has_to_request_some(targets: dict[str, Any], reason: str) -> None:
    world = World(serving={"autoscaling": {"maxReplicas": 4, **targets}})
    problem = world.decide().problem
    assert (problem.reason if problem else "BuildQueued") == reason


def scaled(*conditions: dict[str, str]) -> World:
    """An engine that serves, whose autoscaler says these of itself."""
    serving = {"autoscaling": {"maxReplicas": 4, "targetRequestsPerSlot": 1}}
    world = World(serving=serving).cached().serving()
    found = world.observation.children[AUTOSCALER]
    assert isinstance(found, Found)
    said = Found({**found.value, "status": {"conditions": list(conditions)}})
    return world.but(children={**world.observation.children, AUTOSCALER: said})


def says(type_: str, status: str, reason: str) -> dict[str, str]:
    return {"type": type_, "status": status, "reason": reason, "message": "attempt 17 failed"}


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        pytest.param(
            says("ScalingActive", "False", "FailedGetPodsMetric"),
            'the autoscaler cannot scale chat-amd64 (FailedGetPodsMetric): "kubectl describe hpa'
            ' chat-amd64" says why',
            id="no metrics",
        ),
        pytest.param(
            says("AbleToScale", "False", "FailedGetScale"),
            'the autoscaler cannot scale chat-amd64 (FailedGetScale): "kubectl describe hpa'
            ' chat-amd64" says why',
            id="no Deployment",
        ),
        pytest.param(says("ScalingActive", "True", "ValidMetricFound"), "", id="it scales"),
        pytest.param(says("ScalingActive", "False", "ScalingDisabled"), "", id="set to no pods"),
        pytest.param(says("ScalingLimited", "False", "DesiredWithinRange"), "", id="no limit hit"),
    ],
)
def test_an_engine_says_that_its_autoscaler_cannot_scale(
    condition: dict[str, str], sentence: str
) -> None:
    world = scaled(condition)
    decision = world.decide()
    status = report(world.observation, decision, applied=frozenset(), refused=None, now=NOW)
    (ready,) = [c for c in status.conditions if c.type == "Ready"]
    assert (ready.status, ready.reason) == ("True", "Serving")
    served, _, rest = ready.message.partition("; ")
    assert served == "1 pod serves at http://chat.team.svc:8000"
    assert rest == sentence


def default_class(name: str) -> Config:
    builds = CONFIG.builds.model_copy(update={"priority_class_name": name})
    return CONFIG.model_copy(update={"builds": builds})


@pytest.mark.parametrize(
    ("build", "default", "priority"),
    [
        pytest.param({}, "", None, id="nobody names one"),
        pytest.param({}, "low", "low", id="the operator's"),
        pytest.param({"priorityClassName": "mine"}, "low", "mine", id="the engine's own wins"),
    ],
)
def test_a_build_has_the_operators_priority_class_unless_its_engine_names_one(
    build: dict[str, str], default: str, priority: str | None
) -> None:
    config = default_class(default)
    (wish,) = decide(World(build=build).observation, config, NOW).wishes
    pod = build_job(wish.order, config)["spec"]["template"]["spec"]
    assert pod.get("priorityClassName") == priority


def test_another_default_is_news_only_to_engines_that_have_it() -> None:
    def options(default: str, **build: str) -> str:
        (wish,) = decide(World(build=build).observation, default_class(default), NOW).wishes
        return wish.order.options

    assert options("low") != options("")
    assert options("low", priorityClassName="mine") == options("", priorityClassName="mine")
