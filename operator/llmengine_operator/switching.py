"""When architectures change from one engine to the next: all of them in one pass, or none.

Pure. Clients reach every architecture through one Service: half a switch would be two models under
one name. The first engines of all need not wait for one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmengine.api.v1alpha1 import EngineState, ServingStatus
from llmengine_operator.decision import TargetPlan
from llmengine_operator.observation import Engine
from llmengine_operator.reasons import Reason


def switched_together(plans: Sequence[TargetPlan], engine: Engine) -> tuple[TargetPlan, ...]:
    """The plans, in which nothing new is served as long as one has to be waited for."""
    before = {row.architecture: row for row in engine.status.serving}
    others = [p for p in plans if (row := _row(p, before)) and row.key not in p.target.keys]
    waited_for = [p for p in plans if _is_waited_for(p, before)]
    if not others or not waited_for:
        return tuple(plans)
    names = ", ".join(str(plan.target.architecture) for plan in waited_for)
    return tuple(_held(plan, _row(plan, before), names) for plan in plans)


def _row(plan: TargetPlan, before: dict[str, ServingStatus]) -> ServingStatus | None:
    return before.get(str(plan.target.architecture))


def _is_waited_for(plan: TargetPlan, before: dict[str, ServingStatus]) -> bool:
    """Required ones; else those that serve now. What fails for good and never served holds nothing
    back.
    """
    if plan.row.state is EngineState.CACHED:
        return False
    row = _row(plan, before)
    if row is None:
        return plan.target.required and not plan.stalled
    return plan.target.required or plan.target.candidate.nodes > 0 or row.ready_replicas > 0


def _held(plan: TargetPlan, row: ServingStatus | None, names: str) -> TargetPlan:
    if plan.serving is None or (row is not None and row.key == plan.serving.key):
        return plan
    message = f"is in the store; all architectures switch at once, when {names} can"
    said = {"reason": Reason.WAITING_FOR_ENGINES, "message": message}
    return replace(plan, serving=row, row=plan.row.model_copy(update=said), image_waits=False)
