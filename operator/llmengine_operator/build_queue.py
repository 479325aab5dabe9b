"""Build Jobs of the whole cluster: started in order, within limits, and deleted when unwanted.

Engines put their wishes here; one pass at a time turns them into Jobs. The Jobs in the API server
are the truth: this memory is made anew by passing over every engine once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from llmengine_operator.builds import Candidate, schedule
from llmengine_operator.config import Config
from llmengine_operator.kinds import JOB
from llmengine_operator.kube import Kube
from llmengine_operator.kube_errors import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
)
from llmengine_operator.observation import AttemptState
from llmengine_operator.plan import Decision, Wish
from llmengine_operator.read_builds import Build, read_builds
from llmengine_operator.resources.build_job import build_job, build_namespace
from llmengine_operator.resources.pod import owner_reference

log = logging.getLogger(__name__)

EngineId = tuple[str, str]


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
        self._wishes: dict[EngineId, tuple[Wish, ...]] = {}
        self._keys: dict[EngineId, frozenset[str] | None] = {}
        self._expected: set[EngineId] = set()
        self._waiting: dict[str, str] = {}

    def expect(self, engines: Iterable[EngineId]) -> None:
        """Engines that exist and were not passed over yet: until then no Job is unwanted."""
        with self._lock:
            self._expected |= set(engines) - self._keys.keys()

    def tell(self, engine: EngineId, decision: Decision) -> bool:
        """What an engine wants now. Whether that is news."""
        with self._lock:
            self._expected.discard(engine)
            before = _identities(self._wishes.get(engine, ())), self._keys.get(engine)
            self._wishes[engine] = decision.wishes
            self._keys[engine] = decision.keys
            return before != (_identities(decision.wishes), decision.keys)

    def forget(self, engine: EngineId) -> None:
        """The engine is gone."""
        with self._lock:
            self._expected.discard(engine)
            self._wishes.pop(engine, None)
            self._keys.pop(engine, None)

    def waiting(self) -> Mapping[str, str]:
        """For each key that waits for its turn, a sentence."""
        with self._lock:
            return dict(self._waiting)

    def engines_of(self, key: str) -> list[EngineId]:
        """Who wants a key."""
        with self._lock:
            return [engine for engine, keys in self._keys.items() if keys and key in keys]

    def run(self, now: datetime) -> Outcome:
        """One pass: start what may start, delete what nobody wants. Raises KubeError."""
        builds = self._read(now)
        with self._lock:
            wishes = [wish for many in self._wishes.values() for wish in many]
            known = [keys for keys in self._keys.values() if keys is not None]
            complete = not self._expected and len(known) == len(self._keys)
        if complete:
            builds = self._delete_unwanted(builds, frozenset[str]().union(*known))
        builds = self._delete_superseded(builds)
        self._share(builds, wishes)
        waiting = self._start([wish for wish in wishes if wish.not_before <= now], builds)
        with self._lock:
            before, self._waiting = self._waiting, waiting
        changed = {key for key in {*before, *waiting} if before.get(key) != waiting.get(key)}
        later = [(w.not_before - now).total_seconds() for w in wishes if w.not_before > now]
        told = frozenset(engine for key in changed for engine in self.engines_of(key))
        return Outcome(told, min(later, default=None))

    def _read(self, now: datetime) -> list[Build]:
        if not self._config.watch_namespaces:
            return read_builds(self._kube, None, {}, now)
        places = sorted({*self._config.watch_namespaces, self._config.builds.namespace})
        return [build for place in places for build in read_builds(self._kube, place, {}, now)]

    def _delete_unwanted(self, builds: Sequence[Build], wanted: frozenset[str]) -> list[Build]:
        """A Job that no engine wants any more ends at once: it holds a node."""
        kept = []
        for build in builds:
            if build.attempt.key in wanted:
                kept.append(build)
            else:
                self._delete(build, "no engine wants it any more")
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

    def _share(self, builds: Sequence[Build], wishes: Sequence[Wish]) -> None:
        """Engines of one namespace that want one Job each own it: it ends with the last of them."""
        for wish in wishes:
            engine, target = wish.order.engine, wish.order.target
            if target.scope.is_cluster:
                continue
            for build in builds:
                owners = build.job["metadata"].get("ownerReferences", [])
                same_place = build.attempt.namespace == engine.namespace
                if not same_place or build.attempt.key != target.key or not build.attempt.active:
                    continue
                if any(owner["uid"] == engine.uid for owner in owners):
                    continue
                # A manager of its own, so that each engine's reference stands by itself.
                self._kube.apply(
                    JOB,
                    {
                        "metadata": {
                            "name": build.attempt.name,
                            "namespace": build.attempt.namespace,
                            "ownerReferences": [owner_reference(engine, controller=False)],
                        }
                    },
                    manager=f"llmengine-{engine.uid}",
                )

    def _start(self, due: Sequence[Wish], builds: Sequence[Build]) -> dict[str, str]:
        """Make the Jobs whose turn it is; for the others, what they wait for."""
        by_key: dict[str, Wish] = {}
        for wish in sorted(due, key=lambda w: (not w.first, w.since)):
            by_key.setdefault(wish.order.target.key, wish)
        candidates = [
            Candidate(key, str(wish.order.target.architecture), wish.first, wish.since)
            for key, wish in by_key.items()
        ]
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
        job = build_job(order, self._config)
        place = build_namespace(order.engine, order.target, self._config)
        try:
            self._kube.create(JOB, job)
        except AlreadyExistsError:
            return ""
        except (ForbiddenError, InvalidError, NotFoundError) as error:
            log.warning("build of %s refused: %s", order.target.key[:12], error)
            return f"the Job was refused in namespace {place}: {error.message}"
        log.info("started Job %s/%s", place, job["metadata"]["name"])
        return ""


def _identities(wishes: Iterable[Wish]) -> list[object]:
    return [wish.identity for wish in wishes]
