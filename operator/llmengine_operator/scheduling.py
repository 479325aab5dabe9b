"""Whether the scheduler would put a pod on a node, as far as choosing architectures needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmengine.api.schema import Toleration
from llmengine.api.v1alpha1 import PodDefaults
from llmengine_operator.observation import Node, Taint

# The kubelet and the node controller put these on and take them off: a node that is not ready
# for a minute keeps its architecture.
_PASSING_TAINTS = "node.kubernetes.io/"


def allows(
    node: Node,
    selector: Mapping[str, str],
    tolerations: Sequence[Toleration],
    defaults: PodDefaults,
) -> bool:
    """Whether a pod with these constraints, and its runtime's, may run on this node."""
    wanted = {**selector, **defaults.node_selector}
    if any(node.labels.get(key) != value for key, value in wanted.items()):
        return False
    accepted = [*defaults.tolerations, *tolerations]
    return all(
        any(_tolerates(toleration, taint) for toleration in accepted)
        for taint in node.taints
        if taint.effect != "PreferNoSchedule" and not taint.key.startswith(_PASSING_TAINTS)
    )


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.operator == "Exists":
        return toleration.key in (None, "", taint.key)
    return toleration.key == taint.key and (toleration.value or "") == taint.value
