"""The frame of every pass: observe, decide, carry out, report.

Any pass may run again at any time.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from llmengine.api.v1alpha1 import Accelerator, LLMEngineStatus
from llmengine_operator.apply import Applier
from llmengine_operator.build_queue import BuildQueue
from llmengine_operator.catalog import Catalog, EngineStore
from llmengine_operator.conditions import ConditionType, Finding, find, set_conditions, summary
from llmengine_operator.config import Config
from llmengine_operator.decision import Decision
from llmengine_operator.kinds import LLMENGINE, NODE
from llmengine_operator.kube import Kube
from llmengine_operator.kube_errors import ConflictError, NotFoundError
from llmengine_operator.labels import Annotation, Label
from llmengine_operator.node_book import NodeBook
from llmengine_operator.observation import Found, Observation
from llmengine_operator.observe import Observer
from llmengine_operator.parse import parse_engine
from llmengine_operator.plan import decide, remembered_keys
from llmengine_operator.reasons import Reason
from llmengine_operator.report import report
from llmengine_operator.rollout import image_rolls
from llmengine_operator.rollouts import RolloutGate
from llmengine_operator.scaling import undecided
from llmengine_operator.status import StatusWriter
from llmengine_operator.targets import Problem

log = logging.getLogger(__name__)

Key = tuple[str, str]
# The key of the pass over all build Jobs. No namespace is empty.
BUILDS: Key = ("", "builds")
# While a rollout runs its pods wake us; this is for what no watch tells.
ROLLOUT_POLL_SECONDS = 30.0
# Autoscalers are not watched: their status changes with every measurement. The first says whether
# they get any.
AUTOSCALER_POLL_SECONDS = 30.0
AT_ONCE = 0.0


@dataclass(frozen=True)
class Known:
    """What an engine was last seen to run with; None until its runtime has been read."""

    runtime: str
    accelerator: Accelerator | None


def utc_now() -> datetime:
    return datetime.now(UTC)


class Reconciler:
    """Passes over engines, and over the build Jobs. Called by several worker threads.

    One key is never passed over by two workers at a time: the work queue sees to it.
    """

    def __init__(
        self,
        kube: Kube,
        config: Config,
        enqueue: Callable[[Key], None],
        *,
        store: EngineStore,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._kube = kube
        self._config = config
        self._enqueue = enqueue
        self._now = now
        self._gate = RolloutGate(config.rollouts.max_concurrent)
        self._queue = BuildQueue(kube, config)
        self._catalog = Catalog(store, config.store.conditional_writes, now)
        self._nodes = NodeBook()
        self._observer = Observer(
            kube,
            catalog=self._catalog,
            queue=self._queue,
            nodes=self._nodes,
            config=config,
            now=now,
        )
        self._applier = Applier(kube)
        self._status = StatusWriter(kube)
        self.wake = Wake(self._queue, enqueue, self._nodes, self._known_engines)
        self._runtimes: dict[Key, Known] = {}

    def start(self) -> None:
        """Put every engine on the queue. Before that no Job can be called unwanted."""
        self._nodes.load(lambda: self._kube.list(NODE))
        spaces: Iterable[str | None] = self._config.watch_namespaces or (None,)
        keys = [
            (obj["metadata"]["namespace"], obj["metadata"]["name"])
            for space in spaces
            for obj in self._kube.list(LLMENGINE, space, metadata_only=True)
        ]
        self._queue.expect(keys)
        self._gate.expect(keys)
        for key in keys:
            self._enqueue(key)
        self._enqueue(BUILDS)

    def reconcile(self, key: Key) -> float | None:
        """One pass. In how many seconds the next is due; None when nothing is to come.

        Raises whatever hindered it: the queue tries again with back-off.
        """
        if key == BUILDS:
            outcome = self._queue.run(self._now())
            for engine in outcome.engines:
                self._enqueue(engine)
            return outcome.next_due
        try:
            return self._engine(key)
        finally:
            if self._gate.seen(key):
                self._next_rollout()

    def _known_engines(self) -> dict[Key, Known]:
        return dict(self._runtimes)

    def _engine(self, key: Key) -> float | None:
        try:
            obj = self._kube.get(LLMENGINE, *key)
        except NotFoundError:
            self._gone(key)
            return None
        if "deletionTimestamp" in obj["metadata"]:
            self._gone(key)
            return None
        try:
            engine = parse_engine(obj)
        except ValidationError as error:
            self._invalid(obj, error)
            return None
        self._runtimes[key] = Known(engine.spec.runtime, None)
        observation = self._observer.observe(engine)
        if isinstance(observation.runtime, Found):
            accelerator = observation.runtime.value.spec.accelerator
            self._runtimes[key] = Known(engine.spec.runtime, accelerator)
        decision = self._decide(observation)
        if self._queue.tell(engine, decision):
            self._enqueue(BUILDS)
        applied = self._applier.apply(observation, decision.actions)
        after = report(
            observation,
            decision,
            applied=applied.deployments,
            refused=applied.refused,
            now=self._now(),
        )
        try:
            self._status.write(obj["metadata"], engine.status, after)
        except (ConflictError, NotFoundError):
            return AT_ONCE  # it was changed since it was read, or is gone
        if not image_rolls(after.serving, observation.pods) and self._gate.leave(key):
            self._next_rollout()
        return self._due(observation, decision, applied.refused or decision.problem, after)

    def _gone(self, key: Key) -> None:
        self._runtimes.pop(key, None)
        self._queue.forget(key)
        self._leave_gate(key)
        self._enqueue(BUILDS)

    def _leave_gate(self, key: Key) -> None:
        left, gave_up = self._gate.leave(key), self._gate.give_up(key)
        if left or gave_up:
            self._next_rollout()

    def _invalid(self, obj: Mapping[str, Any], error: ValidationError) -> None:
        """Stored under an older CRD, or by another release: say so and leave all else alone."""
        metadata = obj["metadata"]
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        finding = Finding(
            ConditionType.STALLED, True, Reason.SPEC_INVALID, f"spec.{where}: {first['msg']}"
        )
        try:
            before = LLMEngineStatus.model_validate(obj.get("status", {}))
        except ValidationError:
            before = LLMEngineStatus()
        key = (metadata["namespace"], metadata["name"])
        self._leave_gate(key)
        if self._queue.tell_unreadable(key, remembered_keys(metadata["generation"], before)):
            self._enqueue(BUILDS)
        after = before.model_copy(
            update={
                "observed_generation": metadata["generation"],
                "conditions": set_conditions(
                    before.conditions,
                    summary(stalled=finding, reconciling=None, done=finding),
                    metadata["generation"],
                    self._now(),
                ),
            }
        )
        self._status.write(metadata, before, after)

    def _decide(self, observation: Observation) -> Decision:
        """The plan. It follows a runtime's new image only with a place at the gate."""
        engine = observation.engine
        decision = decide(observation, self._config, self._now())
        if image_rolls(engine.status.serving, observation.pods):
            self._gate.resume(engine.id)
        waits = decision.problem is None and any(plan.image_waits for plan in decision.plans)
        if waits and self._gate.enter(engine.id):
            may_roll = replace(observation, may_roll_image=True)
            return decide(may_roll, self._config, self._now())
        if waits:
            return replace(decision, turn=self._gate.turn(engine.id))
        if self._gate.give_up(engine.id):
            self._next_rollout()
        return decision

    def _next_rollout(self) -> None:
        """A place at the gate is free: the next who wait for it look again."""
        for key in self._gate.next_in_line():
            self._enqueue(key)

    def _due(
        self,
        observation: Observation,
        decision: Decision,
        problem: Problem | None,
        after: LLMEngineStatus,
    ) -> float:
        """Resync with jitter, or sooner where something is known to be about to change."""
        now = self._now()
        resync = self._config.resync_seconds
        due = [resync * random.uniform(0.9, 1.1)]
        due += [p.look_again.total_seconds() for p in decision.plans if p.look_again]
        if problem is not None and problem.look_again is not None:
            due.append(problem.look_again.total_seconds())
        # A wish that may start waits for its turn, of which the build queue tells.
        due += [(w.not_before - now).total_seconds() for w in decision.wishes if w.not_before > now]
        if find(after.conditions, ConditionType.RECONCILING) is not None:
            due.append(ROLLOUT_POLL_SECONDS)
        if undecided(observation):
            due.append(AUTOSCALER_POLL_SECONDS)
        return max(min(due), 1.0)


