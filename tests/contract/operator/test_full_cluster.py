"""Rollouts on a cluster whose GPUs are all taken, by the very pods that are to be replaced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llmengine_operator.kinds import DEPLOYMENT, POD
from tests.contract.operator.builder import Builder
from tests.contract.operator.gpu_pool import L4, GpuPool
from tests.contract.operator.running import Clock, LiveOperator
from tests.contract.operator.stage import Stage

pytestmark = pytest.mark.controlplane


@pytest.fixture
def operator(stage: Stage, pool: GpuPool, clock: Clock) -> Iterator[LiveOperator]:
    with LiveOperator(stage, clock=clock) as running:
        yield running


@pytest.fixture
def serving(stage: Stage, builder: Builder, pool: GpuPool, operator: LiveOperator) -> None:
    """An engine with two pods, on the only two GPUs."""
    pool.add(L4, allocatable={"nvidia.com/gpu": "2"})
    stage.create()
    builder.finish(stage.until_job())
    stage.until_reason("Serving")
    stage.edit(serving={"replicas": 2})
    stage.until("two pods", lambda: stage.status()["summary"]["replicas"] == "2/2")
    stage.until_reason("Serving")


def new_image(stage: Stage, pool: GpuPool, tag: str) -> None:
    defaults = {"nodeSelector": pool.selector}
    gpu = {"backend": "tensorrt", "version": "10.6.0", "accelerator": "nvidia"}
    stage.set_image(tag, **gpu, podDefaults=defaults)


def deployment(stage: Stage) -> dict[str, Any]:
    (found,) = stage.items(DEPLOYMENT)
    return dict(found)


def images(stage: Stage) -> set[str]:
    return {
        pod["spec"]["containers"][0]["image"].rpartition(":")[2]
        for pod in stage.items(POD, labels="llmengine.io/engine=chat")
        if "deletionTimestamp" not in pod["metadata"]
    }


def surge(stage: Stage) -> Any:
    return deployment(stage)["spec"]["strategy"]["rollingUpdate"]["maxSurge"]


@pytest.mark.usefixtures("serving")
def test_old_pods_make_room_one_at_a_time_and_the_next_rollout_tries_to_keep_them_again(
    stage: Stage, pool: GpuPool
) -> None:
    before = deployment(stage)["metadata"]["generation"]
    new_image(stage, pool, "v2")
    stage.until("the new image", lambda: images(stage) == {"v2"})
    stage.until("the usual strategy", lambda: surge(stage) == 1)
    stage.until_reason("Serving")
    # The image, the way out, and the way back.
    assert deployment(stage)["metadata"]["generation"] == before + 3


@pytest.mark.usefixtures("serving")
def test_who_insists_on_a_surge_waits_and_is_told_for_what(stage: Stage, pool: GpuPool) -> None:
    stage.edit(serving={"rollout": {"strategy": "Surge", "progressDeadlineSeconds": 30}})
    stage.until("the deadline", lambda: deployment(stage)["spec"]["progressDeadlineSeconds"] == 30)
    new_image(stage, pool, "v2")
    stage.until("Stalled", lambda: stage.conditions().get("Stalled") == ("True", "Unschedulable"))
    assert "Insufficient nvidia.com/gpu" in stage.message()
    assert stage.status()["summary"]["replicas"] == "2/2"
    assert surge(stage) == 1
    # The way out needs nobody to delete anything.
    stage.edit(serving={"rollout": {"strategy": "Auto"}})
    stage.until_reason("Serving")
    assert images(stage) == {"v2"}


@pytest.mark.usefixtures("serving")
def test_a_bad_image_takes_one_pod_and_no_more(stage: Stage, pool: GpuPool) -> None:
    stage.edit(serving={"rollout": {"strategy": "Replace"}})
    stage.until("no surge", lambda: surge(stage) == 0)
    stage.until_reason("Serving")
    pool.label(pool.names[0], {"example.com/stage": None})
    new_image(stage, pool, "v2")  # its pods find no node any more
    stage.until(
        "one new pod, and one old one", lambda: images(stage) == {"v1", "v2"} and _old(stage) == 1
    )
    assert stage.conditions()["Available"] == ("True", "Serving")
    new_image(stage, pool, "v1")
    pool.label(pool.names[0], pool.selector)
    stage.until("both old pods", lambda: images(stage) == {"v1"} and _old(stage) == 2)
    stage.until_reason("Serving")


def _old(stage: Stage) -> int:
    return sum(
        pod["spec"]["containers"][0]["image"].endswith(":v1")
        for pod in stage.items(POD, labels="llmengine.io/engine=chat")
        if "deletionTimestamp" not in pod["metadata"]
    )
