"""Everything that one pass has read, frozen: a plan is a function of it and of nothing else.

Not found, could not be read, and not asked for are three different facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeAlias, TypeVar

from llmengine.api.v1alpha1 import EngineRuntimeSpec, LLMEngineSpec, LLMEngineStatus
from llmengine.architecture import Architecture
from llmengine.artifact import BuildProgress, Manifest
from llmengine_operator.reasons import Reason

T = TypeVar("T")
KubeObject: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Found(Generic[T]):
    """The thing is there."""

    value: T


@dataclass(frozen=True)
class NotFound:
    """The thing was asked for and is not there."""


@dataclass(frozen=True)
class Unreadable:
    """Nobody knows whether the thing is there: a CamelCase reason and a sentence."""

    reason: str
    message: str


Read: TypeAlias = Found[T] | NotFound | Unreadable


@dataclass(frozen=True)
class Engine:
    """An LLMEngine as it was read."""

    namespace: str
    name: str
    uid: str
    generation: int
    created: datetime
    spec: LLMEngineSpec
    status: LLMEngineStatus
    requested_at: str = ""
    queue: str = ""
    """Kueue's queue that admits its builds and pods, or nothing."""

    @property
    def id(self) -> tuple[str, str]:
        return self.namespace, self.name

    @property
    def unhandled_request(self) -> str:
        """The value of `llmengine.io/requested-at` that was not acted on yet, or nothing."""
        return "" if self.requested_at == self.status.last_handled_request else self.requested_at


@dataclass(frozen=True)
class Runtime:
    """An EngineRuntime as it was read."""

    name: str
    spec: EngineRuntimeSpec


@dataclass(frozen=True)
class Taint:
    """A node's taint."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True)
class Gpu:
    """The GPUs of a node, which are all of one kind, as its labels have them.

    `driver`: major, minor, revision. `slices` names what MIG has divided them into.
    `memory_bytes` of each; 0: the labels do not say.
    """

    compute_capability: tuple[int, int]
    device: str
    driver: tuple[int, int, int] | None = None
    slices: str = ""
    memory_bytes: int = 0


@dataclass(frozen=True)
class Node:
    """What matters of a node for choosing architectures.

    `architecture` is that of its CPUs. `offers_gpus` without a `gpu`: nobody has labelled it.
    """

    name: str
    architecture: Architecture
    labels: Mapping[str, str]
    created: datetime
    taints: tuple[Taint, ...] = ()
    gpu: Gpu | None = None
    offers_gpus: bool = False


@dataclass(frozen=True)
class StoredEngine:
    """An engine in the store: its manifest, and the digest that pods pin."""

    manifest: Manifest
    digest: str


class AttemptState(StrEnum):
    WAITING = "Waiting"
    """The Job exists, its container has not started."""
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Verdict(StrEnum):
    """What a failure means for the next try."""

    NONE = "None"
    RETRY = "Retry"
    """The same build may well succeed: the network, the store, an eviction, a bug."""
    ENVIRONMENT = "Environment"
    """It fails until somebody mends a token, a model's place or a quota: look again hourly."""
    FINAL = "Final"
    """It fails until the spec changes."""


_BLOCKING = frozenset(
    {
        Reason.IMAGE_PULL_FAILED,
        Reason.CONTAINER_CONFIG_INVALID,
        Reason.QUOTA_EXCEEDED,
        Reason.PODS_REFUSED,
        Reason.UNSCHEDULABLE,
        Reason.WAITING_FOR_QUOTA,
    }
)


@dataclass(frozen=True)
class Attempt:
    """A build Job as it stands, with what its pod said last.

    `number` is that of the Job's name; `tries_left` how many more this series may have;
    `options` a digest of the build options it ran with; `request` the request that it answers;
    `node` where its pod is or was.
    """

    namespace: str
    name: str
    uid: str
    key: str
    architecture: str
    number: int
    tries_left: int
    options: str
    request: str
    created: datetime
    state: AttemptState
    reason: str = ""
    message: str = ""
    finished: datetime | None = None
    verdict: Verdict = Verdict.NONE
    node: str = ""

    @property
    def active(self) -> bool:
        return self.state in (AttemptState.WAITING, AttemptState.RUNNING)

    @property
    def blocked(self) -> bool:
        """It waits for something that only a person, or another pod's end, can give."""
        return self.state is AttemptState.WAITING and self.reason in _BLOCKING


@dataclass(frozen=True)
class Observation:
    """One engine's world.

    `children` are the objects that we may own, by (kind, name); `pods` the server pods;
    `complaints` what nodes say of pods that keep a rollout waiting and say nothing themselves, by
    name; `manifests` what the store said of each key, `served` of the keys in `status.serving`;
    `queue` what a wished build waits for, by key; `unsafe_store` says why the store
    must not be built into, if it must not; `may_roll_image` whether a runtime's new image may be
    followed now.
    """

    engine: Engine
    runtime: Read[Runtime]
    nodes: tuple[Node, ...] = ()
    claim: Read[str] | None = None
    manifests: Mapping[str, Read[StoredEngine]] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()
    progress: Mapping[str, BuildProgress] = field(default_factory=dict)
    children: Mapping[tuple[str, str], Read[KubeObject]] = field(default_factory=dict)
    pods: tuple[KubeObject, ...] = ()
    complaints: Mapping[str, str] = field(default_factory=dict)
    queue: Mapping[str, str] = field(default_factory=dict)
    unsafe_store: Unreadable | None = None
    may_roll_image: bool = False
