"""Labels and annotations of the objects that the operator makes.

A label value takes 63 characters and a key has 64: labels carry a prefix, the annotation the rest.
"""

from __future__ import annotations

from enum import StrEnum

from llmengine.api.v1alpha1 import GROUP

MANAGED_BY = "app.kubernetes.io/managed-by"
OPERATOR = "llmengine-operator"
MANAGED = {MANAGED_BY: OPERATOR}


# Kueue's: its queue admits the Jobs and pods of an engine that carries it.
QUEUE = "kueue.x-k8s.io/queue-name"


class Label(StrEnum):
    ENGINE = f"{GROUP}/engine"
    ARCHITECTURE = f"{GROUP}/architecture"
    TRACK = f"{GROUP}/track"
    KEY = f"{GROUP}/key"


class GpuLabel(StrEnum):
    """What NVIDIA's GPU Feature Discovery writes on nodes."""

    MAJOR = "nvidia.com/gpu.compute.major"
    MINOR = "nvidia.com/gpu.compute.minor"
    PRODUCT = "nvidia.com/gpu.product"
    PRESENT = "nvidia.com/gpu.present"
    # Of one GPU, in MiB.
    MEMORY = "nvidia.com/gpu.memory"
    # Only where MIG has divided every GPU and the slices are offered as nvidia.com/gpu.
    SLICES = "nvidia.com/gpu.slices.gi"
    TIMESTAMP = "nvidia.com/gfd.timestamp"


# Major, minor and revision. The second set is deprecated, and all that older releases write.
DRIVER_LABELS = (
    (
        "nvidia.com/cuda.driver-version.major",
        "nvidia.com/cuda.driver-version.minor",
        "nvidia.com/cuda.driver-version.revision",
    ),
    ("nvidia.com/cuda.driver.major", "nvidia.com/cuda.driver.minor", "nvidia.com/cuda.driver.rev"),
)
# The resource, and the key of the taint that GPU nodes have by convention.
GPU = "nvidia.com/gpu"
# A GPU that time-slicing or MPS shares between pods is another product to the labels.
SHARED = "-SHARED"


class Annotation(StrEnum):
    KEY = f"{GROUP}/engine-key"
    ARCHITECTURE = f"{GROUP}/engine-architecture"
    ATTEMPT = f"{GROUP}/attempt"
    TRIES_LEFT = f"{GROUP}/tries-left"
    OPTIONS = f"{GROUP}/build-options"
    REQUEST = f"{GROUP}/requested-at"
    REQUESTED_BY = f"{GROUP}/requested-by"
    APPLIED = f"{GROUP}/applied"


def key_label(key: str) -> str:
    """The prefix of a key that serves as a label value."""
    return key[:40]
