"""When a build starts, is tried again, or is given up. Pure.

One Job per key per cluster, whoever asks. The Jobs themselves are the memory of what was tried;
a row of the engine's status stands in for a failed Job that has expired.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from llmengine.api.v1alpha1 import (
    BuildOptions,
    EngineRuntimeSpec,
    EngineState,
    EngineStatus,
)
from llmengine.requests import BuildReason
from llmengine_operator.attempts import ENVIRONMENT_REASONS, parse_time
from llmengine_operator.config import BuildsConfig
from llmengine_operator.observation import Attempt, AttemptState, Verdict
from llmengine_operator.reasons import Reason

FIRST_BACK_OFF = timedelta(seconds=15)
LONGEST_BACK_OFF = timedelta(minutes=10)
ENVIRONMENT_RETRY = timedelta(hours=1)
# A builder writes its manifest before it ends, and stores are consistent: this is generous.
PUBLISH_GRACE = timedelta(seconds=30)


@dataclass(frozen=True)
class Ask:
    """What one engine brings to the question whether a key is to be built.

    `options` is the digest of its build options, `tries` the most tries of a series, `request` an
    unhandled `requested-at`, `edited` whether its spec changed since its status was written,
    `builders` the nodes that may build it.
    """

    key: str
    options: str
    tries: int
    request: str = ""
    edited: bool = False
    builders: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Assessment:
    """How a key that is not in the store stands.

    `start_at`: when a new Job may be made, None for never. `number` and `tries_left` are its.
    `stalled`: no progress is expected until somebody changes something.
    """

    state: EngineState
    reason: str
    message: str = ""
    start_at: datetime | None = None
    number: int = 1
    tries_left: int = 0
    attempt: Attempt | None = None
    stalled: bool = False
    failed_at: datetime | None = None
    look_again: timedelta | None = None


def options_digest(
    build: BuildOptions, runtime: EngineRuntimeSpec, default_priority_class: str = ""
) -> str:
    """A digest of what a build Job is given beside its engine: a new value deserves a new try."""
    parts: tuple[str, ...] = (
        build.model_dump_json(),
        runtime.image.model_dump_json(),
        runtime.pod_defaults.model_dump_json(exclude={"serving_resources"}),
    )
    for_gpus = (runtime.runtime_class_name, runtime.minimum_driver)
    if any(for_gpus):
        parts = (*parts, str(for_gpus))
    if default_priority_class and build.priority_class_name is None:
        parts = (*parts, default_priority_class)
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]


def assess(
    ask: Ask, attempts: Sequence[Attempt], row: EngineStatus | None, now: datetime
) -> Assessment:
    """What to do about a key that the store does not hold.

    `attempts` are all Jobs of the key, `row` what the engine's status said of it last.
    """
    number = max((a.number for a in attempts), default=0) + 1
    fresh = Assessment(
        EngineState.QUEUED,
        Reason.BUILD_QUEUED,
        "waits for its turn",
        start_at=now,
        number=number,
        tries_left=ask.tries - 1,
    )
    if running := [a for a in attempts if a.active]:
        return _running(running[0])
    newest = max(attempts, key=lambda a: a.number, default=None)
    if newest is not None and _publishes(newest, now):
        return _publishing(newest)
    if ask.request and all(a.request != ask.request for a in attempts):
        return fresh
    if mine := [a for a in attempts if a.options == ask.options]:
        last = max(mine, key=lambda a: a.number)
        mended = _misled(last) and last.node not in ask.builders
        return fresh if mended else _failed(_lost(last), number, ask, now)
    if not attempts and row is not None and not ask.edited:
        return _remembered(row, fresh, now)
    return fresh


def _misled(attempt: Attempt) -> bool:
    """The node was not what its labels say."""
    return attempt.state is AttemptState.FAILED and attempt.reason == BuildReason.WRONG_DEVICE


def _publishes(attempt: Attempt, now: datetime) -> bool:
    """It ended well just now, so that its manifest may be on its way."""
    done = attempt.state is AttemptState.SUCCEEDED
    return done and now - (attempt.finished or now) < PUBLISH_GRACE


def _lost(attempt: Attempt) -> Attempt:
    """A build that ended well and left no engine counts as a failed try, or it could go on so
    for ever.
    """
    if attempt.state is not AttemptState.SUCCEEDED:
        return attempt
    return replace(
        attempt,
        state=AttemptState.FAILED,
        reason=Reason.BUILD_LOST,
        message="the build ended well, but its engine is not in the store: it was deleted there,"
        " or the builder writes to another place",
        verdict=Verdict.RETRY,
    )


def _publishing(attempt: Attempt) -> Assessment:
    return Assessment(
        EngineState.BUILDING,
        Reason.PUBLISHING,
        "the build is done; waiting for its manifest",
        attempt=attempt,
        look_again=timedelta(seconds=2),
    )


def _running(attempt: Attempt) -> Assessment:
    started = attempt.state is AttemptState.RUNNING
    return Assessment(
        EngineState.BUILDING if started else EngineState.PENDING,
        attempt.reason,
        attempt.message or f"Job {attempt.namespace}/{attempt.name}",
        attempt=attempt,
        stalled=attempt.reason == Reason.CONTAINER_CONFIG_INVALID,
    )


def _failed(attempt: Attempt, number: int, ask: Ask, now: datetime) -> Assessment:
    ended = attempt.finished or now
    again: datetime | None = None
    tries_left = 0
    state, reason, message, stalled = EngineState.FAILED, attempt.reason, attempt.message, True
    if attempt.verdict is Verdict.RETRY and attempt.tries_left > 0:
        tried = ask.tries - attempt.tries_left
        again = ended + back_off(tried)
        tries_left = attempt.tries_left - 1
        state, reason, stalled = EngineState.PENDING, Reason.BUILD_RETRYING, False
        message = (
            f"try {tried} of {ask.tries} failed ({attempt.reason}: {attempt.message}); the next"
            f" starts at {again:%H:%M:%S} UTC"
        )
    elif attempt.verdict in (Verdict.RETRY, Verdict.ENVIRONMENT):
        again = ended + ENVIRONMENT_RETRY
    return Assessment(
        state,
        reason,
        message,
        start_at=again,
        number=number,
        tries_left=tries_left,
        attempt=attempt,
        stalled=stalled,
        failed_at=ended,
        look_again=again - now if again is not None and again > now else None,
    )


def _remembered(row: EngineStatus, fresh: Assessment, now: datetime) -> Assessment:
    """The failed Job has expired; the row still knows that it failed."""
    # Nobody knows any more which node was not what its labels say: it may well have been mended.
    if row.state is not EngineState.FAILED or row.reason == BuildReason.WRONG_DEVICE:
        return fresh
    failed_at = parse_time(row.last_failure_time) if row.last_failure_time else now
    return Assessment(
        row.state,
        row.reason,
        row.message,
        start_at=failed_at + ENVIRONMENT_RETRY if row.reason in ENVIRONMENT_REASONS else None,
        number=fresh.number,
        stalled=True,
        failed_at=failed_at,
    )


def back_off(tried: int) -> timedelta:
    """Time between the end of try number `tried` (from 1) and the next."""
    doubled: timedelta = FIRST_BACK_OFF * 2 ** (tried - 1)
    return min(doubled, LONGEST_BACK_OFF)


@dataclass(frozen=True)
class Candidate:
    """A build that may start now. `engine` is the one that wishes for it, NAMESPACE/NAME."""

    key: str
    architecture: str
    first: bool
    since: datetime
    engine: str

    @property
    def turn(self) -> tuple[bool, datetime, str, str, str]:
        """What the queue goes by. Times are in whole seconds, so names decide between those who
        came in the same one.
        """
        return not self.first, self.since, self.engine, self.architecture, self.key


@dataclass(frozen=True)
class Schedule:
    """Keys to start now, and for those that wait the sentence that says for what."""

    start: tuple[str, ...]
    waiting: Mapping[str, str]


def schedule(
    candidates: Sequence[Candidate], attempts: Sequence[Attempt], limits: BuildsConfig
) -> Schedule:
    """Which candidates start: first builds before rebuilds, then the oldest wish, then by name.

    A Job that waits for a Secret, an image, a quota or a node takes nobody's place: one broken
    build must not block the next.
    """
    busy = [a for a in attempts if a.active and not a.blocked]
    building = {a.key for a in attempts if a.active}
    per_architecture = Counter(a.architecture for a in busy)
    total = len(busy)
    start: list[str] = []
    waiting: dict[str, str] = {}
    for candidate in sorted(candidates, key=lambda c: c.turn):
        if candidate.key in building:
            continue
        here = per_architecture[candidate.architecture]
        if total >= limits.max_concurrent:
            waiting[candidate.key] = f"waits: {limits.max_concurrent} builds run at a time"
        elif here >= limits.max_concurrent_per_architecture:
            waiting[candidate.key] = f"waits for the build that runs on {candidate.architecture}"
        else:
            start.append(candidate.key)
            building.add(candidate.key)
            per_architecture[candidate.architecture] += 1
            total += 1
    return Schedule(tuple(start), waiting)
