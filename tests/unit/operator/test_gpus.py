"""Engines for several kinds of GPUs: their Jobs and pods, and how one holds the others back."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from llmengine.api.v1alpha1 import EngineState
from llmengine.architecture import Architecture
from llmengine.quantity import GIB
from llmengine_operator.decision import Apply, ApplyDeployment, Decision
from llmengine_operator.observation import Found, Node
from llmengine_operator.plan import decide
from llmengine_operator.resources.build_job import build_job
from llmengine_operator.resources.placement import place
from tests.unit.operator.gpu_nodes import H100, H100_PCIE, L4, T4, gpu_node
from tests.unit.operator.gpu_world import NODES, A, Gpus, H, L, T
from tests.unit.operator.world import (
    CONFIG,
    NOW,
    World,
    make_runtime,
    seconds,
)

MEMORY = "nvidia.com/gpu.memory"
V2 = {"uri": "s3://models/smollm2", "revision": "v2"}


def wished(decision: Decision) -> set[str]:
    return {str(wish.order.target.architecture) for wish in decision.wishes}


def objects(decision: Decision, kind: str) -> list[Mapping[str, Any]]:
    applied = [a.object for a in decision.actions if isinstance(a, Apply | ApplyDeployment)]
    return [obj for obj in applied if obj["kind"] == kind]


def pod_of(obj: Mapping[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = obj["spec"]["template"]["spec"]
    return spec


# Jobs and pods.


def test_each_kind_of_gpu_gets_a_build_a_deployment_and_a_service() -> None:
    world = Gpus(H, L, A, T)
    assert wished(world.decide()) == {H, L, A, T}
    world.stored(H, L, A, T)
    decision = world.decide()
    assert len(objects(decision, "Deployment")) == 4
    slugs = {f"chat-{Architecture.parse(name).slug}" for name in (H, L, A, T)}
    services = {obj["metadata"]["name"] for obj in objects(decision, "Service")}
    assert services == {"chat", "chat-headless", *slugs}
    assert world.status().summary is not None


def test_auto_is_another_dtype_on_another_gpu_and_so_another_key() -> None:
    wishes = Gpus(H, T).decide().wishes
    dtypes = {str(w.order.target.architecture): w.order.target.factors for w in wishes}
    assert dtypes[H]["engine.dtype"] == "bfloat16"
    assert dtypes[T]["engine.dtype"] == "float16"


RUNTIME = {
    "runtimeClassName": "nvidia",
    "podDefaults": {
        "tolerations": [{"key": "pool", "operator": "Exists"}],
        "servingResources": {"limits": {"memory": "8Gi"}},
    },
}


def test_pods_of_builds_and_servers_get_one_gpu_and_what_the_runtime_says() -> None:
    world = Gpus(L, runtime=RUNTIME, build={"scratch": {"size": "60Gi"}})
    job = build_job(world.decide().wishes[0].order, CONFIG)
    (deployment,) = objects(world.stored(L).decide(), "Deployment")
    for obj in (job, deployment):
        pod = pod_of(obj)
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert pod["runtimeClassName"] == "nvidia"
        assert [t["key"] for t in pod["tolerations"]] == ["nvidia.com/gpu", "pool"]
    assert pod_of(job)["containers"][0]["resources"]["requests"]["ephemeral-storage"] == "60Gi"
    server = pod_of(deployment)["containers"][0]["resources"]
    assert server["limits"] == {"memory": "8Gi", "nvidia.com/gpu": "1"}
    fetch = pod_of(deployment)["initContainers"][0]["resources"]
    assert fetch["limits"] == {"memory": "8Gi"}


def test_a_cpu_pod_asks_for_none_of_this() -> None:
    world = World()
    pod = pod_of(build_job(world.decide().wishes[0].order, CONFIG))
    assert pod["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
    assert pod["containers"][0]["resources"] == {}
    assert not {"affinity", "tolerations", "runtimeClassName"} & pod.keys()


def fits(pod: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """As the scheduler would say."""
    if any(labels.get(key) != value for key, value in pod["nodeSelector"].items()):
        return False
    affinity = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return any(
        all(_matches(labels, e) for e in term["matchExpressions"])
        for term in affinity["nodeSelectorTerms"]
    )


def _matches(labels: Mapping[str, str], expression: Mapping[str, Any]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values", [])
    match expression["operator"]:
        case "DoesNotExist":
            return value is None
        case "In":
            return value in values
        case "Gt":
            return value is not None and int(value) > int(values[0])
    assert expression["operator"] == "Lt"
    return value is not None and int(value) < int(values[0])


SLICE = {"nvidia.com/gpu.slices.gi": "1"}


@pytest.mark.parametrize(
    ("architecture", "node", "goes"),
    [
        pytest.param(H, gpu_node("n", H100), True, id="its own product"),
        pytest.param(H, gpu_node("n", f"{H100}-SHARED"), True, id="its product, shared"),
        pytest.param(H, gpu_node("n", "NVIDIA-H100-PCIe"), False, id="another product"),
        pytest.param(H, gpu_node("n", L4), False, id="another compute capability"),
        pytest.param(H, gpu_node("n", f"{H100}-MIG-1g.10gb"), False, id="a slice"),
        pytest.param("sm_90", gpu_node("n", H100), True, id="any product of the capability"),
        pytest.param("sm_90", gpu_node("n", "NVIDIA-H100-PCIe"), True, id="and the other one"),
        pytest.param("sm_90", gpu_node("n", L4), False, id="not of another capability"),
        pytest.param(
            "sm_90",
            gpu_node("n", f"{H100}-MIG-1g.10gb", labels=SLICE),
            False,
            id="nor a slice of it",
        ),
        pytest.param("sm_90", gpu_node("n", H100, arch="arm64"), False, id="nor an arm64 host"),
    ],
)
def test_pods_go_to_nodes_of_exactly_their_architecture(
    architecture: str, node: Node, goes: bool
) -> None:
    world = Gpus()
    assert isinstance(world.observation.runtime, Found)
    spec = world.observation.runtime.value.spec
    assert fits(place(spec, Architecture.parse(architecture), {}), node.labels) == goes


@pytest.mark.parametrize("old_labels", [False, True])
@pytest.mark.parametrize(
    ("minimum", "driver", "goes"),
    [
        ("550", "550.0.0", True),
        ("550", "549.99.99", False),
        ("550.54", "550.54.01", True),
        ("550.54", "550.53.99", False),
        ("550.54", "551.01.00", True),
        ("550.54.15", "550.54.15", True),
        ("550.54.15", "550.54.14", False),
        ("550.54.15", "550.55.01", True),
        ("550.54.05", "550.54.05", True),
        ("550.54.05", "550.54.04", False),
    ],
)
def test_pods_go_to_nodes_whose_driver_is_new_enough(
    minimum: str, driver: str, goes: bool, old_labels: bool
) -> None:
    spec = make_runtime(backend="tensorrt", accelerator="nvidia", minimumDriver=minimum).spec
    labels = dict(gpu_node("n", L4, driver=driver).labels)
    if old_labels:
        for part, old in (("major", "major"), ("minor", "minor"), ("revision", "rev")):
            value = labels.pop(f"nvidia.com/cuda.driver-version.{part}")
            labels[f"nvidia.com/cuda.driver.{old}"] = value
    assert fits(place(spec, Architecture.parse(L), {}), labels) == goes


def test_nodes_that_come_and_go_change_no_pod() -> None:
    few, many = Gpus(L).stored(L), Gpus(L)
    many.on(gpu_node("l", L4), gpu_node("m", f"{L4}-SHARED"), gpu_node("t", T4)).stored(L)
    assert objects(few.decide(), "Deployment") == objects(many.decide(), "Deployment")


@pytest.mark.parametrize("part", ["build", "serving"])
def test_more_than_one_gpu_is_refused(part: str) -> None:
    world = Gpus(L, **{part: {"resources": {"limits": {"nvidia.com/gpu": 2}}}})
    assert world.ready == ("False", "GPUCountUnsupported")
    assert Gpus(L, **{part: {"resources": {"limits": {"nvidia.com/gpu": 1}}}}).decide().wishes


# What cannot be.


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        pytest.param(T, {"engine": {"dtype": "bfloat16"}}, "bfloat16 needs", id="bfloat16 on a T4"),
        pytest.param(
            T,
            {"runtime": {"computeCapabilities": ["sm_80+"]}},
            'EngineRuntime "onnxruntime-1.32.0" is for sm_80+',
            id="what the runtime rules out",
        ),
        pytest.param(L, {"engine": {"quantization": {"weights": "fp8"}}}, "no fp8", id="fp8"),
    ],
)
def test_what_an_architecture_lacks_is_a_row_that_says_so(
    name: str, more: dict[str, Any], words: str
) -> None:
    world = Gpus(name, **more)
    assert world.decide().wishes == ()
    row = world.row(name)
    assert (row.state, row.reason) == (EngineState.UNSUPPORTED, "Unsupported")
    assert words in row.message


@pytest.mark.parametrize(
    ("given", "capability", "known"),
    [
        (["sm_80+"], (8, 0), True),
        (["sm_80+"], (12, 0), True),
        (["sm_80+"], (7, 5), False),
        (["sm_75", "sm_90"], (9, 0), True),
        (["sm_75", "sm_90"], (8, 9), False),
        (["sm_100"], (10, 0), True),
        (None, (5, 0), True),
    ],
)
def test_a_runtime_knows_the_compute_capabilities_that_it_lists(
    given: list[str] | None, capability: tuple[int, int], known: bool
) -> None:
    spec = make_runtime(backend="tensorrt", accelerator="nvidia", computeCapabilities=given).spec
    assert spec.knows(capability) == known


def test_a_best_effort_architecture_that_fails_holds_nothing_back() -> None:
    world = Gpus(L, T, engine={"dtype": "bfloat16"}).stored(L).rolled_out()
    assert world.ready == ("True", "Serving")
    assert world.built == ("False", "Unsupported")
    assert world.row(T).state is EngineState.UNSUPPORTED


def test_a_required_one_that_fails_is_not_ready_while_the_others_serve() -> None:
    world = Gpus(L, T, engine={"dtype": "bfloat16"}, architectures=[L, T]).stored(L).rolled_out()
    assert world.ready == ("False", "Unsupported")
    assert [row.architecture for row in world.status().serving] == [L]


def test_a_required_one_without_a_node_is_waited_for() -> None:
    world = Gpus(L, architectures=[L, T]).stored(L).rolled_out()
    assert world.ready == ("Unknown", "NoNode")
    assert world.row(T).state is EngineState.NO_NODE


def test_warnings_of_the_builder_stand_in_the_row() -> None:
    warning = "float16 holds less than the model's bfloat16: activations may overflow"
    assert Gpus(T).stored(T, warnings=(warning,)).row(T).message == warning


def test_nodes_that_cannot_run_it_stand_in_the_status() -> None:
    world = Gpus(L).on(NODES[L], gpu_node("m", f"{H100}-MIG-1g.10gb"))
    (skipped,) = world.status().skipped_nodes
    assert (skipped.reason, skipped.count) == ("MIGUnsupported", 1)
    assert "node m" in skipped.message


def test_where_no_node_can_the_condition_says_why() -> None:
    world = Gpus().on(gpu_node("m", f"{H100}-MIG-1g.10gb"))
    assert world.ready == ("Unknown", "NoNode")
    ready = next(c for c in world.status().conditions if c.type == "Ready")
    assert "node m has GPUs that MIG divides" in ready.message


# Coming and going.


def test_a_new_kind_of_gpu_is_a_row_that_waits_and_disturbs_nobody() -> None:
    world = Gpus(L).stored(L).rolled_out().on(NODES[L], NODES[T])
    assert wished(world.decide()) == set()
    row = world.row(T)
    assert (row.state, row.reason) == (EngineState.PENDING, "ArchitectureSettling")
    assert "it counts from 12:02:00 UTC on" in row.message
    assert row.seen_time == "2026-11-24T12:00:00Z"
    assert world.ready == ("True", "Serving")
    assert world.built == ("True", "Cached")
    summary = world.status().summary
    assert summary is not None
    assert summary.engines == "1/1"
    plan = next(p for p in world.decide().plans if str(p.target.architecture) == T)
    assert plan.look_again == timedelta(minutes=2)


def test_it_is_built_after_two_minutes_whoever_looks() -> None:
    world = Gpus(L).stored(L).rolled_out().on(NODES[L], NODES[T]).seen().missing()
    later = decide(world.observation, CONFIG, NOW + seconds(121))
    assert wished(later) == {T}


def test_what_serves_and_has_no_node_left_keeps_its_deployment_and_holds_nothing_back() -> None:
    world = Gpus(L, T).stored(L, T).rolled_out().on(NODES[L])
    status = world.observation.engine.status
    gone = [
        row.model_copy(update={"ready_replicas": 0}) if row.architecture == T else row
        for row in status.serving
    ]
    world.with_engine(status=status.model_copy(update={"serving": gone}))
    assert world.row(T).gone_time == "2026-11-24T12:00:00Z"
    assert "given up after 24 h" in world.row(T).message
    assert {obj["metadata"]["name"] for obj in objects(world.decide(), "Deployment")} == {
        f"chat-{Architecture.parse(name).slug}" for name in (L, T)
    }
    assert world.ready == ("True", "Serving")


# Switching.


def test_the_first_engine_of_each_architecture_serves_as_soon_as_it_is_there() -> None:
    assert Gpus(L, T).stored(L).served == {L: "v1"}


def generation_two(*names: str, **spec: Any) -> Gpus:
    """Architectures that serve v1; v2 is wanted."""
    world = Gpus(*names, **spec).stored(*names).rolled_out()
    world.with_spec(model=V2, **spec)
    world.missing()
    return world


def test_all_switch_at_once_when_the_last_of_them_is_there() -> None:
    world = generation_two(L, T).stored(L)
    assert world.served == {L: "v1", T: "v1"}
    row = world.row(L)
    assert (row.state, row.reason) == (EngineState.CACHED, "WaitingForEngines")
    assert T in row.message
    assert world.stored(T).served == {L: "v2", T: "v2"}


def test_one_that_served_and_fails_holds_the_others() -> None:
    world = generation_two(L, T).stored(L).failed(T)
    assert world.served == {L: "v1", T: "v1"}


@pytest.mark.parametrize("spec", [{}, {"architectures": [L, T]}], ids=["best effort", "required"])
def test_one_that_never_served_and_fails_for_good_holds_nothing_back(
    spec: dict[str, Any],
) -> None:
    world = Gpus(L, T, **spec).stored(L).failed(T).rolled_out()
    world.with_spec(model=V2, **spec)
    world.missing().failed(T).stored(L)
    assert world.served == {L: "v2"}
    assert world.built == ("False", "VerificationFailed")


def test_a_required_one_that_never_served_and_is_still_built_is_waited_for() -> None:
    world = Gpus(L, T, architectures=[L, T]).stored(L).rolled_out()
    world.with_spec(model=V2, architectures=[L, T])
    assert world.stored(L).served == {L: "v1"}


def test_one_that_comes_later_serves_with_the_others_not_before_them() -> None:
    world = generation_two(L).on(NODES[L], NODES[T]).missing().stored(T)
    assert world.served == {L: "v1"}
    assert world.stored(L).served == {L: "v2", T: "v2"}


def test_one_whose_nodes_have_gone_holds_nothing_back() -> None:
    world = generation_two(L, T)
    status = world.observation.engine.status
    rows = [
        row.model_copy(update={"ready_replicas": int(row.architecture == L)})
        for row in status.serving
    ]
    world.with_engine(status=status.model_copy(update={"serving": rows}))
    world.on(NODES[L]).stored(L)
    assert world.served == {L: "v2", T: "v1"}


def test_another_portability_serves_before_the_old_engines_go() -> None:
    world = Gpus(L).stored(L).rolled_out()
    world.with_spec(engine={"portability": "ComputeCapability"})
    world.missing()
    assert world.served == {L: "v1"}
    world.stored("sm_89")
    assert world.served == {L: "v1", "sm_89": "v1"}
    world.seen()  # it has a Deployment, and no pod that is ready
    assert world.served == {L: "v1", "sm_89": "v1"}
    world.rolled_out()
    assert world.served == {"sm_89": "v1"}


# GPUs of one compute capability, and of several sizes.


ANY_DEVICE: dict[str, Any] = {"engine": {"portability": "ComputeCapability"}}
BIG, SMALL = gpu_node("big", H100, memory=81559), gpu_node("small", H100_PCIE, memory=40000)
NEEDED = 60 * GIB


def affinity_of(world: Gpus) -> list[dict[str, tuple[str, ...]]]:
    """The alternatives of the Deployment's pods: by label, what is asked of it."""
    (deployment,) = objects(world.decide(), "Deployment")
    node = pod_of(deployment)["affinity"]["nodeAffinity"]
    terms = node["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return [
        {e["key"]: (e["operator"], *e.get("values", ())) for e in term["matchExpressions"]}
        for term in terms
    ]


