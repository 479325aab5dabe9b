"""Nodes with GPUs that belong to one stage, labelled as GPU Feature Discovery would."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from llmengine_operator.kinds import NODE, POD
from tests.cluster.api import ApiError
from tests.contract.operator.stage import Stage

H100 = "NVIDIA-H100-80GB-HBM3"
H100_PCIE = "NVIDIA-H100-PCIe"
L4 = "NVIDIA-L4"
A10 = "NVIDIA-A10"
T4 = "Tesla-T4"
_CAPABILITIES = {H100: "9.0", H100_PCIE: "9.0", L4: "8.9", A10: "8.6", T4: "7.5"}
# More than one, so that a rollout finds room for its new pods.
_GPUS = {"nvidia.com/gpu": "8"}
_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
_POOL = "example.com/stage"


def architecture(product: str) -> str:
    return f"sm_{_CAPABILITIES[product].replace('.', '')}/{product}"


def labels_of(product: str, driver: str = "550.54.15") -> dict[str, str]:
    """What GPU Feature Discovery says of a product; a slice or a shared GPU is one of its own."""
    bare = product.partition("-MIG-")[0].removesuffix("-SHARED")
    major, minor = _CAPABILITIES[bare].split(".")
    labels = {
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.compute.major": major,
        "nvidia.com/gpu.compute.minor": minor,
        **dict(
            zip(
                (f"nvidia.com/cuda.driver-version.{p}" for p in ("major", "minor", "revision")),
                driver.split("."),
                strict=True,
            )
        ),
    }
    return {**labels, "nvidia.com/gpu.slices.gi": "1"} if "-MIG-" in product else labels


@dataclass
class GpuPool:
    """The nodes of a stage, and its runtime, which runs on no others."""

    stage: Stage
    names: list[str] = field(default_factory=list)

    @property
    def selector(self) -> dict[str, str]:
        """The label that all nodes of the pool have, and others have not."""
        return {_POOL: self.stage.team}

    def make_runtime(self, **spec: Any) -> None:
        """The stage's runtime, which was one for CPUs, for the GPUs of this pool."""
        self.stage.remove_runtime()
        gpu = {"backend": "tensorrt", "version": "10.6.0", "accelerator": "nvidia"}
        defaults = {"nodeSelector": self.selector}
        self.stage.set_image("v1", **{**gpu, "podDefaults": defaults, **spec})

    def add(
        self,
        product: str,
        *,
        labels: Mapping[str, str] | None = None,
        driver: str = "550.54.15",
        memory: int = 0,
        allocatable: Mapping[str, str] | None = None,
    ) -> str:
        """A node; `labels` in place of those that its product has. Returns its name.

        `memory`: MiB of each GPU, where the node tells.
        """
        known = labels_of(product, driver) if labels is None else labels
        if memory:
            known = {**known, "nvidia.com/gpu.memory": str(memory)}
        (name,) = self.stage.cluster.fake_nodes(
            1,
            manual=True,
            prefix=f"{self.stage.team}-gpu",
            labels={**known, **self.selector},
            allocatable=_GPUS if allocatable is None else allocatable,
            taints=[_TAINT],
        )
        self.names.append(name)
        return name

    def label(self, name: str, labels: Mapping[str, str | None]) -> None:
        """Change labels of a node; None takes one away."""
        self.stage.api.merge(NODE.path(None, name), {"metadata": {"labels": dict(labels)}})

    def turn_into(self, name: str, product: str) -> None:
        """The node's labels are corrected."""
        gone = {"nvidia.com/gpu.slices.gi": None}
        self.label(name, {**gone, **labels_of(product)})

    def remove(self, name: str) -> None:
        """A node goes, and with it its pods, as a cloud's controller sees to."""
        self.names.remove(name)
        self.stage.remove(NODE, name, namespace=None)
        for space in self.stage.spaces.values():
            for pod in self.stage.items(POD, space):
                if pod["spec"].get("nodeName") == name:
                    path = POD.path(space, pod["metadata"]["name"])
                    with suppress(ApiError):
                        self.stage.api.request("DELETE", path, {"gracePeriodSeconds": 0})

    def close(self) -> None:
        for name in list(self.names):
            self.stage.remove(NODE, name, namespace=None)
