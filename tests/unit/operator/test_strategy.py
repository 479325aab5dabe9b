"""When old pods make room for new ones, and when they must not."""

from __future__ import annotations

from typing import Any

import pytest

from llmengine.api.v1alpha1 import RolloutOptions
from llmengine_operator.observation import Node
from llmengine_operator.strategy import Strategy, gives_way, strategy
from tests.unit.operator.world import make_node

GPU = "nvidia.com/gpu"
FULL = (
    "0/2 nodes are available: 1 Insufficient nvidia.com/gpu, 1 node(s) had untolerated taint(s)."
    " preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
)
MEMORY = "nvidia.com/gpu.memory"
NODES = (
    make_node("gpu-1", labels={"pool": "gpu", MEMORY: "24576"}),
    make_node("cpu-1", labels={"pool": "cpu"}),
)


def wants(label: str, operator: str, *values: str) -> dict[str, Any]:
    return {"key": label, "operator": operator, "values": list(values)}


def deployment(
    surge: int | str = 1, *, updated: int = 0, replicas: int = 2, available: int = 2
) -> dict[str, Any]:
    return {
        "metadata": {"generation": 5},
        "spec": {"replicas": 2, "strategy": {"rollingUpdate": {"maxSurge": surge}}},
        "status": {
            "observedGeneration": 5,
            "replicas": replicas,
            "updatedReplicas": updated,
            "availableReplicas": available,
        },
    }


def pod(
    template: str,
    *,
    age: int,
    node: str = "",
    says: str = "",
    reason: str = "Unschedulable",
    holds: str = GPU,
    selector: dict[str, str] | None = None,
    wants: tuple[dict[str, Any], ...] = (),
    leaves: bool = False,
) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": f"{template}-{age}",
        "creationTimestamp": f"2026-11-24T11:{59 - age}:00Z",
        "labels": {"pod-template-hash": template},
    }
    if leaves:
        metadata["deletionTimestamp"] = "2026-11-24T11:59:30Z"
    terms = {"nodeSelectorTerms": [{"matchExpressions": [want]} for want in wants]}
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": says}
    return {
        "metadata": metadata,
        "spec": {
            "containers": [{"name": "server", "resources": {"requests": {holds: "1"}}}],
            **({"nodeName": node} if node else {}),
            **({"nodeSelector": selector} if selector else {}),
            **({"affinity": {"nodeAffinity": {REQUIRED: terms}}} if wants else {}),
        },
        "status": {"conditions": [condition] if says else []},
    }


REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
OLD = pod("old", age=9, node="gpu-1")
NEW = pod("new", age=1, says=FULL)


def of(
    found: dict[str, Any] | None,
    *pods: dict[str, Any],
    nodes: tuple[Node, ...] = NODES,
    **options: Any,
) -> Strategy:
    return strategy(RolloutOptions.model_validate(options), found, pods, nodes, grace_seconds=90)


def test_without_trouble_new_pods_are_made_beside_the_old_ones() -> None:
    assert of(None) == Strategy(1, 0, 600)
    assert of(deployment(), OLD) == Strategy(1, 0, 600)
    assert of(deployment(), maxSurge="50%", maxUnavailable=2, progressDeadlineSeconds=60) == (
        Strategy("50%", 2, 60)
    )


def test_old_pods_make_room_when_a_new_one_waits_for_what_they_hold() -> None:
    assert of(deployment(replicas=3, updated=1), OLD, NEW) == Strategy(0, 1, 690)


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param((wants(MEMORY, "Gt", "16384"),), id="a GPU as large"),
        pytest.param((wants(MEMORY, "Lt", "32768"),), id="one as small"),
        pytest.param((wants(MEMORY, "In", "24576", "8192"),), id="one of these"),
        pytest.param((wants(MEMORY, "NotIn", "8192"),), id="none of those"),
        pytest.param((wants("zone", "DoesNotExist"),), id="a label that is not there"),
        pytest.param((wants("zone", "Exists"), wants(MEMORY, "Exists")), id="the one or the other"),
    ],
)
def test_old_pods_make_room_where_the_new_ones_affinity_allows_their_node(
    wanted: tuple[dict[str, Any], ...],
) -> None:
    new = pod("new", age=1, says=FULL, wants=wanted)
    assert of(deployment(replicas=3, updated=1), OLD, new).max_surge == 0


