"""A build Job, its pod and its events, read as one Attempt with a reason that a person understands.

Pure: takes the API server's dicts, and `now`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from llmengine.requests import BuildFailure, BuildReason, ExitCode
from llmengine_operator.labels import QUEUE, Annotation
from llmengine_operator.observation import Attempt, AttemptState, KubeObject, Verdict
from llmengine_operator.pods import container_of, newest, waiting
from llmengine_operator.reasons import Reason
from llmengine_operator.resources.build_job import BUILD

_REASON = re.compile("[A-Z][A-Za-z0-9]{0,62}")
# A Job that has no pod by then was refused by quota or admission; only its events say so.
NO_POD_AFTER = timedelta(seconds=20)

# Refusals that somebody can lift without touching the engine.
ENVIRONMENT_REASONS = frozenset(
    {
        BuildReason.MODEL_ACCESS_DENIED,
        BuildReason.MODEL_NOT_FOUND,
        BuildReason.STORE_DENIED,
        BuildReason.BUCKET_MISSING,
        BuildReason.STORE_UNREACHABLE,
        BuildReason.SCRATCH_TOO_SMALL,
    }
)


def read_attempt(
    job: KubeObject,
    pods: Sequence[KubeObject],
    events: Sequence[KubeObject],
    now: datetime,
) -> Attempt:
    """`pods` and `events` are those of this Job; events may be left out while it has a pod."""
    metadata = job["metadata"]
    notes: Mapping[str, str] = metadata.get("annotations", {})
    created = parse_time(metadata["creationTimestamp"])
    pod = newest(pods)
    state, finished = _state(job, pod)
    reason, message, verdict = _explain(state, job, pod, events, now - created)
    return Attempt(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        key=notes.get(Annotation.KEY, ""),
        architecture=notes.get(Annotation.ARCHITECTURE, ""),
        number=int(notes.get(Annotation.ATTEMPT, "1")),
        tries_left=int(notes.get(Annotation.TRIES_LEFT, "0")),
        options=notes.get(Annotation.OPTIONS, ""),
        request=notes.get(Annotation.REQUEST, ""),
        created=created,
        state=state,
        reason=reason,
        message=message,
        finished=finished,
        verdict=verdict,
        node=_node(pod),
    )


def _node(pod: KubeObject | None) -> str:
    return str((pod or {}).get("spec", {}).get("nodeName", ""))


def parse_time(text: str) -> datetime:
    """RFC 3339, as the API server writes it."""
    return datetime.fromisoformat(text)


def _state(job: KubeObject, pod: KubeObject | None) -> tuple[AttemptState, datetime | None]:
    for condition in job.get("status", {}).get("conditions", []):
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
            done = condition["type"] == "Complete"
            return (
                AttemptState.SUCCEEDED if done else AttemptState.FAILED,
                parse_time(condition["lastTransitionTime"]),
            )
    if _container(pod).get("state", {}).keys() & {"running", "terminated"}:
        return AttemptState.RUNNING, None
    return AttemptState.WAITING, None


def _container(pod: KubeObject | None) -> Mapping[str, Any]:
    return container_of((pod or {}).get("status", {}).get("containerStatuses", []), BUILD)


def _explain(
    state: AttemptState,
    job: KubeObject,
    pod: KubeObject | None,
    events: Iterable[KubeObject],
    age: timedelta,
) -> tuple[str, str, Verdict]:
    if state is AttemptState.FAILED:
        return _failure(job, pod)
    if state is AttemptState.RUNNING:
        return Reason.BUILDING, "", Verdict.NONE
    if state is AttemptState.SUCCEEDED:
        return Reason.PUBLISHING, "", Verdict.NONE
    return *_waiting(job, pod, events, age), Verdict.NONE


def _waiting(
    job: KubeObject, pod: KubeObject | None, events: Iterable[KubeObject], age: timedelta
) -> tuple[str, str]:
    """Why its container has not started."""
    if job["spec"].get("suspend"):
        queue = job["metadata"].get("labels", {}).get(QUEUE)
        by = f"the queue {queue} has not admitted it" if queue else "somebody suspended it"
        return Reason.WAITING_FOR_QUOTA, f"the Job is suspended: {by}"
    if pod is not None:
        reason, message = waiting(pod)
        return reason or Reason.BUILD_PENDING, message
    if age >= NO_POD_AFTER:
        refusals = [e.get("note") or e.get("message", "") for e in events]
        if refusals:
            quota = any("exceeded quota" in text for text in refusals)
            reason = Reason.QUOTA_EXCEEDED if quota else Reason.PODS_REFUSED
            return reason, refusals[-1]
    return Reason.BUILD_PENDING, ""


def _failure(job: KubeObject, pod: KubeObject | None) -> tuple[str, str, Verdict]:
    status = (pod or {}).get("status", {})
    if status.get("reason") == "DeadlineExceeded":
        limit = (pod or {})["spec"].get("activeDeadlineSeconds")
        return (
            Reason.BUILD_DEADLINE_EXCEEDED,
            f"the build took longer than {limit} s: raise spec.build.activeDeadlineSeconds",
            Verdict.FINAL,
        )
    if status.get("reason") == "Evicted":
        return Reason.BUILD_EVICTED, status.get("message", ""), Verdict.RETRY
    ended = _container(pod).get("state", {}).get("terminated")
    if ended is None:
        text = _condition_message(job) or "its pod is gone"
        return Reason.BUILD_LOST, f"the build ended without a word: {text}", Verdict.RETRY
    if ended.get("reason") == "OOMKilled":
        return Reason.BUILD_OUT_OF_MEMORY, _out_of_memory(pod), Verdict.FINAL
    reason, message, verdict = _last_words(ended)
    if reason == BuildReason.WRONG_DEVICE:
        message = (
            f"node {_node(pod)} is not what its labels say: {message}; correct them (GPU Feature"
            " Discovery writes them when it is started again), or cordon the node and set"
            " llmengine.io/requested-at"
        )
    return reason, message, verdict


def _out_of_memory(pod: KubeObject | None) -> str:
    container = container_of((pod or {})["spec"]["containers"], BUILD)
    limit = container.get("resources", {}).get("limits", {}).get("memory", "none of its own")
    return (
        f"the build used more memory than its limit ({limit}): raise"
        " spec.build.resources.limits.memory"
    )


def _last_words(ended: Mapping[str, Any]) -> tuple[str, str, Verdict]:
    code = ended.get("exitCode", -1)
    words = _parsed(str(ended.get("message", ""))) or BuildFailure(
        reason=Reason.BUILD_FAILED,
        message=f"the builder ended with exit code {code} and said nothing; see its log",
    )
    if code == ExitCode.TRANSIENT:
        return words.reason, words.message, Verdict.RETRY
    if words.reason in ENVIRONMENT_REASONS:
        return words.reason, words.message, Verdict.ENVIRONMENT
    if code in (
        ExitCode.BAD_INPUT,
        ExitCode.UNSUPPORTED,
        ExitCode.VERIFICATION_FAILED,
        ExitCode.WRONG_DEVICE,
    ):
        return words.reason, words.message, Verdict.FINAL
    return words.reason, words.message, Verdict.RETRY


def _parsed(text: str) -> BuildFailure | None:
    try:
        words = BuildFailure.model_validate_json(text)
    except ValidationError:
        return None
    # Another one would make a status that the API server refuses.
    return words if _REASON.fullmatch(words.reason) else None


def _condition_message(job: KubeObject) -> str:
    for condition in job.get("status", {}).get("conditions", []):
        if condition["type"] == "Failed":
            return str(condition.get("message", ""))
    return ""
