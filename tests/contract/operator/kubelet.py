"""Plays the kubelet of a server pod whose server ends, as far as anybody outside can see."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from llmengine_operator.kinds import POD
from tests.contract.operator.stage import Stage


@dataclass(frozen=True)
class Kubelet:
    """Of every server pod of a stage's engine."""

    stage: Stage

    def pods(self) -> list[dict[str, Any]]:
        """By their names, without those that go."""
        found = self.stage.items(POD, labels="llmengine.io/engine=chat")
        there = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
        return sorted(there, key=lambda pod: str(pod["metadata"]["name"]))

    def crash(self, name: str, words: str) -> None:
        """The server ended, and is started anew after a while."""
        ended = {"exitCode": 7, "reason": "Error", "finishedAt": _now(), "message": words}
        backs_off = {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting"}
        self._say(
            name,
            ready=False,
            state={"waiting": backs_off, "running": None},
            lastState={"terminated": ended},
        )

    def start(self, name: str) -> None:
        """The server is started anew, and is ready."""
        state = {"running": {"startedAt": _now()}, "waiting": None}
        self._say(name, ready=True, state=state)

    def _say(self, name: str, *, ready: bool, **container: Any) -> None:
        (pod,) = [pod for pod in self.pods() if pod["metadata"]["name"] == name]
        (before,) = pod["status"]["containerStatuses"]
        count = before["restartCount"] + (not ready)
        said = {**before, "ready": ready, "started": ready, "restartCount": count, **container}
        turned = {"status": str(ready), "lastTransitionTime": _now()}
        conditions = [
            {**c, **(turned if c["type"] in ("Ready", "ContainersReady") else {})}
            for c in pod["status"]["conditions"]
        ]
        path = POD.path(self.stage.team, name, "status")
        status = {"containerStatuses": [said], "conditions": conditions}
        self.stage.api.merge(path, {"status": status})


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
