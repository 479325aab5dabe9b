"""LLMEngine and EngineRuntime, group llmengine.io/v1alpha1.

Everything in `spec.engine` goes into the engine key; nothing in `spec.build` and `spec.serving`
does.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from llmengine.api.schema import (
    ApiModel,
    Condition,
    LabelValue,
    Name,
    Quantity,
    Resources,
    Text,
    Toleration,
    cel,
    rules,
    sentence,
)

GROUP = "llmengine.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

# Raised whenever a CRD changes in a way that the operator depends on; the operator compares it
# with the annotation on the installed CRD and refuses to run on an older one.
SCHEMA_REVISION = 1
SCHEMA_REVISION_ANNOTATION = f"{GROUP}/schema-revision"
REQUESTED_AT_ANNOTATION = f"{GROUP}/requested-at"

Architecture = Annotated[
    str,
    StringConstraints(
        max_length=110,
        pattern=r"^(amd64|arm64|sm_[0-9]{2,3}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,99})?)$",
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


class BackendName(StrEnum):
    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    TENSORRTLLM = "tensorrtllm"


class Accelerator(StrEnum):
    CPU = "cpu"
    NVIDIA = "nvidia"


_HF_NAME = "[A-Za-z0-9][A-Za-z0-9_.-]*"
_PATH = "(/[A-Za-z0-9_][A-Za-z0-9_.=-]*)"


class ModelSource(ApiModel):
    """Where the weights come from. The same (uri, revision) always means the same bytes."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!has(self.uri) || self.uri.matches('^(hf|s3|pvc)://')",
                "='spec.model.uri must begin with hf://, s3:// or pvc:// (got \"'"
                " + self.uri + '\")'",
            ),
            cel(
                "!has(self.uri) || !self.uri.startsWith('hf://')"
                f" || self.uri.matches('^hf://{_HF_NAME}/{_HF_NAME}$')",
                "='spec.model.uri must be hf://OWNER/NAME (got \"' + self.uri + '\")'",
            ),
            cel(
                "!has(self.uri) || !self.uri.startsWith('s3://')"
                f" || self.uri.matches('^s3://[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9]{_PATH}+$')",
                "='spec.model.uri must be s3://BUCKET/PATH, without a trailing slash (got \"'"
                " + self.uri + '\")'",
            ),
            cel(
                "!has(self.uri) || !self.uri.startsWith('pvc://')"
                f" || self.uri.matches('^pvc://[a-z0-9][a-z0-9.-]*{_PATH}*$')",
                "='spec.model.uri must be pvc://CLAIM/PATH, without a trailing slash (got \"'"
                " + self.uri + '\")'",
            ),
            cel(
                "!has(self.uri) || !has(self.revision) || !self.uri.startsWith('hf://')"
                " || self.revision.matches('^[0-9a-f]{40}$')",
                "='spec.model.revision must be a 40-character commit for hf:// (got \"'"
                " + self.revision + '\"): a branch or tag moves. Take the commit of that branch,"
                " e.g. with git ls-remote'",
            ),
            cel(
                "!has(self.uri) || !has(self.secretName) || !self.uri.startsWith('pvc://')",
                "spec.model.secretName has no meaning for pvc://: remove it",
            ),
        )
    )

    uri: Annotated[str, StringConstraints(min_length=1, max_length=512)] = Field(
        description="hf://OWNER/NAME, s3://BUCKET/PATH or pvc://CLAIM/PATH.",
        json_schema_extra=sentence(
            "spec.model.uri is missing: say where the model is, as hf://OWNER/NAME,"
            " s3://BUCKET/PATH or pvc://CLAIM/PATH"
        ),
    )
    revision: Annotated[str, StringConstraints(min_length=1, max_length=253)] = Field(
        description="For hf:// a 40-character commit; else a name that you promise never moves.",
        json_schema_extra=sentence(
            "spec.model.revision is missing: for hf:// give a 40-character commit, for s3:// and"
            " pvc:// a name of your choice that changes whenever the files change"
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
    """Disk of the build pod: model, intermediate files, engine."""

    size: Quantity | None = Field(
        default=None, description="Size of the scratch disk, e.g. 60Gi. Unset: no limit is set."
    )
    storage_class_name: Name | None = Field(
        default=None,
        description="Take the scratch disk from this StorageClass (a generic ephemeral volume)"
        " and not from the node's own disk. Needs size.",
    )


class BuildOptions(ApiModel):
    """How the build Job runs. Nothing here changes the engine."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!has(self.scratch) || !has(self.scratch.storageClassName)"
                " || has(self.scratch.size)",
                "spec.build.scratch.storageClassName needs spec.build.scratch.size, e.g. 60Gi",
            )
        )
    )

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
        default=None, description="Requests and limits of the build container."
    )
    scratch: Scratch | None = None
    node_selector: dict[str, LabelValue] = Field(default_factory=dict, max_length=32)
    tolerations: list[Toleration] = Field(default_factory=list, max_length=32)
    priority_class_name: Name | None = None


class Autoscaling(ApiModel):
    """A HorizontalPodAutoscaler for each Deployment, on CPU utilization."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
                # Without the numbers: for string(integer) the API server reckons with no bound.
                "spec.serving.autoscaling.minReplicas must not exceed maxReplicas",
            )
        )
    )

    min_replicas: int = Field(default=1, ge=1, le=1000)
    max_replicas: int = Field(
        ge=1,
        le=1000,
        json_schema_extra=sentence(
            "spec.serving.autoscaling.maxReplicas is missing: give the most pods to run"
        ),
    )
    target_cpu_utilization: int = Field(
        default=80, ge=1, le=1000, alias="targetCPUUtilization", description="Percent of requests."
    )


