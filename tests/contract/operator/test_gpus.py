"""Engines on a cluster with several kinds of GPUs, as somebody with kubectl sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llmengine.architecture import Architecture
from llmengine_operator.kinds import DEPLOYMENT, HPA, LLMENGINE, NODE, POD, SERVICE
from tests.contract.operator.builder import Builder, request_of
from tests.contract.operator.gpu_pool import A10, H100, H100_PCIE, L4, T4, GpuPool, architecture
from tests.contract.operator.running import Clock, LiveOperator, Stepper
from tests.contract.operator.stage import Stage

pytestmark = pytest.mark.controlplane

H, L, A, T = map(architecture, (H100, L4, A10, T4))
BUSY = {"autoscaling": {"maxReplicas": 3}, "resources": {"requests": {"cpu": "1"}}}


@pytest.fixture
def operator(stage: Stage, pool: GpuPool, clock: Clock) -> Iterator[LiveOperator]:
    with LiveOperator(stage, clock=clock) as running:
        yield running


def rows(stage: Stage) -> dict[str, dict[str, Any]]:
    return {row["architecture"]: row for row in stage.status().get("engines", [])}


def states(stage: Stage) -> dict[str, str]:
    return {name: row["state"] for name, row in rows(stage).items()}


def queued(stage: Stage) -> list[tuple[str, str]]:
    """Why rows wait for a build, and what they say."""
    waiting = (row for row in rows(stage).values() if row["state"] == "Queued")
    return [(row["reason"], row["message"]) for row in waiting]


def skipped(stage: Stage) -> dict[str, str]:
    return {s["reason"]: s["message"] for s in stage.status().get("skippedNodes", [])}


def deployments(stage: Stage) -> set[str]:
    return {d["metadata"]["name"] for d in stage.items(DEPLOYMENT)}


def named(*architectures: str) -> set[str]:
    return {f"chat-{Architecture.parse(name).slug}" for name in architectures}


def jobs(stage: Stage, revision: str = "v1") -> dict[str, dict[str, Any]]:
    """The newest build Job of each architecture."""
    found = [(request_of(job), job) for job in stage.jobs()]
    return {asked.architecture: job for asked, job in found if asked.revision == revision}


def until_jobs(stage: Stage, *names: str, revision: str = "v1") -> dict[str, dict[str, Any]]:
    """Waits until these architectures, and no others, have a build Job."""
    stage.until(f"Jobs for {names}", lambda: jobs(stage, revision).keys() == set(names))
    return jobs(stage, revision)


def build(stage: Stage, builder: Builder, *names: str) -> None:
    """Builds for all of these and waits until all serve."""
    for job in until_jobs(stage, *names).values():
        builder.finish(job)
    stage.until_reason("Serving")


def product_under(stage: Stage, pod: dict[str, Any]) -> str:
    node = stage.get(NODE, pod["spec"]["nodeName"], None)
    assert node is not None
    return str(node["metadata"]["labels"]["nvidia.com/gpu.product"])


@pytest.mark.usefixtures("operator")
def test_each_kind_of_gpu_has_its_build_its_pods_and_its_names(
    stage: Stage, builder: Builder, pool: GpuPool
) -> None:
    products = {H: H100, L: L4, A: A10, T: T4}
    for product in products.values():
        pool.add(product)
    stage.create(serving=BUSY)
    found = until_jobs(stage, H, L, A, T)
    for name, job in found.items():
        assert product_under(stage, builder.pod(job)) == products[name]
    assert {name: request_of(job).dtype.value for name, job in found.items()} == {
        H: "bfloat16",
        L: "bfloat16",
        A: "bfloat16",
        T: "float16",
    }
    build(stage, builder, H, L, A, T)
    assert states(stage) == dict.fromkeys((H, L, A, T), "Cached")
    assert deployments(stage) == named(H, L, A, T)
    services = {s["metadata"]["name"] for s in stage.items(SERVICE)}
    assert services == {"chat", "chat-headless", *named(H, L, A, T)}
    assert {h["metadata"]["name"] for h in stage.items(HPA)} == named(H, L, A, T)
    for pod in stage.items(POD, labels="llmengine.io/engine=chat"):
        slug = pod["metadata"]["labels"]["llmengine.io/architecture"]
        name = next(a for a in products if Architecture.parse(a).slug == slug)
        assert product_under(stage, pod) == products[name]
    assert stage.status()["summary"] == {"engines": "4/4", "replicas": "4/4"}


def test_no_more_than_one_build_for_an_architecture_and_first_ones_before_others(
    stage: Stage, builder: Builder, pool: GpuPool, clock: Clock
) -> None:
    pool.add(L4)
    pool.add(T4)
    with LiveOperator(stage, clock=clock, config=stage.config(builds={"maxConcurrent": 1})):
        stage.create()
        first = stage.until_job()
        said = ("BuildQueued", "waits: 1 builds run at a time")
        stage.until("the other to wait", lambda: said in queued(stage))
        builder.finish(first)
        stage.until("the other", lambda: jobs(stage).keys() == {L, T})


def test_a_new_kind_of_gpu_is_served_when_it_has_stayed_for_two_minutes(
    stage: Stage, builder: Builder, pool: GpuPool, operator: LiveOperator, clock: Clock
) -> None:
    pool.add(L4)
    stage.create()
    build(stage, builder, L)
    pool.add(T4)
    stage.until("its row", lambda: states(stage).get(T) == "Pending")
    row = rows(stage)[T]
    assert (row["reason"], row["nodeCount"]) == ("ArchitectureSettling", 1)
    assert stage.conditions()["Ready"] == ("True", "Serving")
    assert stage.status()["summary"]["engines"] == "1/1"
    clock.advance(seconds=130)
    operator.resync()
    builder.finish(until_jobs(stage, L, T)[T])
    stage.until_reason("Serving")
    stage.until("both", lambda: stage.status()["summary"] == {"engines": "2/2", "replicas": "2/2"})
    assert "seenTime" not in rows(stage)[T]


def test_a_kind_whose_labels_are_gone_for_a_minute_is_neither_new_nor_gone(
    stage: Stage, builder: Builder, pool: GpuPool, operator: LiveOperator
) -> None:
    """As the daemon that writes them takes them off at every restart."""
    name = pool.add(L4)
    stage.create()
    build(stage, builder, L)
    before = stage.get(DEPLOYMENT, named(L).pop())
    assert before is not None
    pool.label(name, {"nvidia.com/gpu.product": None, "nvidia.com/gpu.compute.major": None})
    stage.until("no node", lambda: rows(stage)[L]["nodeCount"] == 0)
    assert "GPUUnlabelled" in skipped(stage)
    assert "goneTime" not in rows(stage)[L]  # its pods answer
    pool.turn_into(name, L4)
    stage.until("the node", lambda: rows(stage)[L]["nodeCount"] == 1)
    stage.until_reason("Serving")
    after = stage.get(DEPLOYMENT, named(L).pop())
    assert after is not None
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert operator.client.requests["create", "Job"] == 1


def test_a_kind_that_is_gone_for_a_day_is_given_up_and_until_then_holds_nothing_back(
    stage: Stage, builder: Builder, pool: GpuPool, operator: LiveOperator, clock: Clock
) -> None:
    pool.add(L4)
    name = pool.add(T4)
    stage.create()
    build(stage, builder, L, T)
    pool.remove(name)
    stage.until("its time to begin", lambda: "goneTime" in rows(stage)[T])
    stage.until_reason("Serving")
    assert "given up after 24 h" in rows(stage)[T]["message"]
    assert deployments(stage) == named(L, T)
    clock.advance(hours=24, minutes=1)
    operator.resync()
    stage.until("its row to go", lambda: states(stage) == {L: "Cached"})
    stage.until("its Deployment to go", lambda: deployments(stage) == named(L))
    assert stage.conditions()["Ready"] == ("True", "Serving")


def test_when_all_are_gone_everything_waits_for_them(
    stage: Stage, builder: Builder, pool: GpuPool, operator: LiveOperator, clock: Clock
) -> None:
    names = [pool.add(L4), pool.add(T4)]
    stage.create()
    build(stage, builder, L, T)
    for name in names:
        pool.remove(name)
    stage.until("all to be gone", lambda: all("goneTime" in row for row in rows(stage).values()))
    stage.until("no pod", lambda: stage.conditions()["Available"] == ("False", "NoPodReady"))
    assert stage.conditions()["Ready"][0] == "Unknown"
    clock.advance(hours=25)
    operator.resync()
    pool.add(L4)
    stage.until_reason("Serving")
    stage.until("the other to be given up", lambda: states(stage) == {L: "Cached"})
    assert operator.client.requests["create", "Job"] == 2


@pytest.mark.usefixtures("operator")
def test_slices_and_gpus_without_labels_are_named_and_shared_ones_are_used(
    stage: Stage, builder: Builder, pool: GpuPool, clock: Clock, operator: LiveOperator
) -> None:
    pool.add(f"{L4}-SHARED")
    slices = pool.add(f"{H100}-MIG-1g.10gb")
    whole = {"nvidia.com/gpu": "0", "nvidia.com/mig-1g.10gb": "7"}
    mixed = pool.add(H100_PCIE, allocatable=whole)
    bare = pool.add(T4, labels={})
    stage.create()
    build(stage, builder, L)
    said = skipped(stage)
    assert said.keys() == {"MIGUnsupported", "GPUUnlabelled"}
    assert f"nodes {slices}, {mixed} have GPUs that MIG divides (1g.10gb)" in said["MIGUnsupported"]
    assert f"node {bare} has GPUs, but not the labels" in said["GPUUnlabelled"]
    assert "GPU Feature Discovery" in said["GPUUnlabelled"]
    pool.turn_into(slices, H100)
    pool.turn_into(bare, T4)
    stage.until("both to be seen", lambda: states(stage).keys() == {L, H, T})
    assert skipped(stage).keys() == {"MIGUnsupported"}
    clock.advance(minutes=3)
    operator.resync()
    until_jobs(stage, L, H, T)


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(
    ("portability", "names"),
    [
        pytest.param("Device", {H, architecture(H100_PCIE)}, id="an engine for each product"),
        pytest.param("ComputeCapability", {"sm_90"}, id="one engine for both products"),
    ],
)
def test_products_of_one_compute_capability(
    stage: Stage, builder: Builder, pool: GpuPool, portability: str, names: set[str]
) -> None:
    for product in (H100, H100_PCIE, f"{H100}-MIG-1g.10gb"):
        pool.add(product)
    replicas = 24 // len(names)
    stage.create(engine={"portability": portability}, serving={"replicas": replicas})
    found = until_jobs(stage, *names)
    assert {request_of(job).factors.get("architecture.device") for job in found.values()} == (
        {H100, H100_PCIE} if portability == "Device" else {None}
    )
    # As many as there are whole GPUs, so that each must be used; and no slice is.
    for job in found.values():
        builder.finish(job)

    def used() -> set[str]:
        pods = stage.items(POD, labels="llmengine.io/engine=chat")
        return {product_under(stage, pod) for pod in pods if pod["spec"].get("nodeName")}

    stage.until("every whole GPU to be used", lambda: len(used()) == 2)
    assert used() == {H100, H100_PCIE}


@pytest.mark.usefixtures("operator")
def test_an_engine_for_every_product_is_served_by_those_with_memory_enough(
    stage: Stage, builder: Builder, pool: GpuPool
) -> None:
    small = pool.add(H100_PCIE, memory=40_000)
    large = pool.add(H100, memory=81_559)
    unknown = pool.add(H100)
    replicas = 16  # as many as those two have GPUs
    stage.create(engine={"portability": "ComputeCapability"}, serving={"replicas": replicas})
    builder.finish(until_jobs(stage, "sm_90")["sm_90"], gpu_memory=60 << 30)
    stage.until_reason("Serving")
    pods = stage.items(POD, labels="llmengine.io/engine=chat")
    assert {pod["spec"]["nodeName"] for pod in pods} == {large, unknown}
    assert skipped(stage)["GpuTooSmall"].startswith(
        f"node {small} has GPUs of 39.1 GiB, and the engine takes one of 60.0 GiB"
    )


def test_the_times_of_architectures_outlast_the_operator(
    stage: Stage, builder: Builder, pool: GpuPool, clock: Clock
) -> None:
    gone = pool.add(A10)
    pool.add(L4)
    with LiveOperator(stage, clock=clock):
        stage.create()
        build(stage, builder, L, A)
        pool.remove(gone)
        pool.add(T4)
        stage.until("both times", lambda: "seenTime" in rows(stage).get(T, {}))
        stage.until("both times", lambda: "goneTime" in rows(stage)[A])
        before = rows(stage)
    clock.advance(seconds=60)
    with LiveOperator(stage, clock=clock) as second:
        stage.until("a pass", lambda: (stage.team, "chat") in second.passes)
        assert rows(stage)[T].get("seenTime") == before[T]["seenTime"]
        assert rows(stage)[A].get("goneTime") == before[A]["goneTime"]
    clock.advance(seconds=70)
    with LiveOperator(stage, clock=clock):
        until_jobs(stage, L, A, T)
    clock.advance(hours=24)
    with LiveOperator(stage, clock=clock):
        stage.until("the one that is gone to be given up", lambda: A not in rows(stage))


@pytest.mark.usefixtures("operator")
def test_one_of_the_required_ones_that_cannot_be_built_leaves_the_others_serving(
    stage: Stage, builder: Builder, pool: GpuPool
) -> None:
    pool.add(L4)
    pool.add(T4)
    stage.create(architectures=[L, T, H], engine={"dtype": "bfloat16"})
    builder.finish(until_jobs(stage, L)[L])
    stage.until_reason("Unsupported")
    stage.until("its pod", lambda: stage.conditions()["Available"] == ("True", "Serving"))
    assert states(stage) == {L: "Cached", T: "Unsupported", H: "NoNode"}
    assert "bfloat16 needs compute capability 8.0" in rows(stage)[T]["message"]
    assert "no node of the cluster is" in rows(stage)[H]["message"]
    assert stage.conditions()["EnginesBuilt"] == ("False", "Unsupported")
    stage.edit(architectures=None)
    stage.until_reason("Serving")
    assert states(stage) == {L: "Cached", T: "Unsupported"}


@pytest.mark.usefixtures("operator")
def test_all_architectures_switch_to_another_model_at_once(
    stage: Stage, builder: Builder, pool: GpuPool
) -> None:
    pool.add(L4)
    pool.add(T4)
    stage.create()
    build(stage, builder, L, T)
    stage.edit(model={"revision": "v2"})
    found = until_jobs(stage, L, T, revision="v2")
    new = {request_of(job).key for job in found.values()}
    builder.finish(found[L])
    stage.until("it to wait", lambda: rows(stage)[L]["reason"] == "WaitingForEngines")
    assert T in rows(stage)[L]["message"]
    assert not {row["key"] for row in stage.status()["serving"]} & new
    builder.finish(found[T])
    stage.until_reason("Serving")
    assert {row["key"] for row in stage.status()["serving"]} == new


@pytest.mark.usefixtures("operator")
def test_a_node_that_is_not_what_its_labels_say_is_tried_again_when_they_are_corrected(
    stage: Stage, builder: Builder, pool: GpuPool
) -> None:
    wrong = pool.add(L4)
    stage.create()
    job = until_jobs(stage, L)[L]
    builder.fail(job, 13, "WrongDevice", "the device is a Tesla T4 (7.5), not an NVIDIA-L4 (8.9)")
    stage.until_reason("WrongDevice")
    assert f"node {wrong} is not what its labels say: the device is a Tesla T4" in stage.message()
    assert stage.conditions()["Stalled"] == ("True", "WrongDevice")
    pool.turn_into(wrong, T4)
    pool.add(L4)
    stage.until_attempt(2)


@pytest.mark.usefixtures("operator")
def test_what_the_builder_warns_of_stands_in_the_row(
    stage: Stage, builder: Builder, pool: GpuPool
) -> None:
    pool.add(T4)
    stage.create()
    warning = "float16 holds less than the bfloat16 of the model: activations may overflow"
    builder.finish(until_jobs(stage, T)[T], warnings=(warning,))
    stage.until_reason("Serving")
    assert rows(stage)[T]["message"] == warning


def test_a_pool_that_is_scaled_to_zero_gets_a_build_that_asks_for_a_node(
    stage: Stage, builder: Builder, pool: GpuPool, clock: Clock
) -> None:
    labels = {"example.com/stage": stage.team}
    expected = [{"architecture": L, "labels": labels}, {"architecture": H}]
    config = stage.config(architectures={"expected": expected})
    with LiveOperator(stage, clock=clock, config=config):
        stage.create()
        job = until_jobs(stage, L)[L]  # and none for what has other labels
        stage.until_reason("Unschedulable")
        pool.add(L4)
        assert product_under(stage, builder.pod(job)) == L4
        builder.finish(job)
        stage.until_reason("Serving")


@pytest.mark.usefixtures("operator")
def test_nodes_with_an_old_driver_are_named_and_get_no_pod(
    stage: Stage, builder: Builder, pool: GpuPool
) -> None:
    old = pool.add(L4, driver="525.60.13")
    pool.add(L4, driver="550.54.15")
    pool.make_runtime(minimumDriver="550.54", podDefaults={"nodeSelector": pool.selector})
    stage.create(serving={"replicas": 5})
    build(stage, builder, L)
    pods = stage.items(POD, labels="llmengine.io/engine=chat")
    assert old not in {pod["spec"]["nodeName"] for pod in pods}
    assert f"node {old} has NVIDIA driver 525.60.13" in skipped(stage)["DriverTooOld"]
    assert "needs 550.54: update the driver" in skipped(stage)["DriverTooOld"]


def test_a_pass_over_what_serves_on_gpus_writes_nothing_and_asks_for_no_node(
    stage: Stage, builder: Builder, pool: GpuPool, clock: Clock
) -> None:
    for product in (H100, L4, A10, T4, f"{H100}-MIG-1g.10gb"):
        pool.add(product)
    operator = Stepper(stage, clock=clock)
    stage.create()
    operator.run()
    for job in jobs(stage).values():
        builder.finish(job)

    def ready() -> bool:
        operator.run()
        return stage.conditions()["Ready"] == ("True", "Serving")

    stage.until("it to serve", ready)
    engine = stage.get(LLMENGINE, "chat")
    assert engine is not None
    before = dict(operator.client.requests)
    operator.reconciler.reconcile((stage.team, "chat"))
    made = {
        what: count - before.get(what, 0)
        for what, count in operator.client.requests.items()
        if count != before.get(what, 0)
    }
    assert made == {
        ("get", "LLMEngine"): 1,
        ("get", "EngineRuntime"): 1,
        ("list", "Deployment"): 1,
        ("list", "Service"): 1,
        ("list", "HorizontalPodAutoscaler"): 1,
        ("list", "PodDisruptionBudget"): 1,
        ("list", "Pod"): 1,
    }
