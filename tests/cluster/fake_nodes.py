"""Nodes without a machine, played by kwok: pods on them are ready, and Jobs complete, at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.cluster.api import Api
from tests.cluster.waiting import wait_for

ANNOTATION = "fake.llmengine.io"
MANUAL = "manual-"  # conf/kwok-stages.yaml knows such nodes by the beginning of their names
TAINT = {"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}
_ALLOCATABLE = {"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "1Ti"}


def add(
    api: Api,
    count: int,
    *,
    prefix: str = "fake",
    labels: Mapping[str, str] | None = None,
    allocatable: Mapping[str, str] | None = None,
    taint: bool = False,
    taints: Sequence[Mapping[str, str]] = (),
    manual: bool = False,
) -> list[str]:
    """Adds nodes PREFIX-0, PREFIX-1, ... (after those that exist), and waits until they are Ready.

    `allocatable` is added to 32 CPUs, 256 GiB of memory and 110 pods. `taint` keeps ordinary pods
    off, and `taints` are more of them. On `manual` nodes, whose names begin with manual-, a Job's
    pod runs until end_pod().
    """
    prefix = f"{MANUAL}{prefix}" if manual else prefix
    taken = {node["metadata"]["name"] for node in api.items("/api/v1/nodes")}
    free = (name for number in range(10**6) if (name := f"{prefix}-{number}") not in taken)
    names = [name for name, _ in zip(free, range(count), strict=False)]
    for name in names:
        api.request(
            "POST",
            "/api/v1/nodes",
            _node(name, labels, allocatable, [*taints, *([TAINT] if taint else [])]),
        )
    wait_for(
        lambda: not (set(names) - _ready(api)),
        30,
        lambda: f"fake nodes to be Ready: {', '.join(sorted(set(names) - _ready(api)))}",
    )
    return names


def end_pod(
    api: Api, namespace: str, name: str, *, exit_code: int = 0, reason: str = "", message: str = ""
) -> None:
    """Ends a Job's pod on a manual node; `message` becomes its termination message."""
    values = {"exit-code": str(exit_code), "reason": reason, "message": message}
    annotations = {f"{ANNOTATION}/{key}": value for key, value in values.items() if value}
    patch = {"metadata": {"annotations": annotations}}
    api.merge(f"/api/v1/namespaces/{namespace}/pods/{name}", patch)


def _node(
    name: str,
    labels: Mapping[str, str] | None,
    allocatable: Mapping[str, str] | None,
    taints: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    architecture = {"kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"}
    resources = {**_ALLOCATABLE, **(allocatable or {})}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake", "node.alpha.kubernetes.io/ttl": "0"},
            "labels": {"kubernetes.io/hostname": name, **architecture, **(labels or {})},
        },
        "spec": {"taints": list(taints)},
        "status": {"allocatable": resources, "capacity": resources},
    }


def _ready(api: Api) -> set[str]:
    return {
        node["metadata"]["name"]
        for node in api.items("/api/v1/nodes")
        for condition in node.get("status", {}).get("conditions", [])
        if condition["type"] == "Ready" and condition["status"] == "True"
    }
