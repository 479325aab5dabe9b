"""Dicts of the API server as the records of an Observation. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmengine.api.v1alpha1 import (
    REQUESTED_AT_ANNOTATION,
    EngineRuntimeSpec,
    LLMEngineSpec,
    LLMEngineStatus,
)
from llmengine.architecture import Architecture, device_name
from llmengine.quantity import MIB
from llmengine_operator.attempts import parse_time
from llmengine_operator.labels import DRIVER_LABELS, GPU, QUEUE, GpuLabel
from llmengine_operator.observation import Engine, Gpu, KubeObject, Node, Runtime, Taint

_REQUEST = 253
# The kubelet and the node controller put these on and take them off: a node that is not ready
# for a minute keeps its architecture.
_PASSING_TAINTS = "node.kubernetes.io/"
_ARCHITECTURE_LABEL = "kubernetes.io/arch"
_SLICE = "nvidia.com/mig-"


def parse_engine(obj: KubeObject) -> Engine:
    """Raises pydantic's ValidationError for a spec that this release cannot read."""
    metadata = obj["metadata"]
    return Engine(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        created=parse_time(metadata["creationTimestamp"]),
        spec=LLMEngineSpec.model_validate(obj["spec"]),
        status=LLMEngineStatus.model_validate(obj.get("status", {})),
        # An annotation takes any length, the status that echoes it does not.
        queue=metadata.get("labels", {}).get(QUEUE, ""),
        requested_at=metadata.get("annotations", {}).get(REQUESTED_AT_ANNOTATION, "")[:_REQUEST],
    )


def parse_runtime(obj: KubeObject) -> Runtime:
    """Raises pydantic's ValidationError for a spec that this release cannot read."""
    return Runtime(obj["metadata"]["name"], EngineRuntimeSpec.model_validate(obj["spec"]))


def parse_nodes(objects: Iterable[KubeObject]) -> tuple[Node, ...]:
    """Nodes of a known CPU architecture; others cannot run anything of ours."""
    return tuple(node for obj in objects if (node := parse_node(obj)) is not None)


def parse_node(obj: KubeObject) -> Node | None:
    """A node, without what changes often and concerns nobody; None where nothing of ours runs."""
    metadata = obj["metadata"]
    labels = {k: v for k, v in metadata.get("labels", {}).items() if k != GpuLabel.TIMESTAMP}
    if labels.get(_ARCHITECTURE_LABEL) not in ("amd64", "arm64"):
        return None
    allocatable: Mapping[str, str] = obj.get("status", {}).get("allocatable", {})
    gpu = _gpu(labels, allocatable)
    return Node(
        name=metadata["name"],
        architecture=Architecture(cpu=labels[_ARCHITECTURE_LABEL]),
        labels=labels,
        created=parse_time(metadata["creationTimestamp"]),
        taints=tuple(
            Taint(taint["key"], taint.get("value", ""), taint["effect"])
            for taint in obj.get("spec", {}).get("taints", [])
            if not taint["key"].startswith(_PASSING_TAINTS)
        ),
        gpu=gpu,
        # A plugin that is started again offers nothing for some seconds.
        offers_gpus=gpu is not None
        or labels.get(GpuLabel.PRESENT) == "true"
        or any(name == GPU or name.startswith(_SLICE) for name in _offered(allocatable)),
    )


def _offered(allocatable: Mapping[str, str]) -> list[str]:
    """A kubelet goes on listing resources that there are none of any more."""
    return sorted(name for name, amount in allocatable.items() if amount != "0")


def _gpu(labels: Mapping[str, str], allocatable: Mapping[str, str]) -> Gpu | None:
    """None unless the labels say all that an architecture needs."""
    product = labels.get(GpuLabel.PRODUCT, "")
    numbers = labels.get(GpuLabel.MAJOR, ""), labels.get(GpuLabel.MINOR, "")
    if not product or not all(text.isdecimal() for text in numbers):
        return None
    memory = labels.get(GpuLabel.MEMORY, "")
    return Gpu(
        compute_capability=(int(numbers[0]), int(numbers[1])),
        device=device_name(product),
        driver=_driver(labels),
        slices=_slices(product, labels, allocatable),
        memory_bytes=int(memory) * MIB if memory.isdecimal() else 0,
    )


def _driver(labels: Mapping[str, str]) -> tuple[int, int, int] | None:
    for names in DRIVER_LABELS:
        major, minor, revision = (labels.get(name, "") for name in names)
        if major.isdecimal() and minor.isdecimal():
            return int(major), int(minor), int(revision) if revision.isdecimal() else 0
    return None


def _slices(product: str, labels: Mapping[str, str], allocatable: Mapping[str, str]) -> str:
    """By MIG's strategy `single`, a slice is the product; by `mixed`, slices are other resources,
    and whole GPUs, if any are left, are offered beside them.
    """
    if GpuLabel.SLICES in labels or "-MIG-" in product:
        return product.partition("-MIG-")[2] or "MIG"
    offered = _offered(allocatable)
    slices = [name.removeprefix(_SLICE) for name in offered if name.startswith(_SLICE)]
    return "" if GPU in offered else ", ".join(slices)
