"""Whether the scheduler would put a pod on a node, as far as choosing architectures needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmengine.api.schema import Toleration
from llmengine.api.v1alpha1 import Accelerator, EngineRuntimeSpec
from llmengine_operator.labels import GPU
from llmengine_operator.observation import Node, Taint

_GPU_NODES = Toleration(key=GPU, operator="Exists")


def accepted_taints(
    runtime: EngineRuntimeSpec, tolerations: Sequence[Toleration]
) -> list[Toleration]:
    """The tolerations of a pod: its runtime's, its own, and for a GPU that of GPU nodes, whose
    taint keeps off those who need none.
    """
    by_convention = [_GPU_NODES] if runtime.accelerator is Accelerator.NVIDIA else []
    return [*by_convention, *runtime.pod_defaults.tolerations, *tolerations]


def allows(
    node: Node,
    selector: Mapping[str, str],
    tolerations: Sequence[Toleration],
    runtime: EngineRuntimeSpec,
) -> bool:
    """Whether a pod with these constraints, and its runtime's, may run on this node."""
    for wanted in (selector, runtime.pod_defaults.node_selector):
        if any(node.labels.get(key) != value for key, value in wanted.items()):
            return False
    if not node.taints:
        return True
    accepted = accepted_taints(runtime, tolerations)
    return all(
        any(_tolerates(toleration, taint) for toleration in accepted)
        for taint in node.taints
        if taint.effect != "PreferNoSchedule"
    )


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.operator == "Exists":
        return toleration.key in (None, "", taint.key)
    return toleration.key == taint.key and (toleration.value or "") == taint.value
