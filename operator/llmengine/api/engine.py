"""What a user asks for with an LLMEngine; `serving` has the part about its pods.

Everything in `spec.engine` goes into the engine key; nothing in `spec.build` and `spec.serving`
does.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from llmengine.api.schema import (
    SET,
    ApiModel,
    Name,
    NodeSelector,
    Quantity,
    Resources,
    Toleration,
    cel,
    matching,
    rules,
    sentence,
)
from llmengine.api.serving import ServingOptions

ArchitectureName = Annotated[
    str,
    StringConstraints(max_length=110),
    Field(
        json_schema_extra=matching(
            "^(amd64|arm64|sm_[1-9][0-9]{1,2}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,99})?)$",
            "not an architecture: write amd64, arm64, sm_90 or sm_90/DEVICE, such as"
            " sm_90/NVIDIA-H100-80GB-HBM3",
        )
    ),
]


class DType(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class WeightQuantization(StrEnum):
    NONE = "none"
    INT8 = "int8"
    INT4 = "int4"
    FP8 = "fp8"


class CacheQuantization(StrEnum):
    NONE = "none"
    INT8 = "int8"
    FP8 = "fp8"


class Portability(StrEnum):
    DEVICE = "Device"
    COMPUTE_CAPABILITY = "ComputeCapability"


_HF_NAME = "[A-Za-z0-9][A-Za-z0-9_.-]*"
_PATH = "(/[A-Za-z0-9_][A-Za-z0-9_.=-]*)"


def _uri_form(scheme: str, rest: str, form: str) -> dict[str, str]:
    return cel(
        f"!has(self.uri) || !self.uri.startsWith('{scheme}://')"
        f" || self.uri.matches(r'^{scheme}://{rest}$')",
        f"='must be {form} (got \"' + self.uri + '\")'",
        field="uri",
    )


class ModelSource(ApiModel):
    """Where the weights come from. The same uri and revision always mean the same bytes."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!has(self.uri) || self.uri.matches('^(hf|s3|pvc)://')",
                "='must begin with hf://, s3:// or pvc:// (got \"' + self.uri + '\")'",
                field="uri",
            ),
            _uri_form("hf", f"{_HF_NAME}/{_HF_NAME}", "hf://OWNER/NAME"),
            _uri_form(
                "s3",
                f"[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9]{_PATH}+",
                "s3://BUCKET/PATH, with letters, digits and _.=- between the slashes and no slash"
                " at the end",
            ),
            _uri_form(
                "pvc",
                f"[a-z0-9]([-a-z0-9.]*[a-z0-9])?{_PATH}*",
                "pvc://CLAIM or pvc://CLAIM/PATH, with letters, digits and _.=- between the"
                " slashes and no slash at the end",
            ),
            cel(
                "!has(self.uri) || !has(self.revision) || !self.uri.startsWith('hf://')"
                " || self.revision.matches('^[0-9a-f]{40}$')",
                "='must be a 40-character commit for hf:// (got \"' + self.revision + '\"),"
                " because branches and tags move; this prints it: git ls-remote"
                " https://huggingface.co/' + self.uri.substring(5) + ' ' + self.revision",
                field="revision",
            ),
            cel(
                "!has(self.revision) || has(self.uri) && self.uri.startsWith('hf://')"
                " || self.revision.matches('^[!-~]+$')",
                "='must be one word without spaces, such as v1 (got \"' + self.revision + '\")'",
                field="revision",
            ),
            cel(
                "!has(self.uri) || !has(self.secretName) || !self.uri.startsWith('pvc://')",
                "a pvc:// model is read from its volume, without credentials: remove secretName",
                field="secretName",
                reason="FieldValueForbidden",
            ),
        )
    )

    uri: Annotated[str, StringConstraints(max_length=512)] = Field(
        description="hf://OWNER/NAME, s3://BUCKET/PATH or pvc://CLAIM/PATH.",
        json_schema_extra=sentence(
            "say where the model is: hf://OWNER/NAME, s3://BUCKET/PATH or pvc://CLAIM/PATH"
        ),
    )
    revision: Annotated[str, StringConstraints(max_length=253)] = Field(
        description="For hf:// a 40-character commit; else a name that you promise never moves.",
        json_schema_extra=sentence(
            "for hf:// give a 40-character commit; for s3:// and pvc:// a name of your choice that"
            " you change whenever the files change, such as v1"
        ),
    )
    secret_name: Name | None = Field(
        default=None,
        description="A Secret in the same namespace with HF_TOKEN, or with AWS_ACCESS_KEY_ID and"
        " AWS_SECRET_ACCESS_KEY. An engine of a model with a secret is shared within its"
        " namespace only.",
    )


