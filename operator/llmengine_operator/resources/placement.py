"""On which nodes a pod of one architecture runs. Depends on no node: a new one must roll no pod."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmengine.api.v1alpha1 import EngineRuntimeSpec
from llmengine.architecture import Architecture
from llmengine.quantity import MIB
from llmengine_operator.labels import DRIVER_LABELS, SHARED, GpuLabel

_HOST = "kubernetes.io/arch"


def place(
    runtime: EngineRuntimeSpec,
    architecture: Architecture,
    selector: Mapping[str, str],
    gpu_memory: int = 0,
) -> dict[str, Any]:
    """`nodeSelector` of a pod, and for GPUs its `affinity`.

    `gpu_memory`: bytes that the GPU must have, as far as labels tell.
    """
    if architecture.compute_capability is None:
        return {"nodeSelector": {**selector, _HOST: architecture.cpu}}
    major, minor = map(str, architecture.compute_capability)
    numbers = {GpuLabel.MAJOR.value: major, GpuLabel.MINOR.value: minor}
    whole: list[dict[str, Any]] = [{"key": GpuLabel.SLICES.value, "operator": "DoesNotExist"}]
    if architecture.device is None:
        # An engine is tied to the host's CPU too, which a device's name implies.
        numbers[_HOST] = "amd64"
    else:
        products = [architecture.device, architecture.device + SHARED]
        whole += [{"key": GpuLabel.PRODUCT.value, "operator": "In", "values": products}]
    # A device's name implies its memory.
    sizes = _large_enough(0 if architecture.device else gpu_memory)
    terms = [
        {"matchExpressions": [*whole, *driver, *size]}
        for driver in _new_enough(runtime.driver)
        for size in sizes
    ]
    required = {"nodeSelectorTerms": terms}
    return {
        "nodeSelector": {**selector, **numbers},
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}},
    }


def _new_enough(driver: tuple[int, int, int] | None) -> list[list[dict[str, Any]]]:
    """Alternatives of which one holds for a node whose driver is this one or newer.

    Labels are compared as numbers (Gt and Lt are all that there is): 535.104.05 has revision 5.
    """
    if driver is None:
        return [[]]
    major, minor, revision = driver
    found = []
    for of_major, of_minor, of_revision in DRIVER_LABELS:
        same_major = _exactly(of_major, major)
        found += [
            [_above(of_major, major)],
            [*same_major, _above(of_minor, minor if revision else minor - 1)],
        ]
        if revision:
            same_minor = _exactly(of_minor, minor)
            found.append([*same_major, *same_minor, _above(of_revision, revision - 1)])
    return found


def _large_enough(needed: int) -> list[list[dict[str, Any]]]:
    """Alternatives of which one holds for a node whose GPUs have so many bytes, or do not say."""
    if not needed:
        return [[]]
    unlabelled = {"key": GpuLabel.MEMORY.value, "operator": "DoesNotExist"}
    return [[_above(GpuLabel.MEMORY.value, -(-needed // MIB) - 1)], [unlabelled]]


def _above(label: str, number: int) -> dict[str, Any]:
    return {"key": label, "operator": "Gt", "values": [str(number)]}


def _exactly(label: str, number: int) -> list[dict[str, Any]]:
    below = {"key": label, "operator": "Lt", "values": [str(number + 1)]}
    return [_above(label, number - 1), below]
