"""LLMEngine and EngineRuntime, group llmengine.io/v1alpha1: the models and their names."""

from __future__ import annotations

from llmengine.api.engine import (
    ArchitectureName,
    BuildOptions,
    CacheQuantization,
    DType,
    EngineOptions,
    LLMEngineSpec,
    ModelSource,
    Portability,
    Quantization,
    Scratch,
    WeightQuantization,
)
from llmengine.api.runtime import (
    Accelerator,
    BackendName,
    EngineRuntimeSpec,
    EnvVar,
    Image,
    PodDefaults,
)
from llmengine.api.serving import (
    Autoscaling,
    RolloutOptions,
    RolloutStrategy,
    ServingOptions,
)
from llmengine.api.status import (
    EngineState,
    EngineStatus,
    LLMEngineStatus,
    Progress,
    ReplacedStatus,
    ServingStatus,
    SkippedNodes,
    Summary,
)

__all__ = [
    "API_VERSION",
    "GROUP",
    "REQUESTED_AT_ANNOTATION",
    "SCHEMA_REVISION",
    "SCHEMA_REVISION_ANNOTATION",
    "VERSION",
    "Accelerator",
    "ArchitectureName",
    "Autoscaling",
    "BackendName",
    "BuildOptions",
    "CacheQuantization",
    "DType",
    "EngineOptions",
    "EngineRuntimeSpec",
    "EngineState",
    "EngineStatus",
    "EnvVar",
    "Image",
    "LLMEngineSpec",
    "LLMEngineStatus",
    "ModelSource",
    "PodDefaults",
    "Portability",
    "Progress",
    "Quantization",
    "ReplacedStatus",
    "RolloutOptions",
    "RolloutStrategy",
    "Scratch",
    "ServingOptions",
    "ServingStatus",
    "SkippedNodes",
    "Summary",
    "WeightQuantization",
]

GROUP = "llmengine.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

# Raised whenever a CRD changes in a way that the operator depends on; the operator compares it
# with the annotation on the installed CRD and refuses to run on an older one.
SCHEMA_REVISION = 4
SCHEMA_REVISION_ANNOTATION = f"{GROUP}/schema-revision"
REQUESTED_AT_ANNOTATION = f"{GROUP}/requested-at"
