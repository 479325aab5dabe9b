"""As much of an API server as a lease, a CRD check and an audit need, in memory."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from llmengine_operator.kinds import Kind
from llmengine_operator.kube import FIELD_MANAGER, KubeObject, KubeObjects, Propagation
from llmengine_operator.kube_errors import (
    AlreadyExistsError,
    ConflictError,
    KubeError,
    NotFoundError,
)


class FakeKube:
    """Objects by kind, namespace and name. `failure` is raised by every request while it is set."""

    def __init__(self) -> None:
        self.failure: KubeError | None = None
        self.requests: list[str] = []
        self._objects: dict[tuple[Kind, str, str], KubeObject] = {}
        self._version = 100
        self._lock = threading.RLock()

    def put(self, kind: Kind, obj: Mapping[str, Any]) -> KubeObject:
        """Writes without asking."""
        with self._lock:
            self._version += 1
            stored = copy.deepcopy(dict(obj))
            metadata = stored["metadata"]
            metadata["resourceVersion"] = str(self._version)
            key = (kind, metadata.get("namespace", ""), metadata["name"])
            before = self._objects.get(key, {"metadata": {"uid": f"uid-{self._version}"}})
            metadata.setdefault("uid", before["metadata"]["uid"])
            self._objects[key] = stored
            return copy.deepcopy(stored)

    def remove(self, kind: Kind, namespace: str, name: str) -> None:
        with self._lock:
            del self._objects[kind, namespace, name]

    def get(self, kind: Kind, namespace: str | None, name: str) -> KubeObject:
        with self._request(f"get {kind}"):
            stored = self._objects.get((kind, namespace or "", name))
            if stored is None:
                raise NotFoundError(404, "NotFound", f"{name} not found", f"get {kind}")
            return copy.deepcopy(stored)

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
        assert fields is None
        with self._request(f"list {kind} {namespace or ''}".rstrip()):
            return [
                copy.deepcopy(stored)
                for (of, where, _), stored in self._objects.items()
                if of == kind
                and where == (namespace or where)
                and (labels or {}).items() <= stored["metadata"].get("labels", {}).items()
            ]

    def create(self, kind: Kind, obj: Mapping[str, Any]) -> KubeObject:
        with self._request(f"create {kind}"):
            metadata = obj["metadata"]
            if (kind, metadata.get("namespace", ""), metadata["name"]) in self._objects:
                raise AlreadyExistsError(409, "AlreadyExists", "it is there", f"create {kind}")
            return self.put(kind, obj)

    def replace(self, kind: Kind, obj: Mapping[str, Any]) -> KubeObject:
        with self._request(f"replace {kind}"):
            metadata = obj["metadata"]
            stored = self._objects.get((kind, metadata.get("namespace", ""), metadata["name"]))
            if stored is None:
                raise NotFoundError(404, "NotFound", "it is gone", f"replace {kind}")
            if stored["metadata"]["resourceVersion"] != metadata["resourceVersion"]:
                raise ConflictError(409, "Conflict", "it has changed", f"replace {kind}")
            return self.put(kind, obj)

    def apply(
        self, kind: Kind, obj: Mapping[str, Any], *, manager: str = FIELD_MANAGER
    ) -> KubeObject:
        raise NotImplementedError

    def apply_status(
        self, kind: Kind, obj: Mapping[str, Any], *, manager: str = FIELD_MANAGER
    ) -> KubeObject:
        raise NotImplementedError

    def overwrite_status(self, kind: Kind, obj: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def scale(self, kind: Kind, namespace: str, name: str, replicas: int) -> None:
        raise NotImplementedError

    def delete(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        propagation: Propagation = "Background",
    ) -> None:
        raise NotImplementedError

    def event(
        self,
        regarding: Mapping[str, Any],
        *,
        type: str,
        reason: str,
        action: str,
        note: str,
    ) -> None:
        raise NotImplementedError

    def _request(self, what: str) -> AbstractContextManager[bool]:
        self.requests.append(what)
        if self.failure is not None:
            raise self.failure
        return self._lock
