"""What an operator says about an LLMEngine. Its own writing: bounds, but no sentences."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from llmengine.api.schema import ApiModel, Condition, Text, Word, keyed_by

_Key = Annotated[str, StringConstraints(max_length=64)]
_Architecture = Annotated[str, StringConstraints(max_length=110)]
_Time = Annotated[str, StringConstraints(max_length=64)]


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

    phase: Word = Field(description="Resolve, Download, Graph, Compile, Verify or Publish.")
    percent: int = Field(ge=0, le=100, description="Of the phase.")


class EngineStatus(ApiModel):
    """One engine that the spec asks for, in one architecture."""

    key: _Key = Field(description="The engine key: SHA-256 over all that makes the engine.")
    architecture: _Architecture = Field(description="The architecture, such as amd64.")
    state: EngineState = Field(description="Where this engine is in its life.")
    reason: Word = Field(default="", description="Why, in one CamelCase word.")
    message: Text = Field(default="", description="Why, in a sentence, and what to do.")
    changed: list[Annotated[str, StringConstraints(max_length=1024)]] = Field(
        default_factory=list,
        max_length=32,
        description="What differs from the engine that was served before: why this one is built.",
    )
    size_bytes: int | None = Field(default=None, description="Size in the store, in bytes.")
    build_seconds: int | None = Field(default=None, description="How long its build took.")
    job: Annotated[str, StringConstraints(max_length=317)] | None = Field(
        default=None, description="NAMESPACE/NAME of the newest build Job."
    )
    last_failure_time: _Time | None = Field(
        default=None, description="When the newest failed build ended, in RFC 3339."
    )
    node_count: int = Field(
        default=0, description="Nodes of this architecture that may serve the engine."
    )
    seen_time: _Time | None = Field(
        default=None,
        description="Since when this architecture, which is new, has nodes, in RFC 3339; gone once"
        " it counts.",
    )
    gone_time: _Time | None = Field(
        default=None,
        description="Since when this architecture has neither a node nor a ready pod, in RFC 3339.",
    )
    progress: Progress | None = None


class ReplacedStatus(ApiModel):
    """What pods of before served, or still serve."""

    key: _Key = Field(description="Key of that engine.")
    image: Annotated[str, StringConstraints(max_length=1024)] = Field(
        description="Image that served it."
    )
    ready_replicas: int = Field(default=0, description="Its pods that still answer.")


class ServingStatus(ApiModel):
    """What one Deployment serves. Its pod template is rendered from these fields."""

    architecture: _Architecture = Field(description="The architecture, such as amd64.")
    key: _Key = Field(description="Key of the engine that is served.")
    manifest_digest: Annotated[str, StringConstraints(max_length=71)] = Field(
        description="Digest of the engine's manifest: a pod loads nothing that it does not cover."
    )
    image: Annotated[str, StringConstraints(max_length=1024)] = Field(
        description="Image that serves."
    )
    scope_namespace: Word = Field(
        default="", description="Namespace whose engines this one is kept with; empty: shared."
    )
    size_bytes: int = Field(default=0, description="Bytes that a pod fetches.")
    termination_grace_period_seconds: int | None = Field(
        default=None,
        description="Seconds from a pod's notice to its end unless the spec says, derived from the"
        " engine's measured speed; unset: none was measured.",
    )
    gpu_memory_bytes: int | None = Field(
        default=None,
        description="Memory in bytes that a GPU must have to serve the engine; unset: not known.",
    )
    replicas: int = Field(default=0, description="Pods that are wanted.")
    ready_replicas: int = Field(
        default=0, description="Pods that answer, with those of what this replaces."
    )
    replaces: ReplacedStatus | None = Field(
        default=None,
        description="What this takes the place of, until none of its pods is left.",
    )


class SkippedNodes(ApiModel):
    """Nodes that might serve the engine, were it not for one reason."""

    reason: Word = Field(description="Why, in one CamelCase word.")
    count: int = Field(description="How many nodes.")
    message: Text = Field(description="Which nodes, why, and what to do.")


class Summary(ApiModel):
    """What `kubectl get` shows."""

    engines: Annotated[str, StringConstraints(max_length=16)] = Field(
        default="", description="Cached of wanted engines, such as 1/1."
    )
    replicas: Annotated[str, StringConstraints(max_length=16)] = Field(
        default="", description="Ready of wanted pods, such as 2/2."
    )


class LLMEngineStatus(ApiModel):
    """What is, as the operator saw it last."""

    observed_generation: int = Field(
        default=-1,
        description="Generation of the spec that this status is about; -1: none has been seen.",
    )
    last_handled_request: Annotated[str, StringConstraints(max_length=253)] | None = Field(
        default=None,
        description="The newest value of the annotation llmengine.io/requested-at that was"
        " acted on.",
    )
    url: Annotated[str, StringConstraints(max_length=1024)] | None = Field(
        default=None, description="Where clients in the cluster find the engine over HTTP."
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        max_length=16,
        description="Ready (serves in full) and Available (some pod answers) sum it up.",
        json_schema_extra=keyed_by("type"),
    )
    summary: Summary | None = None
    engines: list[EngineStatus] = Field(
        default_factory=list,
        max_length=64,
        description="The engines that the spec asks for.",
        json_schema_extra=keyed_by("key", "architecture"),
    )
    skipped_nodes: list[SkippedNodes] = Field(
        default_factory=list,
        max_length=8,
        description="Nodes that the engine's selectors allow, but that cannot run it.",
        json_schema_extra=keyed_by("reason"),
    )
    serving: list[ServingStatus] = Field(
        default_factory=list,
        max_length=64,
        description="What is served now, for each architecture.",
        json_schema_extra=keyed_by("architecture"),
    )
