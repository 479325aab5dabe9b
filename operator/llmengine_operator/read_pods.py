"""Reads an engine's server pods and, where one keeps a rollout waiting and says nothing, the events
that say what its node has against it: a probe that fails leaves no word in the pod's status.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from llmengine_operator.kinds import EVENT, POD
from llmengine_operator.kube import Kube
from llmengine_operator.labels import Label
from llmengine_operator.observation import Engine, KubeObject
from llmengine_operator.rollout import pods_of, silent_pod

# The kubelet's reason for a probe that failed, whichever it was.
_PROBE_FAILED = "Unhealthy"
_LENGTH = 500


def read_pods(kube: Kube, engine: Engine) -> tuple[KubeObject, ...]:
    """All server pods of an engine. Raises KubeError."""
    labels: dict[str, str] = {Label.ENGINE: engine.name, Label.TRACK: "stable"}
    return tuple(kube.list(POD, engine.namespace, labels=labels))


def read_complaints(
    kube: Kube, deployments: Iterable[KubeObject], pods: tuple[KubeObject, ...], now: datetime
) -> dict[str, str]:
    """The newest word about each silent pod, by the pod's name. Raises KubeError."""
    found = {}
    for deployment in deployments:
        slug = deployment["metadata"].get("labels", {}).get(Label.ARCHITECTURE, "")
        pod = silent_pod(deployment, pods_of(pods, slug), now)
        if pod is not None and (said := _complaint(kube, pod)):
            found[pod["metadata"]["name"]] = said
    return found


def _complaint(kube: Kube, pod: KubeObject) -> str:
    metadata = pod["metadata"]
    about = f"regarding.kind=Pod,regarding.name={metadata['name']},type=Warning"
    events = [
        event
        for event in kube.list(EVENT, metadata["namespace"], fields=about)
        if event["regarding"].get("uid") == metadata["uid"] and event["reason"] == _PROBE_FAILED
    ]
    newest = max(events, key=_time, default=None)
    return " ".join(str(newest.get("note", "")).split())[:_LENGTH] if newest else ""


def _time(event: KubeObject) -> str:
    """When it was seen last: those of the kubelet have the times of an older kind of event."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("deprecatedLastTimestamp"))
    return str(next((time for time in times if time), event.get("eventTime") or ""))