class ServingOptions(ApiModel):
    """How the engine is served."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!(has(self.replicas) && has(self.autoscaling))",
                "spec.serving takes replicas or autoscaling, not both: remove replicas to let"
                " the autoscaler decide",
            )
        )
    )

    replicas: int | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="Pods for each architecture (1 when neither this nor autoscaling is set).",
    )
    autoscaling: Autoscaling | None = None
    model_name: (
        Annotated[str, StringConstraints(max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
        | None
    ) = Field(default=None, description="The model's name in Triton. Unset: metadata.name.")
    resources: Resources | None = None
    node_selector: dict[str, LabelValue] = Field(default_factory=dict, max_length=32)
    tolerations: list[Toleration] = Field(default_factory=list, max_length=32)
    priority_class_name: Name | None = None
    termination_grace_period_seconds: int = Field(
        default=60,
        ge=10,
        le=86400,
        description="Seconds that running generations get to finish when a pod is stopped.",
    )


class LLMEngineSpec(ApiModel):
    """What a user asks for."""

    runtime: Name = Field(
        description="Name of the EngineRuntime that builds and serves.",
        json_schema_extra=sentence(
            "spec.runtime is missing: name an EngineRuntime; 'kubectl get engineruntimes' lists"
            " those of this cluster"
        ),
    )
    model: ModelSource = Field(
        json_schema_extra=sentence(
            "spec.model is missing: give spec.model.uri and spec.model.revision"
        )
    )
    engine: EngineOptions = Field(default_factory=EngineOptions)
    architectures: list[Architecture] | None = Field(
        default=None,
        min_length=1,
        max_length=32,
        description="Architectures that must be served, e.g. amd64. Unset: those of the"
        " cluster's nodes.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    build: BuildOptions = Field(default_factory=BuildOptions)
    serving: ServingOptions = Field(default_factory=ServingOptions)
    suspend: bool = Field(
        default=False, description="Stop reconciling. What serves goes on serving."
    )


class EngineState(StrEnum):
    """State of one engine of an LLMEngine. The order is that of a life."""

    PENDING = "Pending"
    QUEUED = "Queued"
    BUILDING = "Building"
    CACHED = "Cached"
    FAILED = "Failed"
    UNSUPPORTED = "Unsupported"
    NO_NODE = "NoNode"
    UNKNOWN = "Unknown"


class Progress(ApiModel):
    """How far a running build is."""

    phase: LabelValue
    percent: int = Field(ge=0, le=100)


class EngineStatus(ApiModel):
    """One engine that the spec asks for, in one architecture."""

    key: Annotated[str, StringConstraints(max_length=64)]
    architecture: Architecture
    state: EngineState
    reason: LabelValue = ""
    message: Text = ""
    changed: list[Annotated[str, StringConstraints(max_length=1024)]] = Field(
        default_factory=list,
        max_length=32,
        description="What differs from the engine that was served before: why this one is built.",
    )
    size_bytes: int | None = None
    build_seconds: int | None = None
    job: Annotated[str, StringConstraints(max_length=317)] | None = Field(
        default=None, description="NAMESPACE/NAME of the newest build Job."
    )
    last_failure_time: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        default=None, description="When the newest failed build ended, in RFC 3339."
    )
    node_count: int = Field(default=0, description="Nodes of this architecture.")
    progress: Progress | None = None


class ServingStatus(ApiModel):
    """What one Deployment serves. Its pod template is rendered from these fields."""

    architecture: Architecture
    key: Annotated[str, StringConstraints(max_length=64)]
    manifest_digest: Annotated[str, StringConstraints(max_length=71)]
    image: Annotated[str, StringConstraints(max_length=1024)]
    scope_namespace: Annotated[str, StringConstraints(max_length=63)] = Field(
        default="", description="Namespace whose engines this one is kept with; empty: shared."
    )
    size_bytes: int = Field(default=0, description="Bytes that a pod fetches.")
    replicas: int = 0
    ready_replicas: int = 0


class Summary(ApiModel):
    """What `kubectl get` shows."""

    engines: Annotated[str, StringConstraints(max_length=16)] = Field(
        default="", description="Cached of wanted engines, e.g. 1/1."
    )
    replicas: Annotated[str, StringConstraints(max_length=16)] = Field(
        default="", description="Ready of wanted pods, e.g. 2/2."
    )


class LLMEngineStatus(ApiModel):
    """What is. `observedGeneration: -1` until the operator has seen the object."""

    observed_generation: int = -1
    last_handled_request: Annotated[str, StringConstraints(max_length=253)] | None = Field(
        default=None, description="The newest value of llmengine.io/requested-at that was acted on."
    )
    url: Annotated[str, StringConstraints(max_length=1024)] | None = None
    conditions: list[Condition] = Field(
        default_factory=list,
        max_length=16,
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
    )
    summary: Summary | None = None
    engines: list[EngineStatus] = Field(
        default_factory=list,
        max_length=64,
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["key"],
        },
    )
    serving: list[ServingStatus] = Field(
        default_factory=list,
        max_length=64,
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["architecture"],
        },
    )


class Image(ApiModel):
    """The container image of a runtime; it builds and serves."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!has(self.repository) || has(self.tag) || has(self.digest)",
                "spec.image needs a tag or a digest",
            )
        )
    )

    repository: Annotated[str, StringConstraints(min_length=1, max_length=512)] = Field(
        json_schema_extra=sentence(
            "spec.image.repository is missing: name the image that builds and serves"
        )
    )
    tag: Annotated[str, StringConstraints(max_length=128)] | None = None
    digest: (
        Annotated[str, StringConstraints(max_length=71, pattern="^sha256:[0-9a-f]{64}$")] | None
    ) = Field(default=None, description="Wins over tag.")
    pull_policy: Annotated[str, StringConstraints(pattern="^(Always|IfNotPresent|Never)$")] = (
        "IfNotPresent"
    )
    pull_secrets: list[Name] = Field(
        default_factory=list,
        max_length=8,
        description="Names of pull Secrets; they must exist in every namespace that serves.",
    )

    @property
    def reference(self) -> str:
        """`repository@digest`, or `repository:tag`."""
        suffix = f"@{self.digest}" if self.digest else f":{self.tag}"
        return self.repository + suffix


