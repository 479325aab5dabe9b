"""As much of an API server as build Jobs need, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmengine_operator.kinds import JOB, Kind
from llmengine_operator.kube import FIELD_MANAGER, KubeObject, Propagation
from llmengine_operator.kube_errors import ConflictError, ForbiddenError
from tests.unit.operator.world import NOW
from tests.unit.operator_edge.fake_kube import FakeKube


class JobKube(FakeKube):
    """Jobs can be deleted, and get owners by apply. `refuses`: verbs that are forbidden."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses: set[str] = set()
        self.managers: list[str] = []

    @property
    def jobs(self) -> list[KubeObject]:
        return self.list(JOB)

    def create(self, kind: Kind, obj: Mapping[str, Any]) -> KubeObject:
        self._check("create")
        created = {**obj["metadata"], "creationTimestamp": NOW.isoformat()}
        return super().create(kind, {**obj, "metadata": created})

    def apply(
        self, kind: Kind, obj: Mapping[str, Any], *, manager: str = FIELD_MANAGER
    ) -> KubeObject:
        self._check("patch")
        metadata = obj["metadata"]
        stored = self.get(kind, metadata["namespace"], metadata["name"])
        assert metadata["uid"] == stored["metadata"]["uid"]
        stored["metadata"]["ownerReferences"] += metadata["ownerReferences"]
        self.managers.append(manager)
        return self.put(kind, stored)

    def delete(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        propagation: Propagation = "Background",
    ) -> None:
        self._check("delete")
        if self.get(kind, namespace, name)["metadata"]["uid"] != uid:
            raise ConflictError(409, "Conflict", "another uid", f"delete {kind} {name}")
        self.remove(kind, namespace or "", name)

    def end(self, job: KubeObject, condition: str) -> None:
        """The Job is Complete or Failed."""
        ended = {"type": condition, "status": "True", "lastTransitionTime": NOW.isoformat()}
        self.put(JOB, {**job, "status": {"conditions": [ended]}})

    def _check(self, verb: str) -> None:
        if verb in self.refuses:
            raise ForbiddenError(403, "Forbidden", "not allowed here", f"{verb} Job")
