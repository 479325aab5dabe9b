"""What a pod says of itself, as a reason and a sentence. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from llmengine.requests import BuildFailure
from llmengine_operator.observation import KubeObject
from llmengine_operator.reasons import Reason

_PULL = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_CONFIG = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


def container_of(containers: Iterable[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """Ours among containers, or their states, to which others may have added sidecars.

    Empty when it is not there.
    """
    return next((c for c in containers if c["name"] == name), {})


def newest(pods: Sequence[KubeObject]) -> KubeObject | None:
    """The pod that was created last."""
    return max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)


def is_ready(pod: KubeObject) -> bool:
    """Whether the pod is ready and not on its way out."""
    if "deletionTimestamp" in pod["metadata"]:
        return False
    return _condition(pod, "Ready").get("status") == "True"


def not_ready_since(pod: KubeObject) -> datetime | None:
    """Since when the pod is not ready; None where it is."""
    condition = _condition(pod, "Ready")
    if condition.get("status") == "True":
        return None
    since = condition.get("lastTransitionTime")
    return datetime.fromisoformat(since) if since else placed(pod)


def placed(pod: KubeObject) -> datetime:
    """When the pod could begin to start: as soon as it was there, and had a node."""
    created = datetime.fromisoformat(pod["metadata"]["creationTimestamp"])
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") != "True" or "lastTransitionTime" not in scheduled:
        return created
    return max(created, datetime.fromisoformat(scheduled["lastTransitionTime"]))


def is_active(pod: KubeObject) -> bool:
    """Whether it may serve yet: neither ended for good, as by an eviction, nor on its way out."""
    ended = pod.get("status", {}).get("phase") in ("Failed", "Succeeded")
    return not ended and "deletionTimestamp" not in pod["metadata"]


def restarts(pod: KubeObject, container: str) -> int:
    """How often a container of the pod was started anew."""
    found = container_of(pod.get("status", {}).get("containerStatuses", []), container)
    return int(found.get("restartCount", 0))


def has_proved_itself(pod: KubeObject, seconds: timedelta, now: datetime) -> bool:
    """Whether the pod has been ready for so long: what its Deployment calls available."""
    if not is_ready(pod):
        return False
    since = _condition(pod, "Ready").get("lastTransitionTime")
    # A time is in whole seconds, so it may be up to one too early.
    return not seconds or since is None or now - datetime.fromisoformat(since) >= seconds


def unscheduled(pod: KubeObject) -> str:
    """What the scheduler says of a pod that it cannot place; nothing where it can."""
    condition = _not_scheduled(pod)
    return str(condition.get("message", "")) if condition.get("reason") == "Unschedulable" else ""


def waiting(pod: KubeObject) -> tuple[str, str]:
    """Why no container of the pod runs: (reason, sentence), or two empty strings."""
    if unplaced := _not_scheduled(pod):
        gated = unplaced.get("reason") == "SchedulingGated"
        reason = Reason.WAITING_FOR_QUOTA if gated else Reason.UNSCHEDULABLE
        return reason, str(unplaced.get("message", ""))
    for status in _statuses(pod):
        state = status.get("state", {}).get("waiting", {})
        reason, message = state.get("reason", ""), state.get("message", "")
        if reason in _PULL:
            return Reason.IMAGE_PULL_FAILED, f"{status.get('image', '')}: {message or reason}"
        if reason in _CONFIG:
            return Reason.CONTAINER_CONFIG_INVALID, message or reason
    return "", ""


def trouble(pod: KubeObject) -> tuple[str, str]:
    """Why a server pod does not get ready: (reason, sentence), or two empty strings."""
    reason, message = waiting(pod)
    if reason:
        return reason, message
    for status in _statuses(pod):
        ended = _last_end(status)
        # A sidecar that has recovered is not what a pod waits for.
        recovered = status.get("ready") and not is_ready(pod)
        if ended is None or recovered or ended.get("exitCode") == 0:
            continue
        words = _words(ended)
        if status["name"] == "fetch":
            return Reason.FETCH_FAILED, words
        if status.get("restartCount", 0) > 0:
            return Reason.CRASH_LOOPING, words
    return "", ""


def _not_scheduled(pod: KubeObject) -> Mapping[str, Any]:
    """The condition that says so, or nothing."""
    condition = _condition(pod, "PodScheduled")
    return condition if condition.get("status") == "False" else {}


def _condition(pod: KubeObject, type_: str) -> Mapping[str, Any]:
    found = pod.get("status", {}).get("conditions", [])
    return next((dict(c) for c in found if c["type"] == type_), {})


def _statuses(pod: KubeObject) -> Iterable[Mapping[str, Any]]:
    status = pod.get("status", {})
    yield from status.get("initContainerStatuses", [])
    yield from status.get("containerStatuses", [])


def _last_end(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for moment in ("state", "lastState"):
        if ended := status.get(moment, {}).get("terminated"):
            return dict(ended)
    return None


def _words(ended: Mapping[str, Any]) -> str:
    text = str(ended.get("message", "")).strip()
    try:
        return BuildFailure.model_validate_json(text).message
    except ValidationError:
        pass
    why = ended.get("reason", "Error")
    return f"{why}, exit code {ended.get('exitCode')}" + (f": {text[-500:]}" if text else "")
