"""Build Jobs of the whole cluster: started in order, within limits, and deleted when unwanted.

Engines put their wishes here; one pass at a time turns them into Jobs. The Jobs in the API server
are the truth: this memory is made anew by passing over every engine once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from llmengine_operator.builds import Candidate, schedule
from llmengine_operator.config import Config
from llmengine_operator.decision import UNKNOWN_OPTIONS, Decision, EngineId, Wish
from llmengine_operator.kinds import JOB
from llmengine_operator.kube import Kube
from llmengine_operator.kube_errors import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
)
from llmengine_operator.observation import AttemptState, Engine
from llmengine_operator.read_builds import Build, read_builds
from llmengine_operator.resources.build_job import build_job, build_namespace, job_name
from llmengine_operator.resources.pod import owner_reference

log = logging.getLogger(__name__)

# What a waiting build waits for may end unseen: a quota, or a namespace that is not there.
WAITING_POLL = timedelta(seconds=15)


@dataclass(frozen=True)
class _Told:
    """What one engine wants. `engine` is None when its spec cannot be read."""

    engine: Engine | None
    wishes: tuple[Wish, ...]
    keys: Mapping[str, str]

    def same_as(self, other: _Told | None) -> bool:
        """Whether a pass over the Jobs would come to the same."""
        if other is None or self.keys != other.keys:
            return False
        return [w.identity for w in self.wishes] == [w.identity for w in other.wishes]


@dataclass(frozen=True)
class Outcome:
    """Engines that should hear of the pass, and in how many seconds the next build is due."""

    engines: frozenset[EngineId]
    next_due: float | None


class BuildQueue:
    """Wishes of all engines. Shared by all workers; `run` is called by one at a time."""

    def __init__(self, kube: Kube, config: Config) -> None:
        self._kube = kube
        self._config = config
        self._lock = threading.Lock()
        self._told: dict[EngineId, _Told] = {}
        self._expected: set[EngineId] = set()
        self._waiting: dict[str, str] = {}

    def expect(self, engines: Iterable[EngineId]) -> None:
        """Engines that exist and were not passed over yet: until then no Job is unwanted."""
        with self._lock:
            self._expected |= set(engines) - self._told.keys()

    def tell(self, engine: Engine, decision: Decision) -> bool:
        """What an engine wants now. Whether that is news."""
        return self._tell(engine.id, _Told(engine, decision.wishes, decision.keys))

    def tell_unreadable(self, engine: EngineId, keys: Mapping[str, str]) -> bool:
        """The same of an engine whose spec cannot be read: it keeps what it wanted before."""
        return self._tell(engine, _Told(None, (), keys))

    def _tell(self, engine: EngineId, told: _Told) -> bool:
        with self._lock:
            self._expected.discard(engine)
            before = self._told.get(engine)
            self._told[engine] = told
            return not told.same_as(before)

    def forget(self, engine: EngineId) -> None:
        """The engine is gone."""
        with self._lock:
            self._expected.discard(engine)
            self._told.pop(engine, None)

    def waiting(self) -> Mapping[str, str]:
        """For each key that waits for its turn, a sentence."""
        with self._lock:
            return dict(self._waiting)

    def engines_of(self, key: str) -> list[EngineId]:
        """Who wants a key."""
        with self._lock:
            return [engine for engine, told in self._told.items() if key in told.keys]

    def run(self, now: datetime) -> Outcome:
        """One pass: start what may start, delete what nobody wants. Raises KubeError."""
        builds = self._read(now)
        with self._lock:
            told = list(self._told.values())
            complete = not self._expected
        if complete:
            builds = self._delete_unwanted(builds, told)
        builds = self._delete_superseded(builds)
        self._share(builds, told)
        wishes = [wish for each in told for wish in each.wishes]
        waiting = self._start([wish for wish in wishes if wish.not_before <= now], builds)
        with self._lock:
            before, self._waiting = self._waiting, waiting
        changed = {key for key in {*before, *waiting} if before.get(key) != waiting.get(key)}
        later = [(w.not_before - now).total_seconds() for w in wishes if w.not_before > now]
        if waiting:
            later.append(WAITING_POLL.total_seconds())
        engines = frozenset(engine for key in changed for engine in self.engines_of(key))
        return Outcome(engines, min(later, default=None))

    def _read(self, now: datetime) -> list[Build]:
        if not self._config.watch_namespaces:
            return read_builds(self._kube, None, {}, now)
        places = sorted({*self._config.watch_namespaces, self._config.builds.namespace})
        return [build for place in places for build in read_builds(self._kube, place, {}, now)]

    def _delete_unwanted(self, builds: Sequence[Build], told: Iterable[_Told]) -> list[Build]:
        """A Job that no engine wants any more ends at once: it holds a node."""
        wanted: dict[str, set[str]] = {}
        for each in told:
            for key, options in each.keys.items():
                wanted.setdefault(key, set()).add(options)
        kept = []
        for build in builds:
            why = _unwanted(build, wanted.get(build.attempt.key))
            if why:
                self._delete(build, why)
            else:
                kept.append(build)
        return kept

    def _delete_superseded(self, builds: Sequence[Build]) -> list[Build]:
        """Of failed tries with the same options, only the last is kept to be looked at."""
        kept: list[Build] = []
        for build in builds:
            attempt = build.attempt
            newer = any(
                other.attempt.key == attempt.key
                and other.attempt.options == attempt.options
                and other.attempt.number > attempt.number
                for other in builds
            )
            if attempt.state is AttemptState.FAILED and newer:
                self._delete(build, "a newer try exists")
            else:
                kept.append(build)
        return kept

    def _delete(self, build: Build, why: str) -> None:
        attempt = build.attempt
        log.info("deleting Job %s/%s: %s", attempt.namespace, attempt.name, why)
        try:
            self._kube.delete(JOB, attempt.namespace, attempt.name, uid=attempt.uid)
        except (NotFoundError, ConflictError):
            log.debug("Job %s/%s was gone already", attempt.namespace, attempt.name)
        except ForbiddenError as error:
            log.warning("%s", error)

    def _share(self, builds: Sequence[Build], told: Iterable[_Told]) -> None:
        """Engines of one namespace that want one Job each own it: it ends with the last of them.

        A Job without owners is that of the whole cluster.
        """
        wanting = [(each.engine, each.keys) for each in told if each.engine is not None]
        for build in builds:
            owners = {o["uid"] for o in build.job["metadata"].get("ownerReferences", [])}
            if not owners or not build.attempt.active:
                continue
            for engine, keys in wanting:
                here = engine.namespace == build.attempt.namespace
                if here and build.attempt.key in keys and engine.uid not in owners:
                    self._own(build, engine)

    def _own(self, build: Build, engine: Engine) -> None:
        attempt = build.attempt
        metadata = {
            "name": attempt.name,
            "namespace": attempt.namespace,
            "uid": attempt.uid,  # an apply to a Job that is gone must not make another
            "ownerReferences": [owner_reference(engine, controller=False)],
        }
        try:
            # A manager of its own, so that each engine's reference stands by itself.
            self._kube.apply(JOB, {"metadata": metadata}, manager=f"llmengine-{engine.uid}")
        except (NotFoundError, ConflictError, InvalidError, ForbiddenError) as error:
            log.warning("%s", error)

    def _start(self, due: Sequence[Wish], builds: Sequence[Build]) -> dict[str, str]:
        """Make the Jobs whose turn it is; for the others, what they wait for."""
        made = {(build.attempt.namespace, build.attempt.name) for build in builds}
        by_key: dict[str, Wish] = {}
        for wish in sorted(due, key=lambda w: _candidate(w).turn):
            if _place(wish, self._config) not in made:  # else its engine has yet to see the Job
                by_key.setdefault(wish.order.target.key, wish)
        candidates = [_candidate(wish) for wish in by_key.values()]
        plan = schedule(candidates, [b.attempt for b in builds], self._config.builds)
        waiting = dict(plan.waiting)
        for key in plan.start:
            refusal = self._create(by_key[key])
            if refusal:
                waiting[key] = refusal
        return waiting

    def _create(self, wish: Wish) -> str:
        """Create the Job. What the API server said when it would not, else nothing."""
        order = wish.order
        place, name = _place(wish, self._config)
        try:
            self._kube.create(JOB, build_job(order, self._config))
        except AlreadyExistsError:
            return f"Job {place}/{name} exists and is not the operator's: delete it"
        except (ForbiddenError, InvalidError, NotFoundError) as error:
            log.warning("build of %s refused: %s", order.target.key[:12], error)
            return f"the Job was refused in namespace {place}: {error.message}"
        log.info("started Job %s/%s", place, name)
        return ""


def _candidate(wish: Wish) -> Candidate:
    target = wish.order.target
    return Candidate(
        key=target.key,
        architecture=str(target.architecture),
        first=wish.first,
        since=wish.since,
        engine="/".join(wish.order.engine.id),
    )


def _place(wish: Wish, config: Config) -> tuple[str, str]:
    """Namespace and name of the Job that would be made."""
    order = wish.order
    place = build_namespace(order.engine, order.target, config)
    return place, job_name(order.target.key, order.number)


def _unwanted(build: Build, options: Container[str] | None) -> str:
    """Why a Job is to be deleted, or nothing. `options`: those that engines want its key with."""
    attempt = build.attempt
    if options is None:
        return "no engine wants it any more"
    if attempt.blocked and attempt.options not in options and UNKNOWN_OPTIONS not in options:
        # Else an edit that would mend it could never take effect.
        return f"it cannot start ({attempt.reason}), and what it was made with was changed since"
    return ""
