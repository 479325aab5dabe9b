"""Reads build Jobs with their pods and, where a Job gets no pod, the events that say why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from llmengine_operator.attempts import NO_POD_AFTER, parse_time, read_attempt
from llmengine_operator.kinds import EVENT, JOB, POD
from llmengine_operator.kube import Kube
from llmengine_operator.labels import MANAGED
from llmengine_operator.observation import Attempt, KubeObject

BUILDS = {**MANAGED, "app.kubernetes.io/component": "build"}


@dataclass(frozen=True)
class Build:
    """A Job, and what it amounts to."""

    job: KubeObject
    attempt: Attempt


def read_builds(
    kube: Kube, namespace: str | None, labels: Mapping[str, str], now: datetime
) -> list[Build]:
    """All build Jobs with these labels, in one namespace or in all. Raises KubeError."""
    selector = {**BUILDS, **labels}
    jobs = kube.list(JOB, namespace, labels=selector)
    if not jobs:
        return []
    pods = defaultdict(list)
    for pod in kube.list(POD, namespace, labels=selector):
        for reference in pod["metadata"].get("ownerReferences", []):
            pods[reference["uid"]].append(pod)
    return [_build(kube, job, pods[job["metadata"]["uid"]], now) for job in jobs]


def _build(kube: Kube, job: KubeObject, pods: Sequence[KubeObject], now: datetime) -> Build:
    metadata = job["metadata"]
    lonely = not pods and not job.get("status", {}).get("conditions")
    events: list[KubeObject] = []
    if lonely and now - parse_time(metadata["creationTimestamp"]) >= NO_POD_AFTER:
        about = f"regarding.kind=Job,regarding.name={metadata['name']},type=Warning"
        events = [
            event
            for event in kube.list(EVENT, metadata["namespace"], fields=about)
            if event["regarding"].get("uid") == metadata["uid"]
        ]
    return Build(job, read_attempt(job, pods, events, now))
