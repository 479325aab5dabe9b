"""What serves: its template comes from the status, its pods from whoever owns their number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llmengine_operator.kinds import DEPLOYMENT, HPA, LLMENGINE, PDB, POD, SERVICE
from tests.contract.operator.builder import Builder, request_of
from tests.contract.operator.running import LiveOperator
from tests.contract.operator.stage import Stage

pytestmark = pytest.mark.controlplane

AUTOSCALED = {
    "autoscaling": {"minReplicas": 2, "maxReplicas": 5},
    "resources": {"requests": {"cpu": "500m"}},
}


@pytest.fixture
def operator(stage: Stage) -> Iterator[LiveOperator]:
    with LiveOperator(stage) as running:
        yield running


@pytest.fixture
def serving(stage: Stage, builder: Builder, operator: LiveOperator) -> str:
    """An engine that was built and serves: its key."""
    stage.create()
    job = stage.until_job()
    builder.finish(job)
    stage.until_reason("Serving")
    return request_of(job).key


def deployment(stage: Stage) -> dict[str, Any]:
    found = stage.get(DEPLOYMENT, "chat-amd64")
    assert found is not None
    return found


def served_key(stage: Stage) -> str:
    return str(deployment(stage)["spec"]["template"]["metadata"]["annotations"][KEY])


KEY = "llmengine.io/engine-key"


def image(stage: Stage) -> str:
    return str(deployment(stage)["spec"]["template"]["spec"]["containers"][0]["image"])


def rebuild(stage: Stage) -> dict[str, Any]:
    """The engine is edited: its old self serves, its new one is built."""
    stage.edit(model={"revision": "v2"})
    stage.until(
        "the new build", lambda: [request_of(j).revision for j in stage.jobs()][-1:] == ["v2"]
    )
    stage.until_reason("Building")
    return stage.jobs()[-1]


def test_a_lost_deployment_is_made_again_with_the_old_engine_while_the_new_one_is_built(
    stage: Stage, builder: Builder, serving: str
) -> None:
    job = rebuild(stage)
    old = deployment(stage)["metadata"]["uid"]
    stage.remove(DEPLOYMENT, "chat-amd64")
    stage.until(
        "another Deployment",
        lambda: (d := stage.get(DEPLOYMENT, "chat-amd64")) and d["metadata"]["uid"] != old,
    )
    assert served_key(stage) == serving
    stage.until("its pod", lambda: stage.conditions()["Available"] == ("True", "Serving"))
    builder.finish(job)
    stage.until_reason("Serving")
    assert served_key(stage) == request_of(job).key


def test_edits_of_serving_apply_at_once_while_the_new_engine_is_built(
    stage: Stage, serving: str
) -> None:
    rebuild(stage)
    stage.edit(serving={"terminationGracePeriodSeconds": 90})

    def grace() -> bool:
        pod = deployment(stage)["spec"]["template"]["spec"]
        return bool(pod["terminationGracePeriodSeconds"] == 90)

    stage.until("the new grace period", grace)
    assert served_key(stage) == serving
    assert stage.conditions()["Ready"][1] == "Building"
    assert stage.status()["engines"][0]["changed"] == ["model.revision: v1 -> v2"]


def test_an_edit_that_is_taken_back_serves_on_as_if_nothing_had_been(
    stage: Stage, builder: Builder, serving: str, operator: LiveOperator
) -> None:
    builder.finish(rebuild(stage))
    stage.until("the new engine", lambda: served_key(stage) != serving)
    stage.until_reason("Serving")
    stage.edit(model={"revision": "v1"})
    stage.until("the old engine", lambda: served_key(stage) == serving)
    stage.until_reason("Serving")
    assert operator.client.requests["create", "Job"] == 2


def test_drift_of_what_the_operator_says_is_repaired(
    stage: Stage, serving: str, operator: LiveOperator
) -> None:
    path = DEPLOYMENT.path(stage.team, "chat-amd64")
    stage.cluster.kubectl(
        *("set", "image", "deployment/chat-amd64", "server=evil:1", "--namespace", stage.team)
    )
    stage.until("the image", lambda: image(stage) == "registry.test/engine:v1")
    stage.api.merge(path, {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}})
    operator.resync()  # an object without the label is not watched
    labels = ("metadata", "labels")
    stage.until(
        "the label",
        lambda: "app.kubernetes.io/managed-by" in deployment(stage)[labels[0]][labels[1]],
    )
    stage.remove(SERVICE, "chat")
    operator.resync()  # Services are not watched
    stage.until("the Service", lambda: stage.get(SERVICE, "chat"))
    stage.until_reason("Serving")


def test_what_others_add_to_a_deployment_is_left_alone(
    stage: Stage, serving: str, operator: LiveOperator
) -> None:
    path = DEPLOYMENT.path(stage.team, "chat-amd64")
    stage.api.merge(path, {"metadata": {"annotations": {"example.com/note": "mine"}}})
    stage.edit(serving={"terminationGracePeriodSeconds": 90})
    stage.until_reason("Serving")
    assert deployment(stage)["metadata"]["annotations"]["example.com/note"] == "mine"


def owners_of_replicas(stage: Stage) -> set[str]:
    return {
        entry["manager"]
        for entry in deployment(stage)["metadata"]["managedFields"]
        if "f:replicas" in entry["fieldsV1"].get("f:spec", {})
    }


def test_the_number_of_pods_is_set_through_scale_and_owned_by_nobody_else(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    stage.create(serving={"replicas": 2})
    builder.finish(stage.until_job())
    status = stage.until_reason("Serving")
    assert status["summary"]["replicas"] == "2/2"
    assert owners_of_replicas(stage) == {"llmengine-operator-replicas"}
    uid = deployment(stage)["metadata"]["uid"]
    stage.edit(serving={"replicas": 3})
    stage.until("three pods", lambda: stage.status()["summary"]["replicas"] == "3/3")
    (entry,) = (
        e
        for e in deployment(stage)["metadata"]["managedFields"]
        if "f:replicas" in e["fieldsV1"].get("f:spec", {})
    )
    assert (entry["manager"], entry.get("subresource")) == ("llmengine-operator", "scale")
    # kubectl scale against what the spec says: the spec wins.
    stage.cluster.kubectl(
        *("scale", "deployment/chat-amd64", "--replicas=1", "--namespace", stage.team)
    )
    stage.until("the scale", lambda: deployment(stage)["spec"]["replicas"] == 3)
    stage.edit(serving={"replicas": 0})
    stage.until_reason("ScaledToZero")
    assert stage.conditions()["Ready"] == ("True", "ScaledToZero")
    assert deployment(stage)["metadata"]["uid"] == uid


def test_the_number_of_pods_of_an_autoscaled_engine_is_never_written(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    stage.create(serving=AUTOSCALED)
    builder.finish(stage.until_job())
    stage.until_reason("Serving")
    hpa = stage.get(HPA, "chat-amd64")
    assert hpa is not None
    assert hpa["spec"]["scaleTargetRef"]["name"] == "chat-amd64"
    assert (hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"]) == (2, 5)
    assert deployment(stage)["spec"]["replicas"] == 2
    # As the autoscaler does it.
    scale = DEPLOYMENT.path(stage.team, "chat-amd64", "scale")
    stage.api.merge(f"{scale}?fieldManager=autoscaler", {"spec": {"replicas": 4}})
    stage.until("four pods", lambda: stage.status()["summary"]["replicas"] == "4/4")
    stage.edit(serving={"terminationGracePeriodSeconds": 90})
    stage.until_reason("Serving")
    assert deployment(stage)["spec"]["replicas"] == 4
    assert owners_of_replicas(stage) == {"autoscaler"}
    stage.edit(serving={"autoscaling": {"maxReplicas": 9}})
    stage.until(
        "the new limit",
        lambda: (stage.get(HPA, "chat-amd64") or {"spec": {}})["spec"].get("maxReplicas") == 9,
    )
    stage.edit(serving={"autoscaling": None, "replicas": 1})
    stage.until("no autoscaler", lambda: stage.get(HPA, "chat-amd64") is None)
    stage.until("one pod", lambda: stage.status()["summary"]["replicas"] == "1/1")


def foreign(kind: str, name: str) -> dict[str, Any]:
    labels = {"app": "other"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "other"}
    specs: dict[str, dict[str, Any]] = {
        "Service": {"selector": labels, "ports": [{"port": 80}]},
        "Deployment": {"replicas": 0, "selector": {"matchLabels": labels}, "template": pod},
        "HorizontalPodAutoscaler": {"maxReplicas": 7, "scaleTargetRef": target},
        "PodDisruptionBudget": {"minAvailable": 1, "selector": {"matchLabels": labels}},
    }
    return {"metadata": {"name": name}, "spec": specs[kind]}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(SERVICE, "chat", id="the Service"),
        pytest.param(SERVICE, "chat-headless", id="the headless Service"),
        pytest.param(SERVICE, "chat-amd64", id="the Service of an architecture"),
        pytest.param(DEPLOYMENT, "chat-amd64", id="the Deployment"),
        pytest.param(HPA, "chat-amd64", id="the autoscaler"),
        pytest.param(PDB, "chat-amd64", id="the budget"),
    ],
)
def test_an_object_of_somebody_elses_in_the_way_is_named_and_left_alone(
    stage: Stage, builder: Builder, operator: LiveOperator, kind: Any, name: str
) -> None:
    made = stage.api.request("POST", kind.path(stage.team), foreign(kind.kind, name))
    stage.create(serving=AUTOSCALED)
    early = name in ("chat", "chat-headless")  # these stand before there is anything to serve
    if not early:
        builder.finish(stage.until_job())
    stage.until_reason("NameTaken")
    assert stage.conditions()["Stalled"] == ("True", "NameTaken")
    assert stage.message() == (
        f"{kind} {stage.team}/{name} exists and does not belong to this engine: rename the"
        " engine, or delete that object"
    )
    seen = stage.get(kind, name)
    assert seen is not None
    assert seen["spec"] == made["spec"]
    assert seen["metadata"].get("labels") == made["metadata"].get("labels")
    stage.remove(kind, name)
    operator.resync()  # what is not ours is not watched; else it takes half a minute
    if early:
        builder.finish(stage.until_job())
    stage.until_reason("Serving")


def test_orphans_are_taken_back_by_an_engine_of_the_same_name_and_serve_without_a_break(
    stage: Stage, builder: Builder, serving: str, operator: LiveOperator
) -> None:
    before = stage.children()
    pods = {pod["metadata"]["uid"] for pod in stage.items(POD)}
    stage.cluster.kubectl(
        *("delete", "llmengine/chat", "--namespace", stage.team, "--cascade=orphan")
    )
    # The garbage collector takes the references out before the engine goes.
    assert all("ownerReferences" not in o["metadata"] for o in stage.children().values())
    made = stage.create()
    stage.until_reason("Serving")
    after = stage.children()
    assert {k: o["metadata"]["uid"] for k, o in after.items()} == {
        k: o["metadata"]["uid"] for k, o in before.items()
    }
    for obj in after.values():
        assert [o["uid"] for o in obj["metadata"]["ownerReferences"]] == [made["metadata"]["uid"]]
    assert {pod["metadata"]["uid"] for pod in stage.items(POD)} == pods
    stage.remove(LLMENGINE, "chat")
    stage.until_gone()


def test_a_server_that_cannot_fetch_its_engine_stalls_with_its_last_words(
    stage: Stage, builder: Builder, serving: str
) -> None:
    pod = stage.items(POD, labels="llmengine.io/engine=chat")[0]
    words = '{"reason":"EngineCorrupted","message":"blob ab12 is damaged"}'
    ended = {"exitCode": 10, "reason": "Error", "message": words}
    fetch = {
        **pod["status"]["initContainerStatuses"][0],
        "ready": False,
        "restartCount": 2,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": ended},
    }
    unready = [
        {**c, "status": "False"} if c["type"] in ("Ready", "ContainersReady") else c
        for c in pod["status"]["conditions"]
    ]
    path = POD.path(stage.team, pod["metadata"]["name"], "status")
    stage.api.merge(path, {"status": {"initContainerStatuses": [fetch], "conditions": unready}})
    stage.until_reason("FetchFailed")
    assert "blob ab12 is damaged" in stage.message()
    assert stage.conditions()["Stalled"] == ("True", "FetchFailed")
    assert stage.conditions()["Available"] == ("False", "NoPodReady")
