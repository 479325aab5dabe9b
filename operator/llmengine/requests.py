"""What the operator asks of a build pod and of a server pod, and what a build answers.

Requests travel as one environment variable of JSON; an answer is the termination message.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum

from pydantic import Field

from llmengine.api.v1alpha1 import DType, Quantization
from llmengine.artifact import Record
from llmengine.key import Scope

BUILD_REQUEST_VARIABLE = "LLMENGINE_BUILD_REQUEST"
SERVE_REQUEST_VARIABLE = "LLMENGINE_SERVE_REQUEST"
# A kubelet keeps 4 KiB of a termination message; twice that is shared by a pod's containers.
TERMINATION_MESSAGE_BYTES = 2048


class ExitCode(IntEnum):
    """How a build ended. Anything else is a bug."""

    OK = 0
    BAD_INPUT = 10
    UNSUPPORTED = 11
    VERIFICATION_FAILED = 12
    WRONG_DEVICE = 13
    TRANSIENT = 20


class BuildReason(StrEnum):
    """Why a build or a fetch failed: the `reason` of its last words."""

    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_ACCESS_DENIED = "ModelAccessDenied"
    MODEL_UNREACHABLE = "ModelUnreachable"
    MODEL_INVALID = "ModelInvalid"
    MODEL_UNSUPPORTED = "ModelUnsupported"
    WEIGHTS_ARE_PICKLED = "WeightsArePickled"
    SEQUENCE_TOO_LONG = "SequenceTooLong"
    OPTION_UNSUPPORTED = "OptionUnsupported"
    BACKEND_MISMATCH = "BackendMismatch"
    SCRATCH_TOO_SMALL = "ScratchTooSmall"
    MEMORY_TOO_SMALL = "MemoryTooSmall"
    GPU_TOO_SMALL = "GpuTooSmall"
    DRIVER_TOO_OLD = "DriverTooOld"
    BACKEND_INCOMPLETE = "BackendIncomplete"
    COMPILE_FAILED = "CompileFailed"
    VERIFICATION_FAILED = "VerificationFailed"
    WRONG_DEVICE = "WrongDevice"
    STORE_UNREACHABLE = "StoreUnreachable"
    STORE_DENIED = "StoreDenied"
    STORE_REFUSED = "StoreRefused"
    BUCKET_MISSING = "BucketMissing"
    ENGINE_CORRUPTED = "EngineCorrupted"
    ENGINE_MISSING = "EngineMissing"
    ENGINE_UNSUPPORTED = "EngineUnsupported"
    DISK_FULL = "DiskFull"
    REQUEST_INVALID = "RequestInvalid"
    INTERRUPTED = "Interrupted"
    BUG = "Bug"


class Phase(StrEnum):
    """Phases of a build, in order."""

    RESOLVE = "Resolve"
    DOWNLOAD = "Download"
    GRAPH = "Graph"
    COMPILE = "Compile"
    VERIFY = "Verify"
    PUBLISH = "Publish"


class S3Endpoint(Record):
    """An S3 service, without credentials. `ca_pem` is PEM text; empty: the public CAs."""

    endpoint: str = ""
    region: str = "us-east-1"
    path_style: bool = True
    ca_pem: str = ""


class StoreLocation(S3Endpoint):
    """Where engines are kept."""

    bucket: str
    prefix: str = ""


class BuildRequest(Record):
    """All that a build needs to know but credentials.

    `dtype` is resolved: never `auto`. `scope_namespace` is empty for the cluster's own tree.
    """

    key: str
    factors: Mapping[str, str | int]
    scope_namespace: str = ""
    backend: str
    backend_version: str
    architecture: str
    uri: str
    revision: str
    dtype: DType
    quantization: Quantization = Field(default_factory=Quantization)
    max_batch_size: int
    max_sequence_length: int
    max_batch_tokens: int
    store: StoreLocation
    model_endpoint: S3Endpoint | None = None
    hf_endpoint: str = ""
    job: str = ""
    scratch_bytes: int | None = Field(
        default=None,
        description="Limit of the scratch volume: its pod is evicted beyond it, and cannot see it.",
    )

    @property
    def scope(self) -> Scope:
        """Whose tree of the store the engine belongs to."""
        return Scope(self.scope_namespace)


class ServeRequest(Record):
    """All that a server pod needs to know but credentials."""

    key: str
    scope_namespace: str = ""
    manifest_digest: str
    model_name: str
    store: StoreLocation

    @property
    def scope(self) -> Scope:
        """Whose tree of the store the engine belongs to."""
        return Scope(self.scope_namespace)


class BuildResult(Record):
    """The last words of a build that published, or found its engine published."""

    key: str
    manifest_digest: str
    size_bytes: int
    seconds: int
    warnings: tuple[str, ...] = Field(
        default=(), description="Sentences: what was built as asked, but may disappoint."
    )


class BuildFailure(Record):
    """The last words of a build that failed: a CamelCase reason and a sentence."""

    reason: str
    message: str
