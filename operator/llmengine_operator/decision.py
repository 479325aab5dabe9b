"""What a pass over an engine decides, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from llmengine.api.v1alpha1 import EngineStatus, ServingStatus
from llmengine_operator.architectures import Skipped
from llmengine_operator.resources.build_job import Order
from llmengine_operator.targets import Problem, Target

EngineId: TypeAlias = tuple[str, str]

# The digest of the build options of a key that is wanted, nobody knows with which.
UNKNOWN_OPTIONS = ""


@dataclass(frozen=True)
class Apply:
    """Server-side apply of a whole object, unless it already is so."""

    object: Mapping[str, Any]


@dataclass(frozen=True)
class ApplyDeployment:
    """A Deployment, whose replicas are `initial` when it is made and left alone afterwards."""

    object: Mapping[str, Any]
    initial: int


@dataclass(frozen=True)
class Scale:
    """Set a Deployment's replicas through its own /scale."""

    namespace: str
    name: str
    replicas: int


@dataclass(frozen=True)
class Delete:
    """Delete exactly this object."""

    kind: str
    namespace: str
    name: str
    uid: str


Action: TypeAlias = Apply | ApplyDeployment | Scale | Delete


@dataclass(frozen=True)
class Wish:
    """A build that this engine wants, and when it may start at the earliest."""

    order: Order
    first: bool
    since: datetime
    not_before: datetime

    @property
    def identity(self) -> tuple[str, str, int, str, bool, datetime]:
        """What makes it another wish; the engine's status, which the order holds too, does not."""
        order = self.order
        return (
            order.target.key,
            order.options,
            order.number,
            order.request,
            self.first,
            self.not_before,
        )


@dataclass(frozen=True)
class TargetPlan:
    """One architecture: its row, what it serves (if anything), and whether it may make progress."""

    target: Target
    row: EngineStatus
    serving: ServingStatus | None
    stalled: bool
    image_waits: bool = False
    look_again: timedelta | None = None

    @property
    def current(self) -> bool:
        """It serves what the current generation asks for."""
        return (
            self.serving is not None
            and self.serving.key in self.target.keys
            and not self.image_waits
        )


@dataclass(frozen=True)
class Turn:
    """Why a runtime's new image does not come to an engine yet: `rolling` are the engines, of
    whatever namespace, that follow it before; for one further back in line, more than `more_than`.
    """

    rolling: frozenset[EngineId] = frozenset()
    more_than: int = 0


@dataclass(frozen=True)
class Decision:
    """What ought to be. `problem` set: nothing new can be planned, what serves is left alone.

    `keys` are all keys that the engine wants, built or not, each with the digest of the options
    that it would be built with; `retiring` serves on, as it is, until what is wanted does; `turn`
    tells for whom one waits that a new image has not come to.
    """

    problem: Problem | None = None
    plans: tuple[TargetPlan, ...] = ()
    retiring: tuple[ServingStatus, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    actions: tuple[Action, ...] = ()
    wishes: tuple[Wish, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    handled_request: str | None = None
    turn: Turn = Turn()
