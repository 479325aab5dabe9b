"""Records every state that an engine and its Deployment go through, each as the API server told it,
and every build Job.

A tool that polls may miss a state; one that is not here was never there.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any

from llmengine_operator.kinds import DEPLOYMENT, JOB, LLMENGINE, Kind
from llmengine_operator.watch_audit import Watch
from tests.contract.gitops.judges import argo, kstatus
from tests.contract.operator.builder import request_of
from tests.contract.operator.stage import Stage
from tests.contract.operator.watching import Watches


@dataclass(frozen=True)
class Moment:
    """An engine as it was, and its Deployment at that time, if there was one."""

    engine: dict[str, Any]
    deployment: dict[str, Any] | None
    kstatus: str
    argo: str

    @property
    def generation(self) -> int:
        return int(self.engine["metadata"]["generation"])

    @property
    def serves(self) -> bool:
        """Whether all pods are of the newest template and answer, and that has the wanted key."""
        if self.deployment is None:
            return False
        spec, status = self.deployment["spec"], self.deployment.get("status", {})
        meta = self.deployment["metadata"]
        key = spec["template"]["metadata"]["annotations"]["llmengine.io/engine-key"]
        counts = {status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas")}
        return (
            key == self.engine["status"]["engines"][0]["key"]
            and status.get("observedGeneration") == meta["generation"]
            and counts == {spec["replicas"]}
        )


class Recorder:
    """Of the engines and Deployments of the stage's team, while it is entered."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._jobs_before: set[str] = set()
        self._events: list[tuple[Kind, str, dict[str, Any]]] = []
        watched = (Watch(LLMENGINE), Watch(DEPLOYMENT))
        self._watches = [
            Watches(stage.cluster, watched, [stage.team], self._deliver),
            Watches(stage.cluster, [Watch(JOB)], [stage.builds], self._deliver),
        ]

    def __enter__(self) -> Recorder:
        self._jobs_before = {job["metadata"]["uid"] for job in self._stage.jobs()}
        for watches in self._watches:
            watches.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._stage.until("the watches to bring all that is there", self._caught_up)
        for watches in self._watches:
            watches.stop()

    def _caught_up(self) -> bool:
        """What a test has seen by asking may not have been told yet."""
        told: dict[str, int] = {}
        for _, _, obj in list(self._events):
            meta = obj["metadata"]
            told[meta["uid"]] = max(told.get(meta["uid"], 0), int(meta["resourceVersion"]))
        there = [*self._stage.jobs()]
        for kind in (LLMENGINE, DEPLOYMENT):
            there += self._stage.items(kind)
        metas = [obj["metadata"] for obj in there]
        return all(told.get(m["uid"], 0) >= int(m["resourceVersion"]) for m in metas)

    def _deliver(self, kind: Kind, event: str, obj: dict[str, Any]) -> None:
        self._events.append((kind, event, obj))

    def seen(self, event: str, kind: Kind = LLMENGINE) -> bool:
        return any((k, e) == (kind, event) for k, e, _ in list(self._events))

    def built(self) -> list[str]:
        """The revisions that Jobs were made for, also of Jobs that are gone."""
        made = [obj for kind, event, obj in self._events if (kind, event) == (JOB, "ADDED")]
        new = [job for job in made if job["metadata"]["uid"] not in self._jobs_before]
        return [request_of(job).revision for job in new]

    def deployments(self) -> list[dict[str, Any]]:
        """Every state of every Deployment."""
        return [obj for kind, event, obj in self._events if kind == DEPLOYMENT]

    def moments(self) -> list[Moment]:
        """Every state of every engine, in the order of the API server's versions."""
        told = [event for event in self._events if event[0] != JOB]
        events = sorted(told, key=lambda e: int(e[2]["metadata"]["resourceVersion"]))
        engines = [obj for kind, event, obj in events if kind == LLMENGINE and event != "DELETED"]
        verdicts = zip(kstatus(*engines), argo(*engines), strict=True)
        moments: list[Moment] = []
        deployment: dict[str, Any] | None = None
        for kind, event, obj in events:
            if kind == DEPLOYMENT:
                deployment = None if event == "DELETED" else obj
            elif event != "DELETED":
                by_kstatus, by_argo = next(verdicts)
                moments.append(Moment(obj, deployment, by_kstatus, by_argo.status))
        return moments


def told(moments: list[Moment], tool: str) -> list[tuple[int, str]]:
    """Generation and verdict of a tool, each change once."""
    said: list[tuple[int, str]] = []
    for moment in moments:
        now = (moment.generation, str(getattr(moment, tool)))
        if said[-1:] != [now]:
            said.append(now)
    return said
