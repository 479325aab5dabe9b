"""What to do for one engine: a pure function of an Observation, the configuration and the time.

`decide` says what ought to be; `report` says what is, after the decision was carried out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from llmengine.api.v1alpha1 import (
    EngineState,
    EngineStatus,
    LLMEngineStatus,
    Progress,
    ServingStatus,
)
from llmengine.key import difference
from llmengine_operator.architectures import SETTLE
from llmengine_operator.builds import Ask, Assessment, assess, options_digest
from llmengine_operator.children import actions, desired, taken_name
from llmengine_operator.conditions import rfc3339
from llmengine_operator.config import Config
from llmengine_operator.decision import UNKNOWN_OPTIONS, Decision, TargetPlan, Wish
from llmengine_operator.drain import grace_seconds
from llmengine_operator.observation import (
    Engine,
    Found,
    Observation,
    Runtime,
    StoredEngine,
    Unreadable,
)
from llmengine_operator.reasons import Reason
from llmengine_operator.resources.build_job import Order
from llmengine_operator.rollout import replaced
from llmengine_operator.switching import switched_together
from llmengine_operator.targets import (
    UNWATCHED_POLL,
    Problem,
    Target,
    skipped_nodes,
    small_nodes,
    targets,
)

PROGRESS_POLL = timedelta(seconds=5)
_GONE = "no node has this architecture any more: it is given up after 24 h without one"
# Of one entry of status.engines[].changed: two long URIs are longer.
_CHANGE = 1024


@dataclass(frozen=True)
class _Pass:
    """What every step of a decision looks at."""

    observation: Observation
    runtime: Runtime
    config: Config
    now: datetime

    @property
    def engine(self) -> Engine:
        return self.observation.engine

    @cached_property
    def options(self) -> str:
        """Digest of what its builds are given beside the engine."""
        builds = self.config.builds
        return options_digest(self.engine.spec.build, self.runtime.spec, builds.priority_class_name)


def decide(observation: Observation, config: Config, now: datetime) -> Decision:
    """The plan for one engine."""
    engine = observation.engine
    read = engine, observation.runtime, observation.nodes
    wanted = targets(*read, observation.claim, config, now=now)
    skipped = skipped_nodes(*read, config)
    handled = engine.status.last_handled_request
    if isinstance(wanted, Problem):
        request = (engine.requested_at or handled) if wanted.stalled else handled
        keys = remembered_keys(engine.generation, engine.status)
        return Decision(wanted, skipped=skipped, keys=keys, handled_request=request)
    if not isinstance(observation.runtime, Found):
        raise TypeError("an engine has targets only when its runtime was read")
    this = _Pass(observation, observation.runtime.value, config, now)
    keys = {target.key: this.options for target in wanted}
    if engine.spec.suspend:
        return Decision(
            Problem(Reason.SUSPENDED, "spec.suspend is true: nothing is changed", stalled=False),
            plans=tuple(_suspended(this, target) for target in wanted),
            retiring=_unwanted(this, wanted),
            skipped=skipped,
            keys=keys,
            handled_request=handled,
        )
    steps = [_plan_target(this, target) for target in wanted]
    plans = switched_together([plan for plan, _ in steps], engine)
    wishes = tuple(wish for _, wish in steps if wish is not None)
    retiring = () if _serves_as_wanted(this, wanted) else _unwanted(this, wanted)
    served = [plan.serving for plan in plans if plan.serving is not None]
    small = small_nodes(engine, this.runtime, observation.nodes, config, served)
    objects = desired(observation, this.runtime.spec, served, config)
    architectures = [target.architecture for target in wanted]
    taken = taken_name(observation, objects)
    return Decision(
        taken,
        plans=plans,
        retiring=retiring,
        skipped=(*skipped, *small),
        actions=() if taken else tuple(actions(observation, objects, architectures, retiring)),
        wishes=wishes,
        keys=keys,
        handled_request=_handled(this, wishes),
    )


def _unwanted(this: _Pass, wanted: Sequence[Target]) -> tuple[ServingStatus, ...]:
    """What serves and is for none of the wanted architectures."""
    names = {str(target.architecture) for target in wanted}
    return tuple(row for row in this.engine.status.serving if row.architecture not in names)


def _serves_as_wanted(this: _Pass, wanted: Sequence[Target]) -> bool:
    """Some architecture serves what the current generation asks for, so others may go."""
    keys = {str(target.architecture): target.keys for target in wanted}
    return any(
        row.key in keys.get(row.architecture, ()) and (_of_its_own(row) > 0 or row.replicas == 0)
        for row in this.engine.status.serving
    )


def _of_its_own(row: ServingStatus) -> int:
    """Ready pods without those of what it replaces."""
    return row.ready_replicas - (row.replaces.ready_replicas if row.replaces else 0)


def remembered_keys(generation: int, status: LLMEngineStatus) -> dict[str, str]:
    """What an engine wanted last, where nobody can tell what it wants now.

    Its builds go on: a runtime that was deleted by mistake must not cost hours of work. An edited
    spec wants something else.
    """
    if generation != status.observed_generation:
        return {}
    return {row.key: UNKNOWN_OPTIONS for row in status.engines}


def _handled(this: _Pass, wishes: Iterable[Wish]) -> str | None:
    """A request is handled once a Job answers it, or nothing had to be tried again."""
    request = this.engine.unhandled_request
    waiting = {wish.order.target.key for wish in wishes if wish.order.request}
    answered = {a.key for a in this.observation.attempts if a.active or a.request == request}
    if request and waiting <= answered:
        return request
    return this.engine.status.last_handled_request


def _suspended(this: _Pass, target: Target) -> TargetPlan:
    row = _previous_row(this, target) or _row(target, EngineState.PENDING, Reason.SUSPENDED)
    return TargetPlan(target, row, _serving(this, target), stalled=False)


def _plan_target(this: _Pass, target: Target) -> tuple[TargetPlan, Wish | None]:
    """The first check that answers decides: is it to be served, is it in the store, and then what
    keeps a build from starting.
    """
    for check in (_settling, _absent, _stored, _unsupported, _no_node, _unsafe_store):
        if (plan := check(this, target)) is not None:
            return plan, None
    return _to_build(this, target)


def _settling(this: _Pass, target: Target) -> TargetPlan | None:
    """It has just been seen, and may be gone in a minute."""
    seen = target.candidate.seen
    if seen is None:
        return None
    counts = seen + SETTLE
    message = f"is new in the cluster: it counts from {counts:%H:%M:%S} UTC on, if it stays"
    row = _row(target, EngineState.PENDING, Reason.ARCHITECTURE_SETTLING, message)
    wait = max(counts - this.now, timedelta(seconds=1))
    return TargetPlan(target, row, None, stalled=False, look_again=wait)


def _absent(this: _Pass, target: Target) -> TargetPlan | None:
    """Nobody asked for it by name, its nodes have gone, and it serves nothing."""
    candidate, serving = target.candidate, _serving(this, target)
    if target.required or candidate.nodes or candidate.expected or serving is not None:
        return None
    row = _row(target, EngineState.NO_NODE, Reason.NO_NODE, _GONE)
    return TargetPlan(target, row, None, stalled=False)


def _stored(this: _Pass, target: Target) -> TargetPlan | None:
    """It is in the store: serve it. Nobody knows: start nothing, stop nothing."""
    for key in target.keys:
        read = this.observation.manifests.get(key)
        if isinstance(read, Found):
            return _cached(this, target, read.value)
        if isinstance(read, Unreadable):
            row = _row(target, EngineState.UNKNOWN, read.reason, read.message)
            return TargetPlan(target, row, _serving(this, target), stalled=False)
    return None


def _unsupported(this: _Pass, target: Target) -> TargetPlan | None:
    if not target.unsupported:
        return None
    row = _row(target, EngineState.UNSUPPORTED, Reason.UNSUPPORTED, target.unsupported)
    return TargetPlan(target, row, _serving(this, target), stalled=True)


def _no_node(this: _Pass, target: Target) -> TargetPlan | None:
    lack = target.candidate.lack
    if lack is None:
        return None
    row = _row(target, EngineState.NO_NODE, lack.reason, lack.message)
    return TargetPlan(target, row, _serving(this, target), stalled=False)


def _unsafe_store(this: _Pass, target: Target) -> TargetPlan | None:
    unsafe = this.observation.unsafe_store
    if unsafe is None:
        return None
    row = _row(target, EngineState.PENDING, unsafe.reason, unsafe.message)
    stalled = unsafe.reason == Reason.STORE_UNSAFE
    return TargetPlan(target, row, _serving(this, target), stalled, look_again=UNWATCHED_POLL)


def _cached(this: _Pass, target: Target, stored: StoredEngine) -> TargetPlan:
    """Switch to it, unless only the image differs and another engine is rolling."""
    manifest, serving = stored.manifest, _serving(this, target)
    before = _previous_row(this, target)
    image = this.runtime.spec.image.reference
    waits = False
    if serving is not None and serving.key == manifest.key and serving.image != image:
        waits = not this.observation.may_roll_image
        image = serving.image if waits else image
    sentences = [*manifest.warnings, *([_GONE] if target.candidate.gone else [])]
    row = _row(
        target,
        EngineState.CACHED,
        Reason.CACHED,
        "; ".join(sentences),
        # What it differed in stays readable after the switch.
        changed=before.changed if before else [],
        size_bytes=manifest.size_bytes,
        build_seconds=round(sum(manifest.seconds.values())),
    ).model_copy(update={"key": manifest.key})
    switched = ServingStatus(
        architecture=str(target.architecture),
        key=manifest.key,
        manifest_digest=stored.digest,
        image=image,
        scope_namespace=target.scope.namespace,
        size_bytes=manifest.size_bytes,
        termination_grace_period_seconds=_grace(serving, stored, image),
        gpu_memory_bytes=manifest.footprint.serving_device_bytes or None,
        replaces=replaced(serving, manifest.key, image, this.observation.pods),
    )
    return TargetPlan(target, row, switched, stalled=False, image_waits=waits)


def _grace(serving: ServingStatus | None, stored: StoredEngine, image: str) -> int | None:
    """Derived anew only where pods roll anyway: for another engine or another image."""
    if serving is not None and (serving.manifest_digest, serving.image) == (stored.digest, image):
        return serving.termination_grace_period_seconds
    return grace_seconds(stored.manifest)


def _to_build(this: _Pass, target: Target) -> tuple[TargetPlan, Wish | None]:
    engine, serving = this.engine, _serving(this, target)
    ask = Ask(
        key=target.key,
        options=this.options,
        tries=engine.spec.build.attempts,
        request=engine.unhandled_request,
        edited=engine.generation != engine.status.observed_generation,
        builders=frozenset(target.candidate.builders),
    )
    attempts = [a for a in this.observation.attempts if a.key == target.key]
    verdict = assess(ask, attempts, _previous_row(this, target), this.now)
    row = _building_row(this, target, verdict)
    wish = None
    if verdict.start_at is not None:
        order = Order(
            engine=engine,
            runtime=this.runtime,
            target=target,
            options=ask.options,
            number=verdict.number,
            tries_left=verdict.tries_left,
            request=ask.request,
        )
        # A time that is past stands still, or each pass would bring news.
        due = engine.created if verdict.start_at <= this.now else verdict.start_at
        wish = Wish(order, serving is None, engine.created, due)
    look_again = verdict.look_again
    if row.state is EngineState.BUILDING:
        look_again = min(look_again or PROGRESS_POLL, PROGRESS_POLL)
    return TargetPlan(target, row, serving, verdict.stalled, look_again=look_again), wish


def _building_row(this: _Pass, target: Target, verdict: Assessment) -> EngineStatus:
    attempt = verdict.attempt
    message = verdict.message
    if verdict.reason == Reason.BUILD_QUEUED:
        message = this.observation.queue.get(target.key, verdict.message)
    progress = None
    said = this.observation.progress.get(target.key)
    if said is not None and verdict.state is EngineState.BUILDING:
        progress = Progress(phase=said.phase, percent=said.percent)
    return _row(
        target,
        verdict.state,
        verdict.reason,
        message,
        changed=_changed(this, target),
        job=f"{attempt.namespace}/{attempt.name}" if attempt else None,
        progress=progress,
        last_failure_time=rfc3339(verdict.failed_at) if verdict.failed_at else None,
    )


def _changed(this: _Pass, target: Target) -> list[str]:
    """What differs from the engine that this architecture serves: why a build runs."""
    serving = _serving(this, target)
    served = this.observation.manifests.get(serving.key) if serving else None
    if not isinstance(served, Found):
        return []
    return [text[:_CHANGE] for text in difference(served.value.manifest.factors, target.factors)]


def _row(
    target: Target, state: EngineState, reason: str, message: str = "", **more: Any
) -> EngineStatus:
    return EngineStatus(
        key=target.key,
        architecture=str(target.architecture),
        state=state,
        reason=reason,
        message=message,
        node_count=target.candidate.nodes,
        seen_time=_time(target.candidate.seen),
        gone_time=_time(target.candidate.gone),
        **more,
    )


def _time(moment: datetime | None) -> str | None:
    return rfc3339(moment) if moment is not None else None


def _previous_row(this: _Pass, target: Target) -> EngineStatus | None:
    return next((row for row in this.engine.status.engines if row.key == target.key), None)


def _serving(this: _Pass, target: Target) -> ServingStatus | None:
    name = str(target.architecture)
    return next((row for row in this.engine.status.serving if row.architecture == name), None)
