"""How far a Deployment is with what it was last told to serve, and whether it still does. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from llmengine.api.v1alpha1 import ReplacedStatus, ServingStatus
from llmengine.architecture import Architecture
from llmengine_operator.attempts import parse_time
from llmengine_operator.labels import Annotation, Label
from llmengine_operator.observation import KubeObject
from llmengine_operator.pods import (
    container_of,
    has_proved_itself,
    is_active,
    is_ready,
    newest,
    not_ready_since,
    placed,
    restarts,
    trouble,
    waiting,
)
from llmengine_operator.reasons import Reason
from llmengine_operator.resources.deployment import SERVER
from llmengine_operator.strategy import gives_way, moved, rolled_out


@dataclass(frozen=True)
class Rollout:
    """`complete`: all wanted pods are of the newest template and serve.

    `moved`: no older pod is left, and a newer one serves. `stalled`: the reason will not go away by
    waiting. `served`: it went through once, and what is wrong came later.
    """

    complete: bool
    reason: str
    message: str = ""
    stalled: bool = False
    replicas: int = 0
    ready: int = 0
    moved: bool = False
    served: bool = False


def rollout(
    deployment: KubeObject | None,
    pods: Sequence[KubeObject],
    row: ServingStatus,
    complaints: Mapping[str, str],
    now: datetime,
    *,
    just_applied: bool,
) -> Rollout:
    """`pods` are the Deployment's; `row` is what it ought to serve; `complaints` is what nodes say
    of pods that say nothing themselves, by name.

    A Deployment that was written in this pass is never complete: what was read is older.
    """
    if deployment is None:
        return Rollout(False, Reason.ROLLING_OUT, "the Deployment is being made", replicas=1)
    spec, status = deployment["spec"], deployment.get("status", {})
    wanted = spec.get("replicas", 1)
    ready = min(sum(is_ready(pod) for pod in pods), wanted) if pods else 0
    settled = not just_applied and _key(deployment) == row.key
    has_moved = settled and moved(deployment)
    # What takes nobody's place counts at once, unless it has ended before.
    at_once = row.replaces is None and not _up_again(deployment, pods, now)
    if settled and (
        rolled_out(deployment) or (at_once and rolled_out(deployment, "readyReplicas"))
    ):
        return Rollout(True, Reason.SERVING, replicas=wanted, ready=wanted, moved=has_moved)
    # Else what its controller says is about what it was told before.
    informed = (
        settled and status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    )
    reason, message, stalled = _why(deployment, pods, row.key, complaints, now, informed=informed)
    updated = status.get("updatedReplicas", 0)
    text = message or f"{updated} of {wanted} pods are of the newest template, {ready} are ready"
    served = informed and _went_through(deployment)
    if message and served:
        serve = f"{ready} of {wanted} pods serve" if ready else "no pod serves"
        text = f"{serve}; {message}"
    if gives_way(deployment) and not stalled and reason in _NO_TROUBLE:
        reason = Reason.MAKING_ROOM
        text = f"old pods make room before new ones come; {text}"
    return Rollout(
        False, reason, text, stalled, replicas=wanted, ready=ready, moved=has_moved, served=served
    )


# What waiting does not mend. A pod that cannot be scheduled or pulled may be, once a node or a
# registry is back; the Deployment's own progress deadline decides about those.
_HOPELESS = frozenset({Reason.FETCH_FAILED, Reason.CONTAINER_CONFIG_INVALID})


# A pod waits for its place while an old one goes.
_NO_TROUBLE = frozenset({Reason.ROLLING_OUT, Reason.UNSCHEDULABLE})


# A pod has no place yet: no fault of its own, and the next node or quota is one.
_NO_PLACE = frozenset({Reason.UNSCHEDULABLE, Reason.WAITING_FOR_QUOTA})


def _why(
    deployment: KubeObject,
    pods: Sequence[KubeObject],
    key: str,
    complaints: Mapping[str, str],
    now: datetime,
    *,
    informed: bool,
) -> tuple[str, str, bool]:
    fallen = _fallen(deployment, pods, key, now) if informed else None
    pod = fallen or _hindrance(deployment, pods, key, now)
    reason, message = trouble(pod) if pod is not None else ("", "")
    if pod is not None:
        name = pod["metadata"]["name"]
        message = message or complaints.get(name, "")
        message = message and f"pod {name}: {message}"
    refusal = _conditions(deployment).get("ReplicaFailure", {})
    if pod is None and refusal.get("status") == "True":
        # No pod was made, so only the Deployment can say why: a quota, or an admission policy.
        message = str(refusal.get("message", ""))
        quota = "exceeded quota" in message
        return Reason.QUOTA_EXCEEDED if quota else Reason.PODS_REFUSED, message, True
    if fallen is not None:
        name = fallen["metadata"]["name"]
        return reason or Reason.PODS_NOT_READY, message or f"pod {name} is not ready", True
    if informed and _overdue(deployment):
        return reason or Reason.ROLLOUT_FAILED, message or "its pods do not get ready", True
    hopeless = reason in _HOPELESS
    if pod is not None and reason == Reason.CRASH_LOOPING:
        hopeless = _crashes_for_long(deployment, pod, now)
    return reason or Reason.ROLLING_OUT, message, hopeless


def _hindrance(
    deployment: KubeObject, pods: Sequence[KubeObject], key: str, now: datetime
) -> KubeObject | None:
    """The newest pod of the key that does not serve yet."""
    return newest(_unproved(deployment, pods, key, now))


def _unproved(
    deployment: KubeObject, pods: Sequence[KubeObject], key: str, now: datetime
) -> list[KubeObject]:
    seconds = _to_prove(deployment)
    return [p for p in pods if _key(p) == key and not has_proved_itself(p, seconds, now)]


def _to_prove(deployment: KubeObject) -> timedelta:
    """How long a pod has to be ready before it counts."""
    return timedelta(seconds=deployment["spec"].get("minReadySeconds", 0))


def _up_again(deployment: KubeObject, pods: Sequence[KubeObject], now: datetime) -> bool:
    """A server has ended, and is ready again only just: it may end of the same in a moment."""
    seconds = _to_prove(deployment)
    return any(
        is_ready(pod) and restarts(pod, SERVER) > 0 and not has_proved_itself(pod, seconds, now)
        for pod in pods
    )


def _conditions(deployment: KubeObject) -> dict[str, Mapping[str, str]]:
    return {c["type"]: c for c in deployment.get("status", {}).get("conditions", [])}


def _overdue(deployment: KubeObject) -> bool:
    return _progress(deployment) == "ProgressDeadlineExceeded"


def _went_through(deployment: KubeObject) -> bool:
    """Its pods have all served once: to its controller a rollout is over for good then, whatever
    becomes of them.
    """
    return _progress(deployment) == "NewReplicaSetAvailable"


def _progress(deployment: KubeObject) -> str:
    """What its own controller says of how far it is, in a word."""
    return _conditions(deployment).get("Progressing", {}).get("reason", "")


def _allowed(deployment: KubeObject) -> timedelta:
    """How long a rollout may take without progress."""
    return timedelta(seconds=deployment["spec"].get("progressDeadlineSeconds", 600))


def _crashes_for_long(deployment: KubeObject, pod: KubeObject, now: datetime) -> bool:
    """For longer than a rollout may take without progress.

    To its Deployment a pod that gets ready before each crash is progress, again and again.
    """
    if _went_through(deployment):
        return False
    return now - parse_time(pod["metadata"]["creationTimestamp"]) > _allowed(deployment)


def _fallen(
    deployment: KubeObject, pods: Sequence[KubeObject], key: str, now: datetime
) -> KubeObject | None:
    """The newest pod that has not served for longer than a rollout may take, after one that went
    through. A pod without a place is none: an autoscaler may want more than there is room for.
    """
    if not _went_through(deployment):
        return None
    since = (
        (pod, _down_since(deployment, pods, pod))
        for pod in _unproved(deployment, pods, key, now)
        if is_active(pod) and waiting(pod)[0] not in _NO_PLACE
    )
    return newest([pod for pod, time in since if time and now - time > _allowed(deployment)])


def _down_since(
    deployment: KubeObject, pods: Sequence[KubeObject], pod: KubeObject
) -> datetime | None:
    """A pod that gets ready for a moment before each crash was never up to its Deployment, which
    knows since when it lacks pods, unless it lacks others, too.
    """
    own = not_ready_since(pod)
    lacks = _conditions(deployment).get("Available", {})
    if trouble(pod)[0] != Reason.CRASH_LOOPING or lacks.get("status") != "False":
        return own
    if any(waiting(other)[0] in _NO_PLACE for other in pods):
        return own
    crashing = max(placed(pod), parse_time(lacks["lastTransitionTime"]))
    return min(own, crashing) if own else crashing


def silent_pod(
    deployment: KubeObject, pods: Sequence[KubeObject], now: datetime
) -> KubeObject | None:
    """The pod that was waited for too long and that says nothing itself."""
    key = _key(deployment) or ""
    pod = _fallen(deployment, pods, key, now)
    if pod is None and _overdue(deployment):
        pod = _hindrance(deployment, pods, key, now)
    return pod if pod is not None and trouble(pod) == ("", "") else None


def pods_of(pods: Sequence[KubeObject], slug: str) -> list[KubeObject]:
    """The server pods of one architecture."""
    return [p for p in pods if p["metadata"].get("labels", {}).get(Label.ARCHITECTURE) == slug]


def replaced(
    before: ServingStatus | None, key: str, image: str, pods: Sequence[KubeObject]
) -> ReplacedStatus | None:
    """What `key` and `image` take the place of: what serves, be it older than `before`."""
    if before is None:
        return None
    older = [ReplacedStatus(key=before.key, image=before.image)]
    older = [before.replaces, *older] if before.replaces else older
    older = [old for old in older if (old.key, old.image) != (key, image)]
    mine = pods_of(pods, Architecture.parse(before.architecture).slug)
    serve = (old for old in older if ready_of(mine, old.key, old.image))
    return next(serve, older[0] if older else None)


def ready_of(pods: Iterable[KubeObject], key: str, image: str) -> int:
    """How many ready pods serve this engine with this image."""
    return sum(is_ready(pod) and serves(pod, key, image) for pod in pods)


def serves(pod: KubeObject, key: str, image: str) -> bool:
    """Whether the pod is for this engine, with this image."""
    return _key(pod) == key and _image(pod) == image


def image_rolls(serving: Iterable[ServingStatus], pods: Sequence[KubeObject]) -> bool:
    """Whether what serves with a new image has not taken the place of an older one yet.

    Where old pods make room first, none may be left before a new one has ever served.
    """
    for row in serving:
        if row.replaces is not None and row.replaces.image != row.image:
            return True
        for pod in pods_of(pods, Architecture.parse(row.architecture).slug):
            if _image(pod) != row.image and is_active(pod):
                return True
    return False


def _key(thing: KubeObject) -> str | None:
    """Of the engine that a Deployment or a pod is for, if it says so."""
    key: str | None = thing["metadata"].get("annotations", {}).get(Annotation.KEY)
    return key


def _image(pod: KubeObject) -> str:
    return str(container_of(pod["spec"]["containers"], SERVER).get("image", ""))
