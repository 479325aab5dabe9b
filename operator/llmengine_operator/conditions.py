"""Conditions by the rules of kstatus: Reconciling and Stalled are abnormal-true, never both.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from llmengine.api.schema import Condition

MESSAGE_BYTES = 4096


class ConditionType(StrEnum):
    READY = "Ready"
    """The current generation serves in full."""
    AVAILABLE = "Available"
    """Some pod of any generation answers."""
    RECONCILING = "Reconciling"
    """Work remains. Absent otherwise."""
    STALLED = "Stalled"
    """No progress is expected until somebody acts. Absent otherwise."""
    ENGINES_BUILT = "EnginesBuilt"
    """Every engine that the spec asks for is in the store."""


@dataclass(frozen=True)
class Finding:
    """A condition's content, before its time is known."""

    type: ConditionType
    status: bool | None
    reason: str
    message: str = ""


def set_conditions(
    previous: Sequence[Condition], findings: Iterable[Finding], generation: int, now: datetime
) -> list[Condition]:
    """The findings as conditions; a time moves only when its status does."""
    before = {condition.type: condition for condition in previous}
    return [_condition(before.get(f.type), f, generation, now) for f in findings]


def _condition(
    before: Condition | None, finding: Finding, generation: int, now: datetime
) -> Condition:
    status = {True: "True", False: "False", None: "Unknown"}[finding.status]
    same = before is not None and before.status == status
    return Condition(
        type=finding.type,
        status=status,
        observed_generation=generation,
        last_transition_time=before.last_transition_time if before and same else rfc3339(now),
        reason=finding.reason,
        message=finding.message[:MESSAGE_BYTES],
    )


def find(conditions: Iterable[Condition], type_: ConditionType) -> Condition | None:
    """The condition of a type, if it is set."""
    return next((c for c in conditions if c.type == type_), None)


def rfc3339(moment: datetime) -> str:
    """A time as the API server writes it, in whole seconds of UTC."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def summary(
    *, stalled: Finding | None, reconciling: Finding | None, done: Finding
) -> list[Finding]:
    """Ready, with at most one companion: False with Stalled, Unknown with Reconciling."""
    if stalled is not None:
        return [
            Finding(ConditionType.READY, False, stalled.reason, stalled.message),
            Finding(ConditionType.STALLED, True, stalled.reason, stalled.message),
        ]
    if reconciling is not None:
        return [
            Finding(ConditionType.READY, None, reconciling.reason, reconciling.message),
            Finding(ConditionType.RECONCILING, True, reconciling.reason, reconciling.message),
        ]
    return [done]
