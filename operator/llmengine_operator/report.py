"""The status of an engine: what was observed and decided, as conditions that a person reads.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from llmengine.api.v1alpha1 import (
    EngineState,
    LLMEngineStatus,
    ServingStatus,
    SkippedNodes,
    Summary,
)
from llmengine.architecture import Architecture
from llmengine_operator.conditions import ConditionType, Finding, set_conditions, summary
from llmengine_operator.decision import Decision, TargetPlan, Turn
from llmengine_operator.observation import Found, KubeObject, Observation
from llmengine_operator.pods import is_active, is_ready
from llmengine_operator.reasons import Reason
from llmengine_operator.resources.deployment import deployment_name
from llmengine_operator.resources.service import url
from llmengine_operator.rollout import Rollout, pods_of, ready_of, rollout, serves
from llmengine_operator.scaling import cannot_scale
from llmengine_operator.targets import Problem


@dataclass(frozen=True)
class _Part:
    """One architecture: what was planned, and how far its Deployment is."""

    plan: TargetPlan
    rollout: Rollout | None

    @property
    def settles(self) -> bool:
        """Its architecture does not count yet."""
        return self.plan.target.candidate.seen is not None

    @property
    def failed(self) -> bool:
        return self.plan.stalled or (self.rollout is not None and self.rollout.stalled)

    @property
    def fell(self) -> bool:
        """It served, and does not any more."""
        rolls = self.rollout
        return rolls is not None and rolls.stalled and rolls.served


def report(
    observation: Observation,
    decision: Decision,
    *,
    applied: frozenset[str],
    refused: Problem | None,
    now: datetime,
) -> LLMEngineStatus:
    """The whole status.

    `applied` names the Deployments written in this pass; `refused` is what the API server said
    when it would not take an object.
    """
    problem = refused or decision.problem
    if not decision.plans:
        return _without_plans(observation, decision, problem, now)
    parts = [_part(plan, observation, applied, now) for plan in decision.plans]
    serving = [_serving_row(p, observation) for p in parts if p.plan.serving is not None]
    serving += [_counted(row, observation) for row in decision.retiring]
    counting = [part for part in parts if not part.settles]
    cached = sum(part.plan.row.state is EngineState.CACHED for part in counting)
    findings = [
        *_ready(observation, parts, problem, decision.turn),
        _available(serving, observation.pods),
        _built(counting or parts),
    ]
    return _status(observation, decision, findings, now).model_copy(
        update={
            "summary": Summary(engines=f"{cached}/{len(counting)}", replicas=_replicas(serving)),
            "engines": [part.plan.row for part in parts],
            "serving": serving,
        }
    )


def _without_plans(
    observation: Observation, decision: Decision, problem: Problem | None, now: datetime
) -> LLMEngineStatus:
    """Nothing could be planned: what serves is counted anew, rows of this spec are kept."""
    engine, status = observation.engine, observation.engine.status
    same = status.observed_generation == engine.generation
    serving = [_counted(row, observation) for row in status.serving]
    if problem is None:
        raise ValueError("a decision without plans has a problem")
    ready = Finding(ConditionType.READY, None, problem.reason, problem.message)
    findings = [
        *summary(
            stalled=ready if problem.stalled else None,
            reconciling=None if problem.stalled else ready,
            done=ready,
        ),
        _available(serving, observation.pods),
        Finding(ConditionType.ENGINES_BUILT, None, problem.reason, problem.message),
    ]
    return _status(observation, decision, findings, now).model_copy(
        update={
            "summary": Summary(
                engines=status.summary.engines if status.summary and same else "",
                replicas=_replicas(serving),
            ),
            "engines": list(status.engines) if same else [],
            "serving": serving,
        }
    )


def _counted(row: ServingStatus, observation: Observation) -> ServingStatus:
    pods = pods_of(observation.pods, Architecture.parse(row.architecture).slug)
    ready = min(sum(is_ready(pod) for pod in pods), row.replicas)
    replaces = row.replaces
    if replaces is not None and ready_of(pods, row.key, row.image):
        # Nobody may wait for a rollout that is over, whatever else hinders this engine.
        left = any(is_active(pod) and not serves(pod, row.key, row.image) for pod in pods)
        replaces = replaces if left else None
    return row.model_copy(update={"ready_replicas": ready, "replaces": replaces})


def _status(
    observation: Observation, decision: Decision, findings: Sequence[Finding], now: datetime
) -> LLMEngineStatus:
    engine = observation.engine
    return LLMEngineStatus(
        observed_generation=engine.generation,
        last_handled_request=decision.handled_request,
        url=url(engine),
        conditions=set_conditions(engine.status.conditions, findings, engine.generation, now),
        skipped_nodes=[
            SkippedNodes(reason=skipped.reason, count=skipped.count, message=skipped.message)
            for skipped in decision.skipped
        ],
    )


def _part(
    plan: TargetPlan, observation: Observation, applied: frozenset[str], now: datetime
) -> _Part:
    if plan.serving is None:
        return _Part(plan, None)
    architecture = plan.target.architecture
    name = deployment_name(observation.engine.name, architecture)
    child = observation.children.get(("Deployment", name))
    return _Part(
        plan,
        rollout(
            child.value if isinstance(child, Found) else None,
            pods_of(observation.pods, architecture.slug),
            plan.serving,
            observation.complaints,
            now,
            just_applied=name in applied,
        ),
    )


def _serving_row(part: _Part, observation: Observation) -> ServingStatus:
    row, rolls = part.plan.serving, part.rollout
    if row is None or rolls is None:
        raise ValueError("only what serves has a row")
    replaces = None if rolls.complete or rolls.moved else row.replaces
    if replaces is not None:
        pods = pods_of(observation.pods, part.plan.target.architecture.slug)
        ready = ready_of(pods, replaces.key, replaces.image)
        replaces = replaces.model_copy(update={"ready_replicas": ready})
    return row.model_copy(
        update={"replicas": rolls.replicas, "ready_replicas": rolls.ready, "replaces": replaces}
    )


def _deciding(parts: Sequence[_Part]) -> Sequence[_Part]:
    """The architectures that Ready speaks of: the required ones; unset, those that can succeed, and
    those that have.
    """
    if any(part.plan.target.required for part in parts):
        return parts
    able = [
        part
        for part in parts
        if (not part.failed or part.fell)
        and not part.settles
        and part.plan.target.candidate.nodes > 0
    ]
    return able or parts


def _ready(
    observation: Observation,
    parts: Sequence[_Part],
    problem: Problem | None,
    turn: Turn,
) -> list[Finding]:
    deciding = _deciding(parts)
    stalled = next((_trouble(part) for part in deciding if part.failed), None)
    waits = _waits(observation.engine.namespace, turn)
    work = next((f for part in deciding if (f := _work(part, waits)) is not None), None)
    if problem is not None and problem.stalled:
        stalled = Finding(ConditionType.READY, False, problem.reason, problem.message)
    if problem is not None and problem.reason == Reason.SUSPENDED and (stalled or work):
        # Suspended is neither work nor trouble: nobody reconciles, as the user asked.
        return [Finding(ConditionType.READY, None, problem.reason, problem.message)]
    if problem is not None and not problem.stalled and problem.reason != Reason.SUSPENDED:
        work = Finding(ConditionType.READY, None, problem.reason, problem.message)
    return summary(stalled=stalled, reconciling=work, done=_done(observation, parts))


def _done(observation: Observation, parts: Sequence[_Part]) -> Finding:
    pods = sum(part.rollout.ready for part in parts if part.rollout)
    if pods == 0:
        return Finding(
            ConditionType.READY, True, Reason.SCALED_TO_ZERO, "the engine is kept; no pod is wanted"
        )
    serve = "1 pod serves" if pods == 1 else f"{pods} pods serve"
    hindered = (cannot_scale(observation, part.plan.target.architecture) for part in parts)
    sentences = [f"{serve} at {url(observation.engine)}", *filter(None, hindered)]
    return Finding(ConditionType.READY, True, Reason.SERVING, "; ".join(sentences))


def _trouble(part: _Part) -> Finding:
    row = part.plan.row
    if part.plan.stalled:
        return _finding(part, row.reason, row.message)
    if part.rollout is None:
        raise ValueError("an architecture fails by its build or by its rollout")
    return _finding(part, part.rollout.reason, part.rollout.message)


def _waits(namespace: str, turn: Turn) -> str:
    """What an engine reads that a new image has not come to. Those of other namespaces may belong
    to somebody whose names are none of its business.
    """
    names = sorted("/".join(engine) for engine in turn.rolling if engine[0] == namespace)
    others = len(turn.rolling) - len(names)
    if turn.more_than:
        names.append(f"more than {turn.more_than} others")
    if others:
        names.append(
            "an engine of another namespace"
            if others == 1
            else f"{others} engines of other namespaces"
        )
    after = f", after {', '.join(names)}" if names else ""
    return f"the runtime's new image waits for its turn{after}"


def _work(part: _Part, waits: str) -> Finding | None:
    row = part.plan.row
    if not part.plan.current and not part.plan.image_waits:
        message = row.message
        if row.progress is not None:
            message = f"{row.progress.phase} {row.progress.percent} %"
        return _finding(part, row.reason, message)
    if part.plan.image_waits:
        return _finding(part, Reason.WAITING_FOR_ROLLOUT, waits)
    if part.rollout is not None and not part.rollout.complete:
        return _finding(part, part.rollout.reason, part.rollout.message)
    return None


def _finding(part: _Part, reason: str, message: str) -> Finding:
    place = str(part.plan.target.architecture)
    return Finding(ConditionType.READY, None, reason, f"{place}: {message}" if message else place)


def _available(serving: Sequence[ServingStatus], pods: Sequence[KubeObject]) -> Finding:
    """Pods that no row is about serve as well: those that a deleted engine of the name has left."""
    ready = sum(row.ready_replicas for row in serving) or sum(is_ready(pod) for pod in pods)
    if ready:
        answer = "1 pod answers" if ready == 1 else f"{ready} pods answer"
        return Finding(ConditionType.AVAILABLE, True, Reason.SERVING, answer)
    return Finding(ConditionType.AVAILABLE, False, Reason.NO_POD_READY, "no pod answers")


def _built(parts: Sequence[_Part]) -> Finding:
    missing = [part for part in parts if part.plan.row.state is not EngineState.CACHED]
    if not missing:
        return Finding(ConditionType.ENGINES_BUILT, True, Reason.CACHED)
    failed = [part for part in missing if part.plan.stalled]
    part = (failed or missing)[0]
    shown = _finding(part, part.plan.row.reason, part.plan.row.message)
    return Finding(
        ConditionType.ENGINES_BUILT, False if failed else None, shown.reason, shown.message
    )


def _replicas(serving: Sequence[ServingStatus]) -> str:
    return f"{sum(row.ready_replicas for row in serving)}/{sum(row.replicas for row in serving)}"