class EnvVar(ApiModel):
    """A plain environment variable of our containers."""

    name: Annotated[str, StringConstraints(max_length=128, pattern="^[A-Za-z_][A-Za-z0-9_]*$")]
    value: Annotated[str, StringConstraints(max_length=4096)] = ""


class PodDefaults(ApiModel):
    """What the admin sets for every pod of this runtime."""

    service_account_name: Name | None = Field(
        default=None,
        description="For workload identity; no API token is mounted. Must exist where pods run.",
    )
    env: list[EnvVar] = Field(default_factory=list, max_length=64)
    labels: dict[str, LabelValue] = Field(default_factory=dict, max_length=32)
    annotations: dict[str, Annotated[str, StringConstraints(max_length=4096)]] = Field(
        default_factory=dict, max_length=32
    )
    node_selector: dict[str, LabelValue] = Field(default_factory=dict, max_length=32)
    tolerations: list[Toleration] = Field(default_factory=list, max_length=32)
    build_resources: Resources | None = Field(
        default=None, description="Used where spec.build.resources is unset."
    )
    serving_resources: Resources | None = Field(
        default=None, description="Used where spec.serving.resources is unset."
    )


class EngineRuntimeSpec(ApiModel):
    """A backend in one version, and the image that builds and serves with it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!has(self.backend) || !has(self.accelerator)"
                " || (self.backend == 'onnxruntime') == (self.accelerator == 'cpu')",
                "='backend ' + self.backend + ' does not run on accelerator ' + self.accelerator"
                " + ': onnxruntime takes cpu, tensorrt and tensorrtllm take nvidia'",
            ),
            *(
                cel(
                    f"!has(oldSelf.{field}) || has(self.{field})"
                    f" && self.{field} == oldSelf.{field}",
                    f"spec.{field} is immutable, because engines are keyed by it: make a new"
                    " EngineRuntime and point spec.runtime of the engines at it",
                )
                for field in ("backend", "version", "accelerator")
            ),
        )
    )

    backend: BackendName = Field(
        json_schema_extra=sentence(
            "spec.backend is missing: one of onnxruntime, tensorrt, tensorrtllm"
        )
    )
    version: Annotated[
        str, StringConstraints(min_length=1, max_length=63, pattern="^[0-9A-Za-z][0-9A-Za-z.+-]*$")
    ] = Field(
        description="Exact version of the backend in the image, e.g. 1.32.0.",
        json_schema_extra=sentence(
            "spec.version is missing: give the exact version of the backend in the image"
        ),
    )
    accelerator: Accelerator = Field(
        json_schema_extra=sentence("spec.accelerator is missing: cpu or nvidia")
    )
    image: Image = Field(json_schema_extra=sentence("spec.image is missing"))
    pod_defaults: PodDefaults = Field(default_factory=PodDefaults)
