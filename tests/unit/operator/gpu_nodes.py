"""Nodes with GPUs, as the API server has them once GPU Feature Discovery has labelled them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from llmengine_operator.observation import Node
from llmengine_operator.parse import parse_node
from tests.unit.operator.world import NOW, seconds

H100 = "NVIDIA-H100-80GB-HBM3"
H100_PCIE = "NVIDIA-H100-PCIe"
L4 = "NVIDIA-L4"
A10 = "NVIDIA-A10"
T4 = "Tesla-T4"
CAPABILITIES = {H100: "9.0", H100_PCIE: "9.0", L4: "8.9", A10: "8.6", T4: "7.5"}
OLD = NOW - seconds(3600)


def labels_of(
    product: str, *, capability: str = "", driver: str = "550.54.15", memory: int = 0
) -> dict[str, str]:
    """What GPU Feature Discovery says of a whole GPU; of its `memory` in MiB only where given."""
    bare = product.partition("-MIG-")[0].removesuffix("-SHARED")
    major, minor = (capability or CAPABILITIES[bare]).split(".")
    version = dict(zip(("major", "minor", "revision"), driver.split("."), strict=True))
    return {
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.compute.major": major,
        "nvidia.com/gpu.compute.minor": minor,
        "nvidia.com/gpu.count": "1",
        **({"nvidia.com/gpu.memory": str(memory)} if memory else {}),
        **{f"nvidia.com/cuda.driver-version.{part}": text for part, text in version.items()},
    }


def node_object(
    name: str,
    labels: dict[str, str],
    *,
    created: datetime = OLD,
    allocatable: dict[str, str] | None = None,
    taints: Any = (),
    arch: str = "amd64",
) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "creationTimestamp": created.isoformat(),
            "labels": {"kubernetes.io/arch": arch, **labels},
        },
        "spec": {"taints": list(taints)},
        "status": {"allocatable": {"nvidia.com/gpu": "1"} if allocatable is None else allocatable},
    }


def gpu_node(name: str, product: str, **more: Any) -> Node:
    """A node of a product; `labels` are added, an empty value takes one away."""
    extra = more.pop("labels", {})
    known = {key: more.pop(key) for key in ("capability", "driver", "memory") if key in more}
    labels = {**labels_of(product, **known), **extra}
    node = parse_node(node_object(name, {k: v for k, v in labels.items() if v}, **more))
    assert node is not None
    return node
