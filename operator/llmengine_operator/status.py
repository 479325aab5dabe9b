"""Writes an engine's status, only when it differs, and an Event when Ready changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmengine.api.v1alpha1 import API_VERSION, LLMEngineStatus
from llmengine_operator.conditions import ConditionType, find
from llmengine_operator.kinds import LLMENGINE
from llmengine_operator.kube import Kube


class StatusWriter:
    """Shared by all workers."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    def write(
        self, metadata: Mapping[str, Any], before: LLMEngineStatus, after: LLMEngineStatus
    ) -> bool:
        """Whether anything was written. `metadata` is the engine's. Raises KubeError."""
        if _ours(before) == _ours(after):
            return False
        # With the version that was read: a new engine of the same name must not inherit it.
        identity = {key: metadata[key] for key in ("name", "namespace", "resourceVersion")}
        status = after.model_dump(mode="json", by_alias=True, exclude_none=True)
        written = self._kube.apply_status(LLMENGINE, {"metadata": identity, "status": status})
        if _ours(LLMEngineStatus.model_validate(written["status"])) != _ours(after):
            self._overwrite(written["metadata"], after)
        self._announce(metadata, before, after)
        return True

    def _overwrite(self, metadata: Mapping[str, Any], after: LLMEngineStatus) -> None:
        """An apply takes out nothing that somebody else owns as well, such as a tool that restored
        the engine from a backup.
        """
        identity = {key: metadata[key] for key in ("name", "namespace", "resourceVersion")}
        absent = {name: None for name, value in after.model_dump(by_alias=True).items()}
        status = after.model_dump(mode="json", by_alias=True, exclude_none=True)
        self._kube.overwrite_status(LLMENGINE, {"metadata": identity, "status": absent | status})

    def _announce(
        self, metadata: Mapping[str, Any], before: LLMEngineStatus, after: LLMEngineStatus
    ) -> None:
        old = find(before.conditions, ConditionType.READY)
        new = find(after.conditions, ConditionType.READY)
        if new is None or (old and (old.status, old.reason) == (new.status, new.reason)):
            return
        self._kube.event(
            {"apiVersion": API_VERSION, "kind": "LLMEngine", "metadata": metadata},
            type="Warning" if new.status == "False" else "Normal",
            reason=new.reason,
            action="Reconcile",
            note=new.message or new.reason,
        )


def _ours(status: LLMEngineStatus) -> dict[str, Any]:
    """What we say, whatever others say beside it, and in whatever order."""
    types = set(ConditionType)
    return {
        **status.model_dump(),
        "conditions": {c.type: c for c in status.conditions if c.type in types},
        "engines": {row.key: row for row in status.engines},
        "serving": {row.architecture: row for row in status.serving},
    }
