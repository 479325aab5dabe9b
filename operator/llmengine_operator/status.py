"""Writes an engine's status, only when it differs, and an Event when Ready changes its reason."""

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
        if before == after:
            return False
        self._kube.apply_status(
            LLMENGINE,
            {
                "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
                "status": after.model_dump(mode="json", by_alias=True, exclude_none=True),
            },
        )
        self._announce(metadata, before, after)
        return True

    def _announce(
        self, metadata: Mapping[str, Any], before: LLMEngineStatus, after: LLMEngineStatus
    ) -> None:
        old = find(before.conditions, ConditionType.READY)
        new = find(after.conditions, ConditionType.READY)
        if new is None or (old is not None and old.reason == new.reason):
            return
        self._kube.event(
            {"apiVersion": API_VERSION, "kind": "LLMEngine", "metadata": metadata},
            type="Warning" if new.status == "False" else "Normal",
            reason=new.reason,
            action="Reconcile",
            note=new.message or new.reason,
        )
