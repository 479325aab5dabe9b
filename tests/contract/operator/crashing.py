"""A client of the API server whose process dies at a given write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from llmengine_operator.events import EventType
from llmengine_operator.kinds import Kind
from llmengine_operator.kube import FIELD_MANAGER, Kube, KubeObject, KubeObjects, Propagation

T = TypeVar("T")


class CrashError(Exception):
    """The process is no more. Nothing that it still does counts."""


class CrashingKube:
    """Dies just before a write, which leaves the same behind as just after the one before it."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._left = 0
        self.written: list[str] = []

    def arm(self, number: int) -> None:
        """Dies at the write of this number, from 1, counted from now; 0 for never."""
        self._left = number

    def _write(self, what: str, do: Callable[[], T]) -> T:
        self._left -= 1
        if self._left == 0:
            raise CrashError(what)
        self.written.append(what)
        return do()

    def get(self, kind: Kind, namespace: str | None, name: str) -> KubeObject:
        return self._kube.get(kind, namespace, name)

    def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        fields: str | None = None,
        cached: bool = False,
        metadata_only: bool = False,
    ) -> KubeObjects:
        return self._kube.list(
            kind,
            namespace,
            labels=labels,
            fields=fields,
            cached=cached,
            metadata_only=metadata_only,
        )

    def create(self, kind: Kind, obj: Mapping[str, Any]) -> KubeObject:
        return self._write(f"create {kind}", lambda: self._kube.create(kind, obj))

    def replace(self, kind: Kind, obj: Mapping[str, Any]) -> KubeObject:
        return self._write(f"replace {kind}", lambda: self._kube.replace(kind, obj))

    def apply(
        self, kind: Kind, obj: Mapping[str, Any], *, manager: str = FIELD_MANAGER
    ) -> KubeObject:
        return self._write(
            f"apply {kind} as {manager}", lambda: self._kube.apply(kind, obj, manager=manager)
        )

    def apply_status(
        self, kind: Kind, obj: Mapping[str, Any], *, manager: str = FIELD_MANAGER
    ) -> KubeObject:
        return self._write(
            f"status of {kind}", lambda: self._kube.apply_status(kind, obj, manager=manager)
        )

    def overwrite_status(self, kind: Kind, obj: Mapping[str, Any]) -> None:
        self._write(f"overwrite {kind}", lambda: self._kube.overwrite_status(kind, obj))

    def scale(self, kind: Kind, namespace: str, name: str, replicas: int) -> None:
        self._write(f"scale {kind}", lambda: self._kube.scale(kind, namespace, name, replicas))

    def delete(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        propagation: Propagation = "Background",
    ) -> None:
        self._write(
            f"delete {kind}",
            lambda: self._kube.delete(kind, namespace, name, uid=uid, propagation=propagation),
        )

    def event(
        self,
        regarding: Mapping[str, Any],
        *,
        type: EventType,
        reason: str,
        action: str,
        note: str,
    ) -> None:
        self._write(
            f"event {reason}",
            lambda: self._kube.event(regarding, type=type, reason=reason, action=action, note=note),
        )
