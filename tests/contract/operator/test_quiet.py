"""A pass over an engine that is as it should be writes nothing, whatever the API server, others,
and the spec have made of its objects.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from llmengine_operator.kinds import DEPLOYMENT, HPA, LLMENGINE, SERVICE
from tests.contract.operator.builder import Builder
from tests.contract.operator.running import Stepper
from tests.contract.operator.stage import MODEL, Stage

pytestmark = pytest.mark.controlplane

PASSES = 4
CPU = {"requests": {"cpu": "250m"}}


@dataclass(frozen=True)
class Case:
    """Spec of the engine, pod defaults and image of its runtime, and the operator's settings."""

    spec: dict[str, Any] = field(default_factory=dict)
    pod_defaults: dict[str, Any] = field(default_factory=dict)
    image: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def serving(**options: Any) -> Case:
    return Case({"serving": options})


CASES = [
    pytest.param(Case(), id="nothing special"),
    pytest.param(
        serving(
            resources={
                "requests": {"cpu": "0.5", "memory": "1024Mi", "ephemeral-storage": "1e9"},
                "limits": {"cpu": 2, "memory": "1.5Gi", "ephemeral-storage": 2000000000},
            }
        ),
        id="amounts in other words than the API server's",
    ),
    pytest.param(serving(replicas=0), id="no pod"),
    pytest.param(serving(replicas=3, modelName="other"), id="three pods"),
    pytest.param(
        serving(autoscaling={"maxReplicas": 3, "targetCPUUtilization": 70}, resources=CPU),
        id="autoscaled",
    ),
    pytest.param(
        serving(
            autoscaling={
                "maxReplicas": 3,
                "targetRequestsPerSlot": "0.8",
                "targetRequestsWaitingPerSlot": 1,
            }
        ),
        id="autoscaled by requests, in other words than the API server's",
    ),
    pytest.param(
        serving(
            nodeSelector={"kubernetes.io/os": "linux"},
            tolerations=[
                {"key": "a", "operator": "Exists"},
                {"key": "b", "value": "", "effect": "NoExecute", "tolerationSeconds": 30},
                {"key": "b", "value": "x", "effect": "NoSchedule"},
            ],
            priorityClassName="system-node-critical",
            terminationGracePeriodSeconds=20,
        ),
        id="scheduling",
    ),
    pytest.param(
        Case(
            pod_defaults={
                "env": [{"name": "EMPTY"}, {"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
                "labels": {"team": "ml", "empty": ""},
                "annotations": {"example.com/scrape": "true", "example.com/empty": ""},
                "tolerations": [{"key": "pool", "operator": "Exists"}],
                "nodeSelector": {"kubernetes.io/os": "linux"},
                "serviceAccountName": "default",
                "servingResources": {"requests": {"cpu": 1}},
            }
        ),
        id="what the runtime's admin gives all pods",
    ),
    pytest.param(
        Case(
            image={
                "digest": f"sha256:{'a' * 64}",
                "pullPolicy": "Always",
                "pullSecrets": ["one", "two"],
            }
        ),
        id="an image by its digest, with pull secrets",
    ),
    pytest.param(
        Case(config={"store": {"serveSecretName": "", "buildSecretName": ""}}),
        id="workload identity",
    ),
    pytest.param(
        Case({"model": {"uri": MODEL, "revision": "v1", "secretName": "mine"}}),
        id="an engine of one's own",
    ),
    pytest.param(
        Case({"architectures": ["amd64"], "engine": {"maxBatchSize": 2}}), id="what is required"
    ),
]


def make(stage: Stage, builder: Builder, case: Case) -> Stepper:
    """An operator, and an engine that it has brought to where nothing is left to do."""
    image = {"repository": "registry.test/engine", "tag": "v1", **case.image}
    stage.set_image("v1", podDefaults=case.pod_defaults, image=image)
    operator = Stepper(stage, config=stage.config(**case.config))
    stage.create(**case.spec)
    operator.run()
    (job,) = [*stage.jobs(), *stage.jobs(stage.team)]
    builder.finish(job)

    settle(stage, operator)
    if "autoscaling" in case.spec.get("serving", {}):
        # It finds no metrics here, and the engine says so.
        stage.until("the autoscaler to find nothing", lambda: "ScalingActive" in conditions(stage))
        settle(stage, operator)
    return operator


def conditions(stage: Stage) -> set[str]:
    """Types of those of the autoscaler."""
    found = stage.get(HPA, "chat-amd64")
    assert found is not None
    return {c["type"] for c in found.get("status", {}).get("conditions", [])}


def settle(stage: Stage, operator: Stepper) -> None:
    """Passes until the engine is ready, and its pods have been so for long enough."""
    reasons = ("Serving", "ScaledToZero")
    stage.until("it to serve", lambda: ready_after_a_pass(stage, operator) in reasons)
    stage.until("its pods to count as available", lambda: available(stage))
    stage.until("it to serve still", lambda: ready_after_a_pass(stage, operator) in reasons)


def available(stage: Stage) -> bool:
    """Whether nothing is left to do for the Deployment, whose own controller writes its status."""
    found = stage.get(DEPLOYMENT, "chat-amd64")
    assert found is not None
    status = found.get("status", {})
    return bool(
        status.get("observedGeneration") == found["metadata"]["generation"]
        and status.get("availableReplicas", 0) == status.get("replicas", 0)
        and status.get("updatedReplicas", 0) == found["spec"]["replicas"]
    )


def ready_after_a_pass(stage: Stage, operator: Stepper) -> str:
    operator.run()
    return stage.conditions()["Ready"][1]


def versions(stage: Stage) -> dict[str, str]:
    """Of the engine and all its objects."""
    found = {name: o["metadata"]["resourceVersion"] for name, o in stage.children().items()}
    engine = stage.get(LLMENGINE, "chat")
    assert engine is not None
    return {**found, "engine": engine["metadata"]["resourceVersion"]}


def assert_quiet(stage: Stage, operator: Stepper) -> None:
    writes, before = operator.client.writes, versions(stage)
    for _ in range(PASSES):
        operator.run()
    assert operator.client.writes == writes
    assert versions(stage) == before


@pytest.mark.parametrize("case", CASES)
def test_a_pass_over_an_engine_that_serves_writes_nothing(
    stage: Stage, builder: Builder, case: Case
) -> None:
    assert_quiet(stage, make(stage, builder, case))


@pytest.fixture
def settled(stage: Stage, builder: Builder) -> Iterator[Stepper]:
    yield make(stage, builder, Case())


def test_nor_does_one_after_somebody_restarted_the_pods(stage: Stage, settled: Stepper) -> None:
    stage.cluster.kubectl("rollout", "restart", "deployment/chat-amd64", "-n", stage.team)
    settle(stage, settled)
    assert_quiet(stage, settled)
    assert "restartedAt" in str(stage.get(DEPLOYMENT, "chat-amd64"))


def test_nor_where_others_have_added_to_our_objects(stage: Stage, settled: Stepper) -> None:
    note = {"metadata": {"annotations": {"example.com/note": "theirs"}}}
    for kind, name in ((DEPLOYMENT, "chat-amd64"), (SERVICE, "chat"), (SERVICE, "chat-headless")):
        stage.api.merge(kind.path(stage.team, name), note)
    sidecar = {"name": "mesh", "image": "mesh:1"}
    patch = {"spec": {"template": {"spec": {"containers": [sidecar]}}}}
    stage.api.request(
        "PATCH",
        DEPLOYMENT.path(stage.team, "chat-amd64"),
        patch,
        "application/strategic-merge-patch+json",
    )
    settle(stage, settled)
    assert_quiet(stage, settled)
    containers = stage.get(DEPLOYMENT, "chat-amd64")
    assert containers is not None
    names = [c["name"] for c in containers["spec"]["template"]["spec"]["containers"]]
    assert sorted(names) == ["mesh", "server"]


def condition(type_: str, status: str, reason: str) -> dict[str, str]:
    moment = "2026-11-24T12:00:00Z"
    return {"type": type_, "status": status, "reason": reason, "lastTransitionTime": moment}


def test_nor_where_another_manager_keeps_a_condition_in_the_status(
    stage: Stage, settled: Stepper
) -> None:
    body = {
        "apiVersion": LLMENGINE.api_version,
        "kind": LLMENGINE.kind,
        "metadata": {"name": "chat"},
        "status": {"conditions": [condition("Audited", "True", "Clean")]},
    }
    path = LLMENGINE.path(stage.team, "chat", "status")
    stage.api.request("PATCH", f"{path}?fieldManager=auditor", body, "application/apply-patch+yaml")
    assert_quiet(stage, settled)
    assert stage.conditions()["Audited"] == ("True", "Clean")
    # And when ours change, theirs stays.
    stage.edit(suspend=True, model={"revision": "v2"})
    settled.run()
    assert stage.conditions()["Ready"] == ("Unknown", "Suspended")
    assert stage.conditions()["Audited"] == ("True", "Clean")
    assert_quiet(stage, settled)


@pytest.mark.parametrize("how", ["an update", "an apply"])
def test_a_status_that_was_restored_from_a_backup_does_not_stick(
    stage: Stage, settled: Stepper, how: str
) -> None:
    """Who restores a status owns it, and an apply of ours takes out nothing of that."""
    engine = stage.get(LLMENGINE, "chat")
    assert engine is not None
    stale = engine["status"]
    stale["conditions"] += [condition("Reconciling", "True", "Building")]
    stale["engines"] += [{"key": "f" * 64, "architecture": "arm64", "state": "Building"}]
    stale["serving"] += [{**stale["serving"][0], "architecture": "arm64"}]
    stale["lastHandledRequest"] = "long ago"
    path = LLMENGINE.path(stage.team, "chat", "status")
    if how == "an update":
        stage.api.request("PUT", f"{path}?fieldManager=velero", engine)
    else:
        body = {k: v for k, v in engine.items() if k != "metadata"}
        body["metadata"] = {"name": "chat"}
        query = "?fieldManager=velero&force=true"
        stage.api.request("PATCH", path + query, body, "application/apply-patch+yaml")
    # An architecture that serves stays wanted: this one is here, too, but not tolerated.
    for _ in range(3):
        settled.run()
    assert "Reconciling" not in stage.conditions()
    assert "f" * 64 not in str(stage.status())
    assert_quiet(stage, settled)


@pytest.mark.parametrize("state", ["queued", "building", "failed", "no runtime", "no claim"])
def test_nor_does_one_over_an_engine_that_waits(stage: Stage, builder: Builder, state: str) -> None:
    operator = Stepper(stage)
    if state == "no runtime":
        stage.runtime += "-x"
    if state == "queued":
        stage.create("first", revision=uuid.uuid4().hex)
        operator.run()
    if state == "no claim":
        stage.create(model={"uri": "pvc://c", "revision": "1"})
    else:
        stage.create()
    operator.run()
    if state in ("building", "failed"):
        (job,) = stage.jobs()
        builder.pod(job)
        operator.run()
    if state == "failed":
        builder.fail(job, 11, "ModelUnsupported", "no")
        stage.until(
            "the failure", lambda: ready_after_a_pass(stage, operator) == "ModelUnsupported"
        )
    operator.run()
    assert_quiet(stage, operator)
