"""When a status is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmengine.api.schema import Condition
from llmengine.api.v1alpha1 import LLMEngineStatus
from llmengine_operator.kinds import Kind
from llmengine_operator.kube import FIELD_MANAGER, KubeObject
from llmengine_operator.status import StatusWriter
from tests.unit.operator_edge.fake_kube import FakeKube

METADATA = {"name": "chat", "namespace": "team", "uid": "u", "resourceVersion": "7"}


class StatusKube(FakeKube):
    """`kept` are conditions that somebody else owns as well."""

    def __init__(self, *kept: Condition) -> None:
        super().__init__()
        self.kept = [condition.model_dump(by_alias=True) for condition in kept]
        self.written: list[Mapping[str, Any]] = []
        self.overwritten: list[Mapping[str, Any]] = []
        self.reasons: list[str] = []

    def apply_status(
        self, kind: Kind, obj: Mapping[str, Any], *, manager: str = FIELD_MANAGER
    ) -> KubeObject:
        self.written.append(obj)
        status = {**obj["status"], "conditions": [*obj["status"]["conditions"], *self.kept]}
        return {"metadata": {**METADATA, "resourceVersion": "8"}, "status": status}

    def overwrite_status(self, kind: Kind, obj: Mapping[str, Any]) -> None:
        self.overwritten.append(obj)

    def event(
        self, regarding: Mapping[str, Any], *, type: str, reason: str, action: str, note: str
    ) -> None:
        self.reasons.append(f"{type} {reason}")


def condition(type_: str, status: str = "True", reason: str = "Serving") -> Condition:
    return Condition(
        type=type_, status=status, reason=reason, last_transition_time="2026-11-24T12:00:00Z"
    )


def write(before: list[Condition], after: list[Condition], *kept: Condition) -> StatusKube:
    kube = StatusKube(*kept)
    StatusWriter(kube).write(
        METADATA, LLMEngineStatus(conditions=before), LLMEngineStatus(conditions=after)
    )
    return kube


def test_a_status_that_is_so_already_is_not_written() -> None:
    ready, available = condition("Ready"), condition("Available")
    assert write([ready, available], [available, ready]).written == []


def test_a_condition_that_somebody_else_keeps_there_is_left_alone() -> None:
    ready, foreign = condition("Ready"), condition("example.com/Audited")
    assert write([foreign, ready], [ready]).written == []


def test_a_condition_of_ours_that_is_over_is_taken_out() -> None:
    ready, reconciling = condition("Ready"), condition("Reconciling")
    assert len(write([ready, reconciling], [ready]).written) == 1


def test_a_condition_of_ours_that_somebody_else_owns_as_well_is_taken_out_all_the_same() -> None:
    ready, reconciling = condition("Ready"), condition("Reconciling")
    kube = write([ready, reconciling], [ready], reconciling)
    (overwritten,) = kube.overwritten
    assert [c["type"] for c in overwritten["status"]["conditions"]] == ["Ready"]
    assert overwritten["status"]["lastHandledRequest"] is None
    assert overwritten["metadata"]["resourceVersion"] == "8"
    assert write([ready, reconciling], [ready]).overwritten == []


def test_a_status_is_written_to_what_was_read_and_to_no_later_engine() -> None:
    kube = write([], [condition("Ready")])
    (written,) = kube.written
    assert written["metadata"] == {"name": "chat", "namespace": "team", "resourceVersion": "7"}


def test_an_event_is_told_when_ready_has_another_status_or_reason_and_not_else() -> None:
    serving, rolling = condition("Ready"), condition("Ready", "Unknown", "RollingOut")
    failed = condition("Ready", "False", "BuildFailed")
    assert write([], [rolling]).reasons == ["Normal RollingOut"]
    assert write([rolling], [serving]).reasons == ["Normal Serving"]
    assert write([serving], [failed]).reasons == ["Warning BuildFailed"]
    crashing, given_up = (condition("Ready", s, "CrashLooping") for s in ("Unknown", "False"))
    assert write([crashing], [given_up]).reasons == ["Warning CrashLooping"]
    assert write([serving], [serving, condition("Available")]).reasons == []
