"""What to do for one engine: a pure function of an Observation, the configuration and the time.

`decide` says what ought to be; `report` says what is, after the decision was carried out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from llmengine.api.v1alpha1 import (
    EngineState,
    EngineStatus,
    LLMEngineStatus,
    Progress,
    ServingStatus,
)
from llmengine.architecture import Architecture
from llmengine.key import difference
from llmengine_operator.builds import Ask, Assessment, assess, options_digest
from llmengine_operator.conditions import rfc3339
from llmengine_operator.config import Config
from llmengine_operator.labels import MANAGED, Label
from llmengine_operator.observation import (
    Engine,
    Found,
    KubeObject,
    Observation,
    Runtime,
    StoredEngine,
    Unreadable,
)
from llmengine_operator.reasons import Reason
from llmengine_operator.resources.autoscaler import autoscaler
from llmengine_operator.resources.build_job import Order
from llmengine_operator.resources.deployment import Serving, deployment
from llmengine_operator.resources.service import services
from llmengine_operator.targets import UNWATCHED_POLL, Problem, Target, targets

PROGRESS_POLL = timedelta(seconds=5)
# As soon as the garbage collector has come round.
LEFTOVER_POLL = timedelta(seconds=2)
UNKNOWN_OPTIONS = ""
# Of one entry of status.engines[].changed: two long URIs are longer.
_CHANGE = 1024


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
class Decision:
    """What ought to be. `problem` set: nothing new can be planned, what serves is left alone.

    `keys` are all keys that the engine wants, built or not, each with the digest of the options
    that it would be built with.
    """

    problem: Problem | None = None
    plans: tuple[TargetPlan, ...] = ()
    actions: tuple[Action, ...] = ()
    wishes: tuple[Wish, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    handled_request: str | None = None


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


def decide(observation: Observation, config: Config, now: datetime) -> Decision:
    """The plan for one engine."""
    engine = observation.engine
    wanted = targets(engine, observation.runtime, observation.nodes, observation.claim, config)
    handled = engine.status.last_handled_request
    if isinstance(wanted, Problem):
        request = (engine.requested_at or handled) if wanted.stalled else handled
        keys = remembered_keys(engine.generation, engine.status)
        return Decision(wanted, keys=keys, handled_request=request)
    if not isinstance(observation.runtime, Found):
        raise TypeError("an engine has targets only when its runtime was read")
    this = _Pass(observation, observation.runtime.value, config, now)
    options = options_digest(engine.spec.build, this.runtime.spec)
    keys = {target.key: options for target in wanted}
    if engine.spec.suspend:
        return Decision(
            Problem(Reason.SUSPENDED, "spec.suspend is true: nothing is changed", stalled=False),
            plans=tuple(_suspended(this, target) for target in wanted),
            keys=keys,
            handled_request=handled,
        )
    steps = [_plan_target(this, target) for target in wanted]
    plans = tuple(plan for plan, _ in steps)
    wishes = tuple(wish for _, wish in steps if wish is not None)
    desired = _desired(this, plans)
    taken = _taken_name(this, desired)
    return Decision(
        taken,
        plans=plans,
        actions=() if taken else tuple(_actions(this, desired)),
        wishes=wishes,
        keys=keys,
        handled_request=_handled(this, wishes),
    )


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
    """The first check that answers decides: the store, then what keeps a build from starting."""
    for check in (_stored, _unsupported, _no_node, _unsafe_store):
        if (plan := check(this, target)) is not None:
            return plan, None
    return _to_build(this, target)


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
    if target.nodes:
        return None
    message = (
        f"no node of architecture {target.architecture} that the engine's nodeSelector and"
        " tolerations allow: the build starts when one joins"
    )
    row = _row(target, EngineState.NO_NODE, Reason.NO_NODE, message)
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
    row = EngineStatus(
        key=manifest.key,
        architecture=str(target.architecture),
        state=EngineState.CACHED,
        reason=Reason.CACHED,
        # What it differed in stays readable after the switch.
        changed=before.changed if before else [],
        size_bytes=manifest.size_bytes,
        build_seconds=round(sum(manifest.seconds.values())),
        node_count=target.nodes,
    )
    switched = ServingStatus(
        architecture=str(target.architecture),
        key=manifest.key,
        manifest_digest=stored.digest,
        image=image,
        scope_namespace=target.scope.namespace,
        size_bytes=manifest.size_bytes,
    )
    return TargetPlan(target, row, switched, stalled=False, image_waits=waits)


def _to_build(this: _Pass, target: Target) -> tuple[TargetPlan, Wish | None]:
    engine, serving = this.engine, _serving(this, target)
    ask = Ask(
        key=target.key,
        options=options_digest(engine.spec.build, this.runtime.spec),
        tries=engine.spec.build.attempts,
        request=engine.unhandled_request,
        edited=engine.generation != engine.status.observed_generation,
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
        node_count=target.nodes,
        **more,
    )


def _previous_row(this: _Pass, target: Target) -> EngineStatus | None:
    return next((row for row in this.engine.status.engines if row.key == target.key), None)


def _serving(this: _Pass, target: Target) -> ServingStatus | None:
    name = str(target.architecture)
    return next((row for row in this.engine.status.serving if row.architecture == name), None)


def _desired(this: _Pass, plans: Iterable[TargetPlan]) -> list[Apply | ApplyDeployment]:
    """Every object that ought to be. Services stand from the first pass on."""
    options = this.engine.spec.serving
    scaled = options.autoscaling
    first = scaled.min_replicas if scaled else 1
    initial = first if options.replicas is None else options.replicas
    objects: list[Apply | ApplyDeployment] = []
    architectures: list[Architecture] = []
    for plan in plans:
        row = plan.serving
        if row is None:
            continue
        architectures.append(plan.target.architecture)
        serving = Serving(
            architecture=plan.target.architecture,
            key=row.key,
            manifest_digest=row.manifest_digest,
            image=row.image,
            scope_namespace=row.scope_namespace,
            size_bytes=row.size_bytes,
        )
        objects.append(
            ApplyDeployment(
                deployment(this.engine, this.runtime.spec, serving, this.config), initial
            )
        )
        if scaled:
            objects.append(Apply(autoscaler(this.engine, scaled, plan.target.architecture)))
    objects.extend(Apply(service) for service in services(this.engine, architectures))
    return objects


def _actions(this: _Pass, desired: Iterable[Apply | ApplyDeployment]) -> Iterable[Action]:
    engine, children = this.engine, this.observation.children
    replicas = engine.spec.serving.replicas
    keep = set()
    for action in desired:
        identity = (action.object["kind"], action.object["metadata"]["name"])
        keep.add(identity)
        yield action
        child = children.get(identity)
        if not isinstance(action, ApplyDeployment) or not isinstance(child, Found):
            continue
        if replicas is not None and child.value["spec"].get("replicas") != replicas:
            yield Scale(engine.namespace, identity[1], replicas)
    for (kind, name), child in children.items():
        if (kind, name) not in keep and isinstance(child, Found) and _owned(child.value, engine):
            yield Delete(kind, engine.namespace, name, child.value["metadata"]["uid"])


def _taken_name(this: _Pass, desired: Iterable[Apply | ApplyDeployment]) -> Problem | None:
    """An object of a name that we need, but somebody else's, is not taken over."""
    engine = this.engine
    for action in desired:
        kind, name = action.object["kind"], action.object["metadata"]["name"]
        child = this.observation.children.get((kind, name))
        if not isinstance(child, Found):
            continue
        if _owned(child.value, engine) or _orphaned(child.value, engine):
            continue
        place = f"{kind} {engine.namespace}/{name}"
        if _leftover(child.value, engine):
            return Problem(
                Reason.NAME_TAKEN,
                f"{place} of a deleted engine of this name is not gone yet",
                stalled=False,
                look_again=LEFTOVER_POLL,
            )
        return Problem(
            Reason.NAME_TAKEN,
            f"{place} exists and does not belong to this engine: rename the engine, or delete"
            " that object",
            look_again=UNWATCHED_POLL,
        )
    return None


def _owned(obj: KubeObject, engine: Engine) -> bool:
    references = obj["metadata"].get("ownerReferences", [])
    return any(reference["uid"] == engine.uid for reference in references)


def _leftover(obj: KubeObject, engine: Engine) -> bool:
    """Of an engine of this name that was deleted a moment ago: the garbage collector comes."""
    references = obj["metadata"].get("ownerReferences", [])
    return any(
        (reference["kind"], reference["name"]) == ("LLMEngine", engine.name)
        for reference in references
    )


def _orphaned(obj: KubeObject, engine: Engine) -> bool:
    """Left by an engine of this name that was deleted with --cascade=orphan: taken back."""
    labels = obj["metadata"].get("labels", {})
    ours = labels.get(Label.ENGINE) == engine.name and labels.items() >= MANAGED.items()
    return ours and not obj["metadata"].get("ownerReferences")