class Quantization(ApiModel):
    """Number formats below the engine's dtype."""

    weights: WeightQuantization = Field(
        default=WeightQuantization.NONE, description="Format of the matrix weights."
    )
    kv_cache: CacheQuantization = Field(
        default=CacheQuantization.NONE, description="Format of the KV cache."
    )


class EngineOptions(ApiModel):
    """How the model is compiled. Every field is part of the engine key."""

    dtype: DType = Field(
        default=DType.AUTO,
        description="Number format of weights and activations. auto: float32 on a CPU, bfloat16"
        " on GPUs of compute capability 8.0 and up, else float16.",
    )
    quantization: Quantization = Field(default_factory=Quantization)
    max_batch_size: int = Field(
        default=8, ge=1, le=256, description="Slots: sequences that generate at the same time."
    )
    max_sequence_length: int = Field(
        default=4096, ge=16, le=1048576, description="Prompt plus generated tokens of a sequence."
    )
    max_batch_tokens: int = Field(
        default=512, ge=1, le=16384, description="Prompt tokens that one prefill step takes."
    )
    portability: Portability = Field(
        default=Portability.DEVICE,
        description="Device: one engine for each GPU model. ComputeCapability: one engine for"
        " all GPUs of a compute capability, slower on some.",
    )


class Scratch(ApiModel):
    """Disk of the build pod, for the model and intermediate files."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!has(self.storageClassName) || has(self.size)",
                "a disk from a StorageClass needs a size, such as 60Gi",
                field="size",
                reason="FieldValueRequired",
            )
        )
    )

    size: Quantity | None = Field(
        default=None, description="Size of the scratch disk, such as 60Gi. Unset: no limit is set."
    )
    storage_class_name: Name | None = Field(
        default=None,
        description="Take the scratch disk from this StorageClass (a generic ephemeral volume)"
        " and not from the node's own disk. Needs size.",
    )


class BuildOptions(ApiModel):
    """How the build Job runs. Nothing here changes the engine."""

    attempts: int = Field(
        default=3, ge=1, le=10, description="Tries before a failing build is given up."
    )
    active_deadline_seconds: int = Field(
        default=7200,
        ge=60,
        le=604800,
        description="Seconds that a build pod may run, counted from its start on the node.",
    )
    resources: Resources | None = Field(
        default=None,
        description="Requests and limits of the build container. Unset: those of the runtime.",
    )
    scratch: Scratch | None = None
    node_selector: NodeSelector = Field(
        default_factory=dict, description="Labels of the nodes that may build."
    )
    tolerations: list[Toleration] = Field(
        default_factory=list, max_length=32, description="Taints that build pods tolerate."
    )
    priority_class_name: Name | None = Field(
        default=None, description="PriorityClass of build pods."
    )


class LLMEngineSpec(ApiModel):
    """What a user asks for."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!has(self.architectures) || self.engine.portability != 'Device'"
                " || !self.architectures.exists(a, a.matches('^sm_[1-9][0-9]{1,2}$'))",
                "with engine.portability Device, which is the default, a GPU is named with its"
                " device, such as sm_90/NVIDIA-H100-80GB-HBM3",
                field="architectures",
            ),
            cel(
                "!has(self.architectures) || self.engine.portability != 'ComputeCapability'"
                " || self.architectures.all(a, !a.contains('/'))",
                "with engine.portability ComputeCapability an engine is for every GPU of a compute"
                " capability: name it without a device, such as sm_90",
                field="architectures",
            ),
        )
    )

    runtime: Name = Field(
        description="Name of the EngineRuntime that builds and serves.",
        json_schema_extra=sentence(
            'name an EngineRuntime; "kubectl get engineruntimes" lists those of this cluster'
        ),
    )
    model: ModelSource = Field(json_schema_extra=sentence("give spec.model.uri and revision"))
    engine: EngineOptions = Field(default_factory=EngineOptions)
    architectures: list[ArchitectureName] | None = Field(
        default=None,
        min_length=1,
        max_length=32,
        description="Architectures that must be served, such as amd64. Unset: those of the"
        " cluster's nodes.",
        json_schema_extra=SET,
    )
    build: BuildOptions = Field(default_factory=BuildOptions)
    serving: ServingOptions = Field(default_factory=ServingOptions)
    suspend: bool = Field(
        default=False, description="Stop reconciling. What serves goes on serving."
    )
