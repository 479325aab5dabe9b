"""What is planned for one engine, and what its status says of it."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from llmengine.api.v1alpha1 import LLMEngineStatus
from llmengine_operator.conditions import ConditionType, find
from llmengine_operator.decision import ApplyDeployment, Delete, Scale
from llmengine_operator.labels import MANAGED, Label
from llmengine_operator.observation import (
    AttemptState,
    Found,
    NotFound,
    Taint,
    Unreadable,
    Verdict,
)
from llmengine_operator.report import report
from llmengine_operator.resources.build_job import build_job
from tests.unit.operator.world import (
    CONFIG,
    NOW,
    World,
    as_observed,
    make_node,
    make_runtime,
    server_pod,
)

AUTOSCALED = {
    "autoscaling": {"maxReplicas": 5},
    "resources": {"requests": {"cpu": "500m"}},
}


def status_of(world: World, *, applied: frozenset[str] = frozenset()) -> LLMEngineStatus:
    return report(world.observation, world.decide(), applied=applied, refused=None, now=NOW)


def conditions(status: LLMEngineStatus) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in status.conditions}


def message(status: LLMEngineStatus, type_: ConditionType = ConditionType.READY) -> str:
    found = find(status.conditions, type_)
    assert found is not None
    return found.message


def deployment_of(world: World) -> ApplyDeployment:
    return next(a for a in world.decide().actions if isinstance(a, ApplyDeployment))


def kinds(world: World) -> list[str]:
    return [a.object["kind"] for a in world.decide().actions if hasattr(a, "object")]


def test_an_engine_that_nobody_built_wishes_for_one_build_and_is_not_ready_yet() -> None:
    world = World()
    decision = world.decide()
    assert [wish.order.target.key for wish in decision.wishes] == [world.target.key]
    assert decision.wishes[0].first
    assert conditions(status_of(world)) == {
        "Ready": ("Unknown", "BuildQueued"),
        "Reconciling": ("True", "BuildQueued"),
        "Available": ("False", "NoPodReady"),
        "EnginesBuilt": ("Unknown", "BuildQueued"),
    }


def test_services_stand_before_there_is_anything_to_serve() -> None:
    assert kinds(World()) == ["Service", "Service"]


def test_a_cached_engine_is_served_without_a_build() -> None:
    world = World().cached()
    assert world.decide().wishes == ()
    assert kinds(world) == ["Deployment", "PodDisruptionBudget", "Service", "Service", "Service"]
    assert conditions(status_of(world))["Ready"] == ("Unknown", "RollingOut")


def test_the_deployment_pins_the_manifest_and_never_says_replicas() -> None:
    world = World().cached()
    stored = world.observation.manifests[world.target.key]
    assert isinstance(stored, Found)
    obj = deployment_of(world).object
    assert "replicas" not in obj["spec"]
    fetch = obj["spec"]["template"]["spec"]["initContainers"][0]
    request = next(e["value"] for e in fetch["env"] if e["name"] == "LLMENGINE_SERVE_REQUEST")
    assert stored.value.digest in request


def test_an_engine_whose_pods_are_ready_is_ready_and_nothing_else() -> None:
    status = status_of(World().cached().serving())
    assert conditions(status) == {
        "Ready": ("True", "Serving"),
        "Available": ("True", "Serving"),
        "EnginesBuilt": ("True", "Cached"),
    }
    assert status.summary is not None
    assert (status.summary.engines, status.summary.replicas) == ("1/1", "1/1")
    assert status.url == "http://chat.team.svc:8000"


def test_a_deployment_written_in_this_pass_is_not_ready_whatever_was_read_before() -> None:
    status = status_of(World().cached().serving(), applied=frozenset({"chat-amd64"}))
    assert conditions(status)["Ready"] == ("Unknown", "RollingOut")


def test_an_edited_model_is_built_while_the_old_one_serves() -> None:
    world = World().cached().serving()
    old = world.target.key
    world.with_spec(model={"uri": "s3://models/smollm2", "revision": "v2"})
    decision = world.decide()
    assert not decision.wishes[0].first
    served = decision.plans[0].serving
    assert served is not None
    assert served.key == old
    status = status_of(world)
    assert status.engines[0].changed == ["model.revision: v1 -> v2"]
    assert conditions(status)["Available"] == ("True", "Serving")
    assert conditions(status)["Ready"] == ("Unknown", "BuildQueued")


def test_a_lost_deployment_is_made_again_with_the_old_engine() -> None:
    world = World().cached().serving()
    old = world.target.key
    world.with_spec(model={"uri": "s3://models/smollm2", "revision": "v2"})
    world.but(children={}, pods=())
    template = deployment_of(world).object["spec"]["template"]
    assert template["metadata"]["annotations"]["llmengine.io/engine-key"] == old


def test_edits_of_serving_apply_at_once_while_a_build_runs() -> None:
    world = World().cached().serving()
    world.with_spec(
        model={"uri": "s3://models/smollm2", "revision": "v2"},
        serving={"terminationGracePeriodSeconds": 90},
    )
    pod = deployment_of(world).object["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 90


def test_a_build_that_is_done_switches_the_deployment() -> None:
    world = World().cached().serving()
    world.with_spec(model={"uri": "s3://models/smollm2", "revision": "v2"}).cached()
    template = deployment_of(world).object["spec"]["template"]
    assert template["metadata"]["annotations"]["llmengine.io/engine-key"] == world.target.key
    assert conditions(status_of(world))["Ready"] == ("Unknown", "RollingOut")


def test_an_unreadable_store_starts_no_build_and_stops_no_pod() -> None:
    world = World().cached().serving()
    old = world.target.key
    world.with_spec(model={"uri": "s3://models/smollm2", "revision": "v2"})
    world.but(
        manifests={
            world.target.key: Unreadable("StoreUnreachable", "no answer from http://s3.test"),
            old: Unreadable("StoreUnreachable", "no answer from http://s3.test"),
        }
    )
    decision = world.decide()
    assert decision.wishes == ()
    assert not [a for a in decision.actions if isinstance(a, Delete)]
    status = status_of(world)
    assert conditions(status)["Ready"] == ("Unknown", "StoreUnreachable")
    assert conditions(status)["Available"] == ("True", "Serving")
    assert "no answer from http://s3.test" in message(status)


def test_a_store_that_must_not_be_built_into_says_so() -> None:
    world = World().but(unsafe_store=Unreadable("StoreUnsafe", "the store ignores If-None-Match"))
    assert world.decide().wishes == ()
    assert conditions(status_of(world))["Stalled"] == ("True", "StoreUnsafe")


def test_a_store_that_does_not_answer_the_probe_holds_builds_back_without_stalling() -> None:
    world = World().but(unsafe_store=Unreadable("StoreUnreachable", "no answer"))
    assert world.decide().wishes == ()
    assert conditions(status_of(world))["Reconciling"] == ("True", "StoreUnreachable")
    assert world.decide().plans[0].look_again is not None


def test_a_runtime_that_is_missing_is_named() -> None:
    world = World().but(runtime=NotFound())
    status = status_of(world)
    assert conditions(status)["Stalled"] == ("True", "RuntimeNotFound")
    assert '"onnxruntime-1.32.0"' in message(status)


def test_a_runtime_that_is_missing_leaves_what_serves_alone() -> None:
    world = World().cached().serving().but(runtime=NotFound())
    assert world.decide().actions == ()
    status = status_of(world)
    assert conditions(status)["Available"] == ("True", "Serving")
    assert len(status.serving) == 1


def test_pods_are_counted_even_when_nothing_can_be_planned() -> None:
    world = World().cached().serving().but(runtime=NotFound(), pods=())
    status = status_of(world)
    assert conditions(status)["Available"] == ("False", "NoPodReady")
    assert status.summary is not None
    assert status.summary.replicas == "0/1"


def test_a_runtime_that_is_missing_keeps_what_was_being_built_for_this_spec() -> None:
    world = World().cached().serving()
    key = world.target.key
    world.but(runtime=NotFound())
    assert set(world.decide().keys) == {key}
    assert [row.key for row in status_of(world).engines] == [key]
    world.with_engine(generation=2)
    assert world.decide().keys == {}
    assert status_of(world).engines == []


def test_an_engine_for_which_there_is_no_node_wants_nothing_of_others() -> None:
    world = World().but(nodes=())
    assert world.decide().keys == {}
    assert conditions(status_of(world))["Ready"] == ("Unknown", "NoNode")


def test_a_backend_that_this_release_lacks_is_named() -> None:
    runtime = make_runtime(backend="tensorrtllm", version="1.2.1", accelerator="nvidia")
    world = World(architectures=["sm_90/NVIDIA-H100-80GB-HBM3"]).but(runtime=Found(runtime))
    world.but(manifests={world.target.key: NotFound()})
    status = status_of(world)
    assert conditions(status)["Stalled"] == ("True", "Unsupported")
    assert "no backend tensorrt" in message(status)


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        pytest.param({"dtype": "float16"}, "float32", id="half precision on a CPU"),
        pytest.param({"quantization": {"weights": "int4"}}, "int4 weights", id="quantized weights"),
        pytest.param({"quantization": {"kvCache": "fp8"}}, "fp8 KV cache", id="quantized cache"),
        pytest.param({"portability": "ComputeCapability"}, "GPUs", id="a GPU's portability"),
    ],
)
def test_options_that_the_backend_lacks_are_refused_before_a_job_is_spent(
    engine: dict[str, object], words: str
) -> None:
    world = World(engine=engine)
    assert world.decide().wishes == ()
    status = status_of(world)
    assert conditions(status)["Stalled"] == ("True", "Unsupported")
    assert words in message(status)


def test_a_required_architecture_without_a_node_waits() -> None:
    world = World(architectures=["arm64"])
    assert world.decide().wishes == ()
    assert conditions(status_of(world))["Reconciling"] == ("True", "NoNode")


def test_a_tainted_node_counts_only_for_those_who_tolerate_it() -> None:
    node = make_node(taints=(Taint("gpu", "yes", "NoSchedule"),))
    world = World().but(nodes=(node,))
    assert conditions(status_of(world))["Reconciling"] == ("True", "NoNode")
    tolerant = {"tolerations": [{"key": "gpu", "operator": "Exists"}]}
    world.with_spec(serving=tolerant)
    assert not world.decide().wishes
    assert "spec.build.nodeSelector and tolerations" in message(status_of(world))
    world.with_spec(serving=tolerant, build=tolerant)
    assert world.decide().wishes


def test_a_model_with_a_secret_is_built_in_its_own_namespace_and_shared_with_nobody() -> None:
    shared, private = (
        World(),
        World(model={"uri": "s3://models/smollm2", "revision": "v1", "secretName": "mine"}),
    )
    assert shared.target.scope.is_cluster
    assert private.target.scope.namespace == "team"
    assert private.target.key != shared.target.key


def test_a_bucket_outside_the_shared_prefixes_is_scoped() -> None:
    assert World(model={"uri": "s3://other/m", "revision": "v1"}).target.scope.namespace == "team"


def test_a_claim_that_is_missing_is_named() -> None:
    world = World(model={"uri": "pvc://weights/llama", "revision": "v1"}).but(claim=NotFound())
    status = status_of(world)
    assert conditions(status)["Stalled"] == ("True", "ClaimNotFound")
    assert "PersistentVolumeClaim weights in namespace team" in message(status)


def test_another_claim_of_the_same_name_is_another_engine() -> None:
    world = World(model={"uri": "pvc://weights/llama", "revision": "v1"})
    first = world.but(claim=Found("uid-1")).target.key
    assert world.but(claim=Found("uid-2")).target.key != first


@pytest.mark.parametrize("part", ["build", "serving"])
def test_a_selector_that_the_runtime_contradicts_is_named(part: str) -> None:
    runtime = make_runtime(podDefaults={"nodeSelector": {"disk": "ssd"}})
    world = World(**{part: {"nodeSelector": {"disk": "hdd"}}}).but(runtime=Found(runtime))
    status = status_of(world)
    assert conditions(status)["Stalled"] == ("True", "SelectorConflict")
    assert f"spec.{part}.nodeSelector wants disk=hdd" in message(status)


def test_autoscaling_without_a_cpu_request_is_refused_for_it_would_never_scale() -> None:
    status = status_of(World(serving={"autoscaling": {"maxReplicas": 5}}))
    assert conditions(status)["Stalled"] == ("True", "CPURequestMissing")


def test_suspended_means_no_build_and_no_write() -> None:
    world = World(suspend=True)
    decision = world.decide()
    assert (decision.wishes, decision.actions) == ((), ())
    assert conditions(status_of(world))["Ready"] == ("Unknown", "Suspended")
    assert "Reconciling" not in conditions(status_of(world))


def test_a_suspended_engine_that_serves_in_full_stays_ready() -> None:
    world = World().cached().serving().with_spec(suspend=True)
    assert conditions(status_of(world))["Ready"] == ("True", "Serving")


def test_scaled_to_zero_is_ready_with_the_engine_kept() -> None:
    world = World(serving={"replicas": 0}).cached().serving(ready=0, replicas=0)
    assert conditions(status_of(world))["Ready"] == ("True", "ScaledToZero")
    assert conditions(status_of(world))["Available"] == ("False", "NoPodReady")


def test_replicas_are_changed_through_scale() -> None:
    world = World(serving={"replicas": 3}).cached().serving()
    scales = [a for a in world.decide().actions if isinstance(a, Scale)]
    assert scales == [Scale("team", "chat-amd64", 3)]


@pytest.mark.parametrize(
    "serving",
    [
        pytest.param({}, id="nothing said"),
        pytest.param(AUTOSCALED, id="autoscaled"),
    ],
)
def test_replicas_that_an_autoscaler_may_own_are_left_alone(serving: dict[str, object]) -> None:
    world = World(serving=serving).cached().serving(ready=4, replicas=4)
    assert not [a for a in world.decide().actions if isinstance(a, Scale)]


def test_autoscaling_makes_one_autoscaler_and_its_removal_deletes_it() -> None:
    world = World(serving=AUTOSCALED).cached()
    hpa = next(a.object for a in world.decide().actions if a.object["kind"].startswith("Hor"))  # type: ignore[union-attr]
    observed = {**hpa, "metadata": {**hpa["metadata"], "uid": "uid-hpa"}}
    world = World().cached().serving()
    children = {
        **world.observation.children,
        ("HorizontalPodAutoscaler", "chat-amd64"): Found(observed),
    }
    world.but(children=children)
    deletes = [a for a in world.decide().actions if isinstance(a, Delete)]
    assert deletes == [Delete("HorizontalPodAutoscaler", "team", "chat-amd64", "uid-hpa")]


def test_an_object_that_is_somebody_elses_is_not_taken_over() -> None:
    foreign = {"metadata": {"name": "chat", "uid": "x", "labels": {}}, "spec": {}}
    world = World().but(children={("Service", "chat"): Found(foreign)})
    assert world.decide().actions == ()
    status = status_of(world)
    assert conditions(status)["Stalled"] == ("True", "NameTaken")
    assert "Service team/chat exists and does not belong" in message(status)


def test_orphans_of_an_engine_of_the_same_name_are_taken_back() -> None:
    orphan = {
        "metadata": {"name": "chat", "uid": "x", "labels": {**MANAGED, Label.ENGINE: "chat"}},
        "spec": {},
    }
    world = World().but(children={("Service", "chat"): Found(orphan)})
    assert "Stalled" not in conditions(status_of(world))
    assert "Service" in kinds(world)


def test_orphans_that_serve_something_else_than_asked_are_available_and_not_ready() -> None:
    left = World().cached().serving().observation
    deployment = left.children["Deployment", "chat-amd64"]
    assert isinstance(deployment, Found)
    metadata = {k: v for k, v in deployment.value["metadata"].items() if k != "ownerReferences"}
    orphan = Found({**deployment.value, "metadata": metadata})
    world = World(model={"uri": "s3://models/smollm2", "revision": "v2"})
    world.but(children={("Deployment", "chat-amd64"): orphan}, pods=left.pods)
    assert not [a for a in world.decide().actions if isinstance(a, Delete)]
    status = status_of(world)
    assert conditions(status)["Ready"] == ("Unknown", "BuildQueued")
    assert conditions(status)["Available"] == ("True", "Serving")
    assert status.serving == []


def test_what_a_deleted_engine_of_the_same_name_left_is_waited_for() -> None:
    old = {"apiVersion": "llmengine.io/v1alpha1", "kind": "LLMEngine", "name": "chat", "uid": "old"}
    leftover = {
        "metadata": {
            "name": "chat",
            "uid": "x",
            "labels": {**MANAGED, Label.ENGINE: "chat"},
            "ownerReferences": [old],
        },
        "spec": {},
    }
    world = World().but(children={("Service", "chat"): Found(leftover)})
    decision = world.decide()
    assert decision.actions == ()
    assert decision.problem is not None
    assert decision.problem.look_again == timedelta(seconds=2)
    assert conditions(status_of(world))["Reconciling"] == ("True", "NameTaken")
    assert "Stalled" not in conditions(status_of(world))
    leftover["metadata"]["ownerReferences"] = [{**old, "name": "other"}]
    assert conditions(status_of(world))["Stalled"] == ("True", "NameTaken")


def test_an_autoscaler_of_somebody_elses_is_not_taken_over() -> None:
    foreign = {"metadata": {"name": "chat-amd64", "uid": "x"}, "spec": {"maxReplicas": 9}}
    world = World(serving=AUTOSCALED).cached()
    world.but(children={("HorizontalPodAutoscaler", "chat-amd64"): Found(foreign)})
    assert world.decide().actions == ()
    assert "HorizontalPodAutoscaler team/chat-amd64 exists" in message(status_of(world))


def test_a_change_is_shown_no_longer_than_a_status_takes() -> None:
    long = "s3://models/" + "a" * 500
    world = World(model={"uri": long, "revision": "v1"}).cached().serving()
    world.with_spec(model={"uri": long[:-1] + "b", "revision": "v1"})
    changed = status_of(world).engines[0].changed
    assert [len(text) for text in changed] == [1024]


def test_an_image_edit_moves_no_key_and_waits_for_its_turn() -> None:
    world = World().cached().serving()
    key = world.target.key
    world.but(runtime=Found(make_runtime(image="v2")))
    assert world.target.key == key
    pod = deployment_of(world).object["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry.test/engine:v1"
    assert conditions(status_of(world))["Ready"] == ("Unknown", "WaitingForRollout")


def test_an_image_edit_rolls_when_it_may() -> None:
    world = World().cached().serving()
    world.but(runtime=Found(make_runtime(image="v2")), may_roll_image=True)
    pod = deployment_of(world).object["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry.test/engine:v2"


def test_a_failed_build_shows_its_words_and_stalls() -> None:
    world = World().tried(
        AttemptState.FAILED,
        reason="ModelUnsupported",
        message="architecture GPT2LMHeadModel is not supported",
        verdict=Verdict.FINAL,
    )
    status = status_of(world)
    assert conditions(status) == {
        "Ready": ("False", "ModelUnsupported"),
        "Stalled": ("True", "ModelUnsupported"),
        "Available": ("False", "NoPodReady"),
        "EnginesBuilt": ("False", "ModelUnsupported"),
    }
    assert message(status) == "amd64: architecture GPT2LMHeadModel is not supported"
    assert status.engines[0].last_failure_time is not None


def test_a_request_is_handled_once_a_job_answers_it() -> None:
    world = World().tried(AttemptState.FAILED, verdict=Verdict.FINAL)
    world.with_engine(requested_at="t1")
    decision = world.decide()
    assert decision.wishes[0].order.request == "t1"
    assert decision.handled_request is None
    world.tried(AttemptState.RUNNING, number=2, request="t1")
    assert world.decide().handled_request == "t1"


def test_a_request_of_an_engine_that_serves_is_handled_at_once() -> None:
    world = World().cached().serving().with_engine(requested_at="t1")
    assert world.decide().handled_request == "t1"


def test_a_damaged_engine_stalls_with_the_pods_last_words() -> None:
    world = World().cached()
    obj = deployment_of(world).object
    pod = server_pod(obj, ready=False)
    pod["status"]["initContainerStatuses"] = [
        {
            "name": "fetch",
            "ready": False,
            "restartCount": 1,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {
                "terminated": {
                    "exitCode": 10,
                    "reason": "Error",
                    "message": '{"reason":"EngineCorrupted","message":"blob ab12 is damaged"}',
                }
            },
        }
    ]
    world.serving()
    world.but(
        children={
            **world.observation.children,
            ("Deployment", "chat-amd64"): Found(as_observed(obj, ready=0, replicas=1)),
        },
        pods=(pod,),
    )
    status = status_of(world)
    assert conditions(status)["Stalled"] == ("True", "FetchFailed")
    assert "blob ab12 is damaged" in message(status)


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    world = World()
    first = status_of(world)
    world.with_engine(status=first)
    later = report(
        world.observation,
        world.decide(),
        applied=frozenset(),
        refused=None,
        now=NOW + timedelta(minutes=1),
    )
    assert later.conditions == first.conditions


def test_an_unchanged_engine_has_an_unchanged_status() -> None:
    world = World().cached().serving()
    world.with_engine(status=status_of(world))
    assert status_of(world) == world.observation.engine.status


def test_an_architecture_taken_off_the_spec_serves_until_those_on_it_do() -> None:
    world = World().cached().serving()
    world.with_spec(architectures=["arm64"]).but(nodes=(make_node(), make_node("n2", "arm64")))
    world.but(manifests={**world.observation.manifests, world.target.key: NotFound()})
    assert not [a for a in world.decide().actions if isinstance(a, Delete)]
    assert [row.architecture for row in status_of(world).serving] == ["amd64"]
    assert conditions(status_of(world))["Available"] == ("True", "Serving")
    old = dict(world.observation.children)
    world.cached().serving()
    world.but(children={**world.observation.children, **old})
    assert "chat-amd64" in {a.name for a in world.decide().actions if isinstance(a, Delete)}
    assert [row.architecture for row in status_of(world).serving] == ["arm64"]


def test_status_never_holds_reconciling_and_stalled_together() -> None:
    for world in (World(), World().cached(), World().but(runtime=NotFound())):
        assert not {"Reconciling", "Stalled"} <= set(conditions(status_of(world)))


def test_what_changed_stays_readable_after_the_switch() -> None:
    world = World().cached().serving()
    world.with_spec(model={"uri": "s3://models/smollm2", "revision": "v2"})
    world.with_engine(status=status_of(world))
    world.cached()
    assert status_of(world).engines[0].changed == ["model.revision: v1 -> v2"]


def test_a_scratch_size_reaches_the_builder_which_cannot_see_it() -> None:
    wish = World(build={"scratch": {"size": "6Gi"}}).decide().wishes[0]
    job = build_job(wish.order, CONFIG)
    environment = job["spec"]["template"]["spec"]["containers"][0]["env"]
    request = next(e["value"] for e in environment if e["name"] == "LLMENGINE_BUILD_REQUEST")
    assert json.loads(request)["scratchBytes"] == 6 << 30


def test_pods_that_a_quota_refuses_are_seen_at_the_deployment() -> None:
    world = World().cached().serving(ready=0)
    deployment = world.observation.children["Deployment", "chat-amd64"]
    assert isinstance(deployment, Found)
    refusal = {
        "type": "ReplicaFailure",
        "status": "True",
        "message": 'pods "x" is forbidden: exceeded quota: small',
    }
    obj = {**deployment.value, "status": {"conditions": [refusal]}}
    world.but(
        children={**world.observation.children, ("Deployment", "chat-amd64"): Found(obj)}, pods=()
    )
    status = status_of(world)
    assert conditions(status)["Stalled"] == ("True", "QuotaExceeded")
    assert "exceeded quota: small" in message(status)


def test_a_rollout_whose_old_pods_make_room_says_so() -> None:
    world = World(serving={"rollout": {"strategy": "Replace"}, "replicas": 2})
    world.cached().serving(ready=1, replicas=2)
    status = status_of(world)
    assert conditions(status)["Ready"] == ("Unknown", "MakingRoom")
    assert message(status) == (
        "amd64: old pods make room before new ones come; 2 of 2 pods are of the newest template,"
        " 1 are ready"
    )


def test_an_engine_with_a_queue_has_its_builds_and_pods_admitted_by_it() -> None:
    queue = {"kueue.x-k8s.io/queue-name": "gpus"}
    world = World().with_engine(queue="gpus")
    job = build_job(world.decide().wishes[0].order, CONFIG)
    obj = deployment_of(world.cached()).object
    for made in (job, obj):
        assert made["metadata"]["labels"].items() >= queue.items()
        assert not made["spec"]["template"]["metadata"]["labels"].items() >= queue.items()


def test_pods_that_serve_are_kept_although_the_status_that_tells_of_them_is_lost() -> None:
    world = (
        World().cached().serving().with_spec(model={"uri": "s3://models/other", "revision": "v1"})
    )
    world.with_engine(status=LLMEngineStatus())
    assert not [action for action in world.decide().actions if isinstance(action, Delete)]
    assert conditions(status_of(world))["Available"] == ("True", "Serving")
