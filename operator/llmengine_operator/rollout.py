"""How far a Deployment is with what it was last told to serve. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmengine.api.v1alpha1 import ServingStatus
from llmengine.architecture import Architecture
from llmengine_operator.labels import Annotation, Label
from llmengine_operator.observation import KubeObject
from llmengine_operator.pods import container_of, is_ready, newest, trouble
from llmengine_operator.reasons import Reason
from llmengine_operator.resources.deployment import SERVER
from llmengine_operator.strategy import gives_way, rolled_out


@dataclass(frozen=True)
class Rollout:
    """`complete`: all wanted pods are of the newest template and available.

    `stalled`: the reason will not go away by waiting.
    """

    complete: bool
    reason: str
    message: str = ""
    stalled: bool = False
    replicas: int = 0
    ready: int = 0


def rollout(
    deployment: KubeObject | None, pods: Sequence[KubeObject], key: str, *, just_applied: bool
) -> Rollout:
    """`pods` are the Deployment's; `key` is what it ought to serve.

    A Deployment that was written in this pass is never complete: what was read is older.
    """
    if deployment is None:
        return Rollout(False, Reason.ROLLING_OUT, "the Deployment is being made", replicas=1)
    spec, status = deployment["spec"], deployment.get("status", {})
    wanted = spec.get("replicas", 1)
    ready = min(sum(is_ready(pod) for pod in pods), wanted) if pods else 0
    served = deployment["metadata"].get("annotations", {}).get(Annotation.KEY)
    updated = status.get("updatedReplicas", 0)
    complete = not just_applied and served == key and rolled_out(deployment)
    if complete:
        return Rollout(True, Reason.SERVING, replicas=wanted, ready=wanted)
    reason, message, stalled = _why(deployment, pods, key)
    text = message or f"{updated} of {wanted} pods are of the newest template, {ready} are ready"
    if gives_way(deployment) and not stalled and reason in _NO_TROUBLE:
        reason = Reason.MAKING_ROOM
        text = f"old pods make room before new ones come; {text}"
    return Rollout(False, reason, text, stalled=stalled, replicas=wanted, ready=ready)


# What waiting does not mend. A pod that cannot be scheduled or pulled may be, once a node or a
# registry is back; the Deployment's own progress deadline decides about those.
_HOPELESS = frozenset({Reason.FETCH_FAILED, Reason.CONTAINER_CONFIG_INVALID})


# A pod waits for its place while an old one goes.
_NO_TROUBLE = frozenset({Reason.ROLLING_OUT, Reason.UNSCHEDULABLE})


def _why(deployment: KubeObject, pods: Sequence[KubeObject], key: str) -> tuple[str, str, bool]:
    current = [p for p in pods if p["metadata"].get("annotations", {}).get(Annotation.KEY) == key]
    pod = newest([p for p in current if not is_ready(p)])
    reason, message = trouble(pod) if pod is not None else ("", "")
    if pod is not None and message:
        message = f"pod {pod['metadata']['name']}: {message}"
    conditions = {c["type"]: c for c in deployment.get("status", {}).get("conditions", [])}
    refusal = conditions.get("ReplicaFailure", {})
    if pod is None and refusal.get("status") == "True":
        # No pod was made, so only the Deployment can say why: a quota, or an admission policy.
        message = str(refusal.get("message", ""))
        quota = "exceeded quota" in message
        return Reason.QUOTA_EXCEEDED if quota else Reason.PODS_REFUSED, message, True
    progressing = conditions.get("Progressing", {})
    if progressing.get("reason") == "ProgressDeadlineExceeded":
        return reason or Reason.ROLLOUT_FAILED, message or "its pods do not get ready", True
    return reason or Reason.ROLLING_OUT, message, reason in _HOPELESS


def pods_of(pods: Sequence[KubeObject], slug: str) -> list[KubeObject]:
    """The server pods of one architecture."""
    return [p for p in pods if p["metadata"].get("labels", {}).get(Label.ARCHITECTURE) == slug]


def image_rolls(serving: Iterable[ServingStatus], pods: Sequence[KubeObject]) -> bool:
    """Whether pods of an older image are still there beside what is to be served."""
    for row in serving:
        for pod in pods_of(pods, Architecture.parse(row.architecture).slug):
            image = container_of(pod["spec"]["containers"], SERVER).get("image")
            if image != row.image and "deletionTimestamp" not in pod["metadata"]:
                return True
    return False
