"""How a Deployment's new pods take the place of old ones, so that no rollout waits for ever. Pure.

A pod more needs room for a pod more. On a cluster whose GPUs are all taken there is none, and a
rollout that insists on it never ends: the new pod waits for what the old one holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmengine.api.v1alpha1 import RolloutOptions, RolloutStrategy
from llmengine_operator.observation import KubeObject, Node
from llmengine_operator.pods import unscheduled

_TEMPLATE = "pod-template-hash"
# "0/3 nodes are available: 1 Insufficient cpu, 2 Insufficient nvidia.com/gpu. preemption: ..."
_LACKING = re.compile(r"Insufficient ([\w./-]*\w)")
_NO_SLOT = "Too many pods"


@dataclass(frozen=True)
class Strategy:
    """Of a Deployment: numbers of pods, or shares such as 25%; the deadline in seconds, and those
    that a new pod has to be ready for before it counts.
    """

    max_surge: int | str
    max_unavailable: int | str
    progress_deadline_seconds: int
    min_ready_seconds: int = 0


def strategy(
    options: RolloutOptions,
    deployment: KubeObject | None,
    pods: Sequence[KubeObject],
    nodes: Sequence[Node],
    *,
    grace_seconds: int,
    min_ready_seconds: int = 0,
) -> Strategy:
    """`deployment` as it stands, and its `pods`, which may take `grace_seconds` to end."""
    deadline = options.progress_deadline_seconds
    gap = options.max_unavailable
    if _gives_way(options.strategy, deployment, pods, nodes):
        # Who wants no pod to be missing does not want a standstill instead. And a new pod that
        # waits for the generations of an old one is not stalled.
        missing = 1 if gap in (None, 0, "0%") else gap
        return Strategy(0, missing, deadline + grace_seconds, min_ready_seconds)
    surge = 1 if options.max_surge is None else options.max_surge
    return Strategy(surge, gap or 0, deadline, min_ready_seconds)


def gives_way(deployment: KubeObject) -> bool:
    """Whether its old pods make room before new ones come."""
    surge = deployment["spec"].get("strategy", {}).get("rollingUpdate", {}).get("maxSurge")
    return surge in (0, "0%")


def rolled_out(deployment: KubeObject, counted: str = "availableReplicas") -> bool:
    """Whether all wanted pods are of the newest template and available, and no others are left.

    `counted` is `readyReplicas` where a pod need not prove itself, since it replaces none.
    """
    wanted, status = deployment["spec"].get("replicas", 1), deployment.get("status", {})
    return bool(
        status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
        and status.get("updatedReplicas", 0) == wanted
        and status.get("replicas", 0) == wanted
        and status.get(counted, 0) == wanted
    )


def moved(deployment: KubeObject) -> bool:
    """Whether no pod of an older template is left, and a newer one has proved itself.

    It may still lack pods, such as those that an autoscaler wants and no node has room for.
    """
    wanted, status = deployment["spec"].get("replicas", 1), deployment.get("status", {})
    return bool(
        status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
        and status.get("updatedReplicas", 0) == status.get("replicas", 0)
        and status.get("availableReplicas", 0) >= min(1, wanted)
    )


def _gives_way(
    wanted: RolloutStrategy,
    deployment: KubeObject | None,
    pods: Sequence[KubeObject],
    nodes: Sequence[Node],
) -> bool:
    if wanted is not RolloutStrategy.AUTO:
        return wanted is RolloutStrategy.REPLACE
    if deployment is None or rolled_out(deployment):
        return False
    # To the end of the rollout: else each next pod would run into the same wall first.
    return gives_way(deployment) or _old_hold_what_new_lack(pods, nodes)


def _old_hold_what_new_lack(pods: Sequence[KubeObject], nodes: Sequence[Node]) -> bool:
    """Whether an old pod's end may let a new one be scheduled.

    Not so where a new pod fits no node for another reason, such as a selector that nothing has:
    there the old pods would go for nothing.
    """
    return any(
        (lacking := _lacking(unscheduled(new)))
        and any(
            _template(old) != _template(new)
            # A second is all that tells them apart; in the same one, which is old does not matter.
            and old["metadata"]["creationTimestamp"] <= new["metadata"]["creationTimestamp"]
            and "deletionTimestamp" not in old["metadata"]
            and lacking & _held(old)
            and _fits(new, old["spec"].get("nodeName", ""), nodes)
            for old in pods
        )
        for new in pods
    )


def _template(pod: KubeObject) -> str:
    return str(pod["metadata"].get("labels", {}).get(_TEMPLATE, ""))


def _lacking(sentence: str) -> set[str]:
    """Resources that the scheduler says no node has enough of."""
    return set(_LACKING.findall(sentence)) | ({"pods"} if _NO_SLOT in sentence else set())


def _held(pod: KubeObject) -> set[str]:
    """Resources that a pod on a node takes from it."""
    asked: set[str] = {"pods"}
    for container in (*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]):
        asked |= container.get("resources", {}).get("requests", {}).keys()
    return asked


def _fits(pod: KubeObject, name: str, nodes: Iterable[Node]) -> bool:
    """Whether the pod's nodeSelector and required affinity allow the node."""
    labels = next((node.labels for node in nodes if node.name == name), None)
    if labels is None:
        return False
    spec = pod["spec"]
    affinity = spec.get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get(
        "nodeSelectorTerms", [{}]
    )
    selected = spec.get("nodeSelector", {}).items() <= labels.items()
    return selected and any(
        all(_holds(condition, labels) for condition in term.get("matchExpressions", []))
        for term in terms
    )


def _holds(condition: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """One expression of a node affinity, as the scheduler reads it: a label that is not there is
    not in a set, and no number.
    """
    value, values = labels.get(condition["key"]), condition.get("values", [])
    match condition["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case operator:
            if value is None or not value.lstrip("-").isdigit():
                return False
            return int(value) > int(values[0]) if operator == "Gt" else int(value) < int(values[0])
