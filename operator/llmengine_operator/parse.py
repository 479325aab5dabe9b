"""Dicts of the API server as the records of an Observation. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from llmengine.api.v1alpha1 import (
    REQUESTED_AT_ANNOTATION,
    EngineRuntimeSpec,
    LLMEngineSpec,
    LLMEngineStatus,
)
from llmengine.architecture import Architecture
from llmengine_operator.attempts import parse_time
from llmengine_operator.observation import Engine, KubeObject, Node, Runtime, Taint

_REQUEST = 253
_ARCHITECTURE_LABEL = "kubernetes.io/arch"


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
        requested_at=metadata.get("annotations", {}).get(REQUESTED_AT_ANNOTATION, "")[:_REQUEST],
    )


def parse_runtime(obj: KubeObject) -> Runtime:
    """Raises pydantic's ValidationError for a spec that this release cannot read."""
    return Runtime(obj["metadata"]["name"], EngineRuntimeSpec.model_validate(obj["spec"]))


def parse_nodes(objects: Iterable[KubeObject]) -> tuple[Node, ...]:
    """Nodes of a known CPU architecture; others cannot run anything of ours."""
    nodes = []
    for obj in objects:
        labels = obj["metadata"].get("labels", {})
        if labels.get(_ARCHITECTURE_LABEL) not in ("amd64", "arm64"):
            continue
        taints = tuple(
            Taint(taint["key"], taint.get("value", ""), taint["effect"])
            for taint in obj["spec"].get("taints", [])
        )
        architecture = Architecture(cpu=labels[_ARCHITECTURE_LABEL])
        nodes.append(Node(obj["metadata"]["name"], architecture, labels, taints))
    return tuple(nodes)