def test_pods_keep_off_gpus_that_are_too_small_for_their_engine() -> None:
    world = Gpus(**ANY_DEVICE).on(BIG, SMALL).stored("sm_90", memory=NEEDED - 1)
    asked = [term.get(MEMORY) for term in affinity_of(world)]
    # 60 GiB are 61440 MiB: a GPU of just so much is taken, and one that nobody has labelled.
    assert asked == [("Gt", "61439"), ("DoesNotExist",)]
    assert world.status().serving[0].gpu_memory_bytes == NEEDED - 1


def test_an_older_driver_is_not_taken_for_a_larger_gpu() -> None:
    world = Gpus(runtime={"minimumDriver": "550.54"}, **ANY_DEVICE)
    terms = affinity_of(world.on(BIG, SMALL).stored("sm_90", memory=NEEDED))
    assert terms
    assert all(MEMORY in term for term in terms)
    assert all(any("driver" in key for key in term) for term in terms)


def test_nodes_whose_gpus_are_too_small_are_told_with_numbers() -> None:
    unknown = gpu_node("unknown", H100_PCIE)
    world = Gpus(**ANY_DEVICE).on(BIG, SMALL, unknown).stored("sm_90", memory=NEEDED)
    (told,) = world.status().skipped_nodes
    assert (told.reason, told.count) == ("GpuTooSmall", 1)
    assert told.message.startswith(
        "node small has GPUs of 39.1 GiB, and the engine takes one of 60.0 GiB: its pods keep off"
    )


