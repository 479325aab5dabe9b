"""The operator's configuration: one YAML document, rendered by the Helm chart."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
)
from pydantic.alias_generators import to_camel

from llmengine.architecture import Architecture
from llmengine.requests import S3Endpoint, StoreLocation


class InvalidConfigError(ValueError):
    """The configuration file cannot be used; the message says which field and why."""


class Section(BaseModel):
    """A part of the configuration. Unknown fields are refused: a typo must not be ignored."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid"
    )


class ConditionalWrites(StrEnum):
    """What to do with a store that does not honour `If-None-Match: *`."""

    REQUIRED = "Required"
    """Start no build. Serving goes on."""
    PREFERRED = "Preferred"
    """Build all the same: safe as long as this cluster alone writes to the bucket."""


class StoreConfig(Section):
    """Where engines are kept, and the Secrets that pods take their credentials from.

    Secrets hold AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. An empty name means workload
    identity: pods get no credentials and use what the platform gives their service account.
    """

    endpoint: str = ""
    region: str = "us-east-1"
    path_style: bool = True
    ca_pem: str = ""
    bucket: Annotated[str, StringConstraints(min_length=3, max_length=63)]
    prefix: str = ""
    conditional_writes: ConditionalWrites = ConditionalWrites.REQUIRED
    build_secret_name: str = Field(
        default="llmengine-store-write",
        description="In the builds namespace: may write engines, blobs and progress.",
    )
    scoped_build_secret_name: str = Field(
        default="llmengine-store-scope-write",
        description="In a namespace that builds engines of its own: may write that scope only.",
    )
    serve_secret_name: str = Field(
        default="llmengine-store-read", description="In every namespace that serves."
    )

    @property
    def location(self) -> StoreLocation:
        """What pods are told."""
        return StoreLocation(
            endpoint=self.endpoint,
            region=self.region,
            path_style=self.path_style,
            ca_pem=self.ca_pem,
            bucket=self.bucket,
            prefix=self.prefix,
        )


class ModelEndpoint(Section):
    """An S3 service that models are read from. Its name goes into the engine key."""

    name: Annotated[str, StringConstraints(pattern="^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
    endpoint: str = ""
    region: str = "us-east-1"
    path_style: bool = True
    ca_pem: str = ""
    buckets: tuple[str, ...] = Field(
        default=(), description="Buckets of this service; none: every bucket not named elsewhere."
    )
    secret_name: str = Field(
        default="",
        description="In the builds namespace: reads models without a Secret of their own.",
    )

    @property
    def location(self) -> S3Endpoint:
        """What the builder is told."""
        return S3Endpoint(
            endpoint=self.endpoint,
            region=self.region,
            path_style=self.path_style,
            ca_pem=self.ca_pem,
        )


class ModelsConfig(Section):
    """Where models come from."""

    s3: tuple[ModelEndpoint, ...] = ()
    shared: tuple[str, ...] = Field(
        default=(),
        description="s3:// prefixes that every namespace may read; their engines are shared by"
        " the whole cluster. Each ends with a slash.",
    )
    hf_endpoint: str = Field(default="", description="A mirror of the Hugging Face hub.")

    def endpoint_for(self, bucket: str) -> ModelEndpoint | None:
        """The service that holds a bucket: one that names it, else the first that names none."""
        named = [e for e in self.s3 if bucket in e.buckets]
        rest = [e for e in self.s3 if not e.buckets]
        return next(iter(named + rest), None)


class ExpectedTaint(Section):
    """A taint of nodes that are to come."""

    key: str
    value: str = ""
    effect: str = "NoSchedule"


class ExpectedNodes(Section):
    """A pool of nodes that may have none now, and gets some when a pod asks for them."""

    architecture: str = Field(
        description="What its nodes are: amd64, arm64, or sm_90/DEVICE with the device's name."
    )
    labels: dict[str, str] = Field(
        default={}, description="Labels of its nodes that engines and runtimes select by."
    )
    taints: tuple[ExpectedTaint, ...] = ()

    @field_validator("architecture")
    @classmethod
    def _is_that_of_a_node(cls, text: str) -> str:
        architecture = Architecture.parse(text)
        if not architecture.is_cpu and architecture.device is None:
            raise ValueError(f"{text} names no device: write such as {text}/NVIDIA-L4")
        return text


class ArchitecturesConfig(Section):
    """What the operator cannot read from nodes."""

    expected: tuple[ExpectedNodes, ...] = Field(
        default=(), description="Pools that are scaled to zero at times."
    )


class BuildsConfig(Section):
    """How build Jobs are run."""

    namespace: str = "llmengine-builds"
    max_concurrent: int = Field(default=4, ge=1)
    max_concurrent_per_architecture: int = Field(default=1, ge=1)
    priority_class_name: str = Field(
        default="", description="Of builds whose engine names no PriorityClass; empty: none."
    )


class RolloutsConfig(Section):
    """How many engines follow a runtime's new image at the same time, and for how long a new pod
    has to be ready before an old one goes: some servers die of their first requests.
    """

    max_concurrent: int = Field(default=1, ge=1)
    min_ready_seconds: int = Field(default=5, ge=0, le=20)


class LeaderElectionConfig(Section):
    """The Lease that one replica of the operator holds."""

    enabled: bool = True
    lease_seconds: float = Field(default=15, gt=1)


class Config(Section):
    """Everything that an operator process is told."""

    namespace: str = Field(description="The operator's own namespace: its Lease lies here.")
    store: StoreConfig
    models: ModelsConfig = ModelsConfig()
    architectures: ArchitecturesConfig = ArchitecturesConfig()
    builds: BuildsConfig = BuildsConfig()
    rollouts: RolloutsConfig = RolloutsConfig()
    leader_election: LeaderElectionConfig = LeaderElectionConfig()
    watch_namespaces: tuple[str, ...] = Field(default=(), description="None: all namespaces.")
    workers: int = Field(default=4, ge=1, le=64)
    resync_seconds: float = Field(default=600, gt=0)
    health_port: int = 8080
    metrics_port: int = 8081

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file. Raises InvalidConfigError with the field and the reason."""
        try:
            return cls.model_validate(yaml.safe_load(path.read_text()))
        except OSError as error:
            raise InvalidConfigError(f"cannot read {path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise InvalidConfigError(f"{path} is not YAML: {error}") from error
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()
            )
            raise InvalidConfigError(f"{path}: {problems}") from error