def test_a_pod_that_waits_for_the_end_of_an_old_one_is_not_stalled_by_that() -> None:
    """Long generations may take longer than a rollout may stand still."""
    full = deployment(replicas=3, updated=1)
    options = RolloutOptions(progress_deadline_seconds=30)
    given = strategy(options, full, [OLD, NEW], NODES, grace_seconds=3600)
    assert given.progress_deadline_seconds == 3630
    beside = strategy(options, full, [OLD], NODES, grace_seconds=3600)
    assert beside.progress_deadline_seconds == 30


def test_pods_that_were_made_in_the_same_second_are_told_apart_by_their_place() -> None:
    old, new = pod("old", age=1, node="gpu-1"), pod("new", age=1, says=FULL)
    for pods in ((old, new), (new, old)):
        assert of(deployment(replicas=3, updated=1), *pods).max_surge == 0


def test_the_gap_that_a_user_allows_is_kept_while_old_pods_make_room() -> None:
    full = deployment(replicas=3, updated=1)
    assert of(full, OLD, NEW, maxUnavailable="50%").max_unavailable == "50%"
    assert of(full, OLD, NEW, maxUnavailable=0).max_unavailable == 1


@pytest.mark.parametrize(
    "pods",
    [
        pytest.param([OLD], id="no new pod is there"),
        pytest.param([OLD, pod("old", age=1, says=FULL)], id="it is scaled up, not rolled out"),
        pytest.param([OLD, pod("new", age=1, node="gpu-1")], id="the new pod has its place"),
        pytest.param(
            [OLD, pod("new", age=1, says="0/2 nodes are available: 2 Insufficient memory.")],
            id="the old pod holds nothing of what is lacking",
        ),
        pytest.param(
            [OLD, pod("new", age=1, says=FULL, selector={"pool": "none"})],
            id="the new pod would not fit the old pod's node",
        ),
        pytest.param(
            [OLD, pod("new", age=1, says=FULL, wants=(wants(MEMORY, "Gt", "40960"),))],
            id="its GPU is too small for the new pod",
        ),
        pytest.param(
            [OLD, pod("new", age=1, says=FULL, wants=(wants("zone", "Exists"),))],
            id="it lacks a label that the new pod wants",
        ),
        pytest.param(
            [pod("old", age=9, node="gone"), NEW], id="the old pod's node is not there any more"
        ),
        pytest.param(
            [pod("old", age=9, node="gpu-1", leaves=True), NEW], id="the old pod leaves anyhow"
        ),
        pytest.param([NEW], id="no old pod is there"),
        pytest.param(
            [OLD, pod("new", age=1, says=FULL, reason="SchedulingGated")],
            id="a queue holds it back",
        ),
    ],
)
def test_no_old_pod_goes_for_nothing(pods: list[dict[str, Any]]) -> None:
    assert of(deployment(replicas=3, updated=1), *pods).max_surge == 1


def test_what_is_counted_in_pods_can_be_lacking_too() -> None:
    crowded = "0/2 nodes are available: 1 Too many pods, 1 node(s) had untolerated taint(s)."
    new = pod("new", age=1, says=crowded)
    assert of(deployment(replicas=3, updated=1), OLD, new).max_surge == 0


def test_a_rollout_that_began_to_make_room_goes_on_so_to_its_end() -> None:
    under_way = deployment(0, updated=1, available=1)
    assert of(under_way, OLD, pod("new", age=1, node="gpu-1")).max_surge == 0
    assert gives_way(under_way)
    done = deployment(0, updated=2)
    assert of(done, pod("new", age=1, node="gpu-1")).max_surge == 1


def test_surge_insists_and_replace_never_asks() -> None:
    full = deployment(replicas=3, updated=1)
    assert of(full, OLD, NEW, strategy="Surge") == Strategy(1, 0, 600)
    assert of(None, strategy="Replace") == Strategy(0, 1, 690)
    assert of(deployment(0, updated=2), strategy="Replace", maxUnavailable=3) == Strategy(0, 3, 690)