def test_what_a_node_lacks_is_told_when_there_is_an_engine_that_needs_it() -> None:
    world = Gpus(**ANY_DEVICE).on(BIG, SMALL)
    assert world.status().skipped_nodes == []
    world.stored("sm_90", memory=30 * GIB)
    assert world.status().skipped_nodes == []


def test_an_engine_for_one_product_asks_for_no_memory_that_its_name_implies() -> None:
    world = Gpus().on(BIG).stored(H, memory=NEEDED)
    assert [MEMORY in term for term in affinity_of(world)] == [False]
    assert world.status().serving[0].gpu_memory_bytes == NEEDED


def test_an_engine_of_which_nobody_knows_what_it_takes_goes_anywhere() -> None:
    world = Gpus(**ANY_DEVICE).on(BIG, SMALL).stored("sm_90")
    assert [MEMORY in term for term in affinity_of(world)] == [False]
    assert world.status().serving[0].gpu_memory_bytes is None


# A node that is not what its labels say.


def test_a_wrong_device_stands_until_the_node_is_no_longer_said_to_be_one() -> None:
    world = Gpus(L).failed(L, reason="WrongDevice", node="l")
    assert world.row(L).state is EngineState.FAILED
    assert wished(world.decide()) == set()
    world.on(gpu_node("l", T4), gpu_node("other", L4)).missing()
    assert L in wished(world.decide())


def test_a_wrong_device_is_tried_again_when_nobody_knows_any_more_where_it_was() -> None:
    world = Gpus(L).failed(L, reason="WrongDevice", node="l").seen()
    assert wished(world.decide()) == set()
    assert wished(world.but(attempts=()).decide()) == {L}


def test_a_wrong_device_is_tried_again_on_request() -> None:
    world = Gpus(L).failed(L, reason="WrongDevice", node="l")
    world.with_engine(requested_at="now")
    assert wished(world.decide()) == {L}