class Wake:
    """What watches tell: which engines to look at again."""

    def __init__(
        self,
        queue: BuildQueue,
        enqueue: Callable[[Key], None],
        nodes: NodeBook,
        engines: Callable[[], Mapping[Key, Known]],
    ) -> None:
        self._queue = queue
        self._enqueue = enqueue
        self._nodes = nodes
        self._engines = engines

    def engine(self, namespace: str, name: str) -> None:
        """An LLMEngine came, changed or went."""
        self._enqueue((namespace, name))

    def runtime(self, name: str) -> None:
        """An EngineRuntime came, changed or went."""
        for key, known in self._engines().items():
            if known.runtime == name:
                self._enqueue(key)

    def node(self, name: str, obj: Mapping[str, Any] | None) -> None:
        """A node came, changed or, with None, went. Most changes concern nobody."""
        before, after = self._nodes.tell(name, obj)
        if before == after:
            return
        with_gpus = any(node is not None and node.offers_gpus for node in (before, after))
        for key, known in self._engines().items():
            if with_gpus or known.accelerator is not Accelerator.NVIDIA:
                self._enqueue(key)

    def child(
        self,
        kind: str,
        namespace: str,
        labels: Mapping[str, str],
        annotations: Mapping[str, str],
    ) -> None:
        """An object of ours came, changed or went."""
        if Label.ENGINE in labels:
            self._enqueue((namespace, labels[Label.ENGINE]))
        elif Annotation.KEY in annotations:
            log.debug("%s of %s", kind, annotations[Annotation.KEY][:12])
            self._enqueue(BUILDS)
            for key in self._queue.engines_of(annotations[Annotation.KEY]):
                self._enqueue(key)
