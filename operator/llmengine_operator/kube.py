"""The only module that talks to the API server: plain dicts in and out, typed errors, no cache.

Nothing is retried but a read whose connection was reset: the work queue is the retry.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, TypeAlias
from urllib.parse import urlencode

import urllib3
from kubernetes.client.exceptions import ApiException
from kubernetes.client.rest import RESTClientObject

from llmengine_operator.events import EventType, PostedEvents, event_about, micro_time
from llmengine_operator.kinds import EVENT, Kind
from llmengine_operator.kube_access import Access
from llmengine_operator.kube_errors import (
    ExpiredError,
    KubeError,
    NotFoundError,
    UnavailableError,
    error_of,
)

FIELD_MANAGER = "llmengine-operator"
PAGE_SIZE = 500

KubeObject: TypeAlias = dict[str, Any]
KubeObjects: TypeAlias = list[KubeObject]
Propagation: TypeAlias = Literal["Background", "Foreground", "Orphan"]

_JSON = "application/json"
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_APPLY_PATCH = "application/apply-patch+yaml"
_MERGE_PATCH = "application/merge-patch+json"

log = logging.getLogger(__name__)


class Kube(Protocol):
    """What a reconcile pass may ask of the API server. Methods raise KubeError where not said."""

    def get(self, kind: Kind, namespace: str | None, name: str) -> KubeObject:
        """One object. Raises NotFoundError."""

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
        """All objects that match, however many.

        `cached` accepts what the server has in memory, which may lag behind by moments.
        `metadata_only` leaves out everything but metadata (the kind too).
        """

    def create(self, kind: Kind, obj: Mapping[str, Any]) -> KubeObject:
        """Raises AlreadyExistsError."""

    def replace(self, kind: Kind, obj: Mapping[str, Any]) -> KubeObject:
        """Writes an object that was read before; raises ConflictError if it changed since."""

    def apply(
        self, kind: Kind, obj: Mapping[str, Any], *, manager: str = FIELD_MANAGER
    ) -> KubeObject:
        """Server-side apply: the manager owns exactly the fields of `obj` and wins conflicts."""

    def apply_status(
        self, kind: Kind, obj: Mapping[str, Any], *, manager: str = FIELD_MANAGER
    ) -> KubeObject:
        """Server-side apply of /status. Raises NotFoundError: a status makes no object.

        With a resourceVersion in `obj` it raises ConflictError if the object changed since.
        """

    def overwrite_status(self, kind: Kind, obj: Mapping[str, Any]) -> None:
        """Sets fields of /status whoever owns them, lists as a whole; None removes a field."""

    def scale(self, kind: Kind, namespace: str, name: str, replicas: int) -> None:
        """Sets the number of replicas, through /scale."""

    def delete(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        propagation: Propagation = "Background",
    ) -> None:
        """Raises NotFoundError; ConflictError when `uid` is given and the object has another."""

    def event(
        self,
        regarding: Mapping[str, Any],
        *,
        type: EventType,
        reason: str,
        action: str,
        note: str,
    ) -> None:
        """Records an Event about an object. The same one again raises its count.

        Never raises: an Event is a courtesy, and a pass must not fail for want of one.
        """


class KubeClient:
    """`Kube` over HTTP with a pool of connections, which threads may share.

    `timeout` is for connecting and for each wait for bytes, in seconds.
    """

    def __init__(
        self,
        access: Access,
        *,
        timeout: tuple[float, float] = (5, 30),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._access = access
        self._timeout = timeout
        self._rest = RESTClientObject(access.configuration)
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._events = PostedEvents()
        self._instance = os.environ.get("POD_NAME") or socket.gethostname()
        self._now = now

    @property
    def requests(self) -> Mapping[tuple[str, str], int]:
        """How many requests were made so far, by verb (as RBAC has them) and kind."""
        with self._lock:
            return dict(self._requests)

    @property
    def writes(self) -> int:
        """How many requests were made so far that could change something."""
        return sum(n for (verb, _), n in self.requests.items() if verb not in ("get", "list"))

    def get(self, kind: Kind, namespace: str | None, name: str) -> KubeObject:
        what = f"get {kind} {_id(namespace, name)}"
        return self._request("get", kind, kind.path(namespace, name), what)

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
        query = {"limit": str(PAGE_SIZE)}
        if labels:
            query["labelSelector"] = label_selector(labels)
        if fields:
            query["fieldSelector"] = fields
        if cached:
            query["resourceVersion"] = "0"
        accept = _METADATA_LIST if metadata_only else _JSON
        restarts = 2
        while True:
            try:
                return self._pages(kind, namespace, query, accept)
            except ExpiredError:  # the pages took longer than the server's memory lasts
                if restarts == 0:
                    raise
                restarts -= 1

    def _pages(
        self, kind: Kind, namespace: str | None, query: Mapping[str, str], accept: str
    ) -> KubeObjects:
        what = f"list {kind}" + (f" in {namespace}" if namespace else "")
        found: KubeObjects = []
        page = dict(query)
        while True:
            answer = self._request(
                "list", kind, kind.path(namespace), what, query=page, accept=accept
            )
            found += answer.get("items") or ()
            token = answer.get("metadata", {}).get("continue")
            if not token:
                break
            page["continue"] = token
            page.pop("resourceVersion", None)  # the token says which
        if accept == _JSON:
            for item in found:  # those of built-in kinds come without
                item.setdefault("apiVersion", kind.api_version)
                item.setdefault("kind", kind.kind)
        return found

    def create(self, kind: Kind, obj: Mapping[str, Any]) -> KubeObject:
        return self._write("create", "POST", kind, obj, {"fieldManager": FIELD_MANAGER})

    def replace(self, kind: Kind, obj: Mapping[str, Any]) -> KubeObject:
        return self._write("update", "PUT", kind, obj, {"fieldManager": FIELD_MANAGER})

    def apply(
        self, kind: Kind, obj: Mapping[str, Any], *, manager: str = FIELD_MANAGER
    ) -> KubeObject:
        query = {"fieldManager": manager, "force": "true"}
        return self._write("patch", "PATCH", kind, obj, query)

    def apply_status(
        self, kind: Kind, obj: Mapping[str, Any], *, manager: str = FIELD_MANAGER
    ) -> KubeObject:
        query = {"fieldManager": manager, "force": "true"}
        return self._write("patch", "PATCH", kind, obj, query, subresource="status")

    def overwrite_status(self, kind: Kind, obj: Mapping[str, Any]) -> None:
        metadata = obj["metadata"]
        self._merge(kind, metadata["namespace"], metadata["name"], "status", dict(obj))

    def scale(self, kind: Kind, namespace: str, name: str, replicas: int) -> None:
        self._merge(kind, namespace, name, "scale", {"spec": {"replicas": replicas}})

    def delete(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        propagation: Propagation = "Background",
    ) -> None:
        options: KubeObject = {"propagationPolicy": propagation}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        what = f"delete {kind} {_id(namespace, name)}"
        path = kind.path(namespace, name)
        self._request("delete", kind, path, what, method="DELETE", body=options)

    def event(
        self,
        regarding: Mapping[str, Any],
        *,
        type: EventType,
        reason: str,
        action: str,
        note: str,
    ) -> None:
        now = self._now()
        event = event_about(
            regarding,
            type=type,
            reason=reason,
            action=action,
            note=note,
            controller=FIELD_MANAGER,
            instance=self._instance,
            now=now,
        )
        with self._lock:
            name, count = self._events.record(event)
        try:
            if count > 1:
                series = {"count": count, "lastObservedTime": micro_time(now)}
                self._merge(EVENT, event["metadata"]["namespace"], name, "", {"series": series})
            else:
                self.create(EVENT, event)
        except KubeError as error:
            with self._lock:
                self._events.forget(event)
            if count > 1 and isinstance(error, NotFoundError):  # events live for an hour
                self.event(regarding, type=type, reason=reason, action=action, note=note)
            else:
                log.warning("no Event %s: %s", reason, error)

    def _merge(
        self, kind: Kind, namespace: str, name: str, subresource: str, patch: KubeObject
    ) -> None:
        self._request(
            "patch",
            kind,
            kind.path(namespace, name, subresource),
            f"{subresource or 'patch'} {kind} {_id(namespace, name)}",
            method="PATCH",
            query={"fieldManager": FIELD_MANAGER},
            body=patch,
            content_type=_MERGE_PATCH,
        )

    def _write(
        self,
        verb: str,
        method: str,
        kind: Kind,
        obj: Mapping[str, Any],
        query: Mapping[str, str],
        *,
        subresource: str = "",
    ) -> KubeObject:
        namespace, name = obj["metadata"].get("namespace"), obj["metadata"]["name"]
        word = {"patch": "apply", "update": "replace"}.get(verb, verb)
        what = f"{word} {kind} {_id(namespace, name)} {subresource}".rstrip()
        return self._request(
            verb,
            kind,
            kind.path(namespace, "" if verb == "create" else name, subresource),
            what,
            method=method,
            # Without it a misspelt field would be dropped in silence.
            query={**query, "fieldValidation": "Strict"},
            body={"apiVersion": kind.api_version, "kind": kind.kind, **obj},
            content_type=_APPLY_PATCH if method == "PATCH" else _JSON,
        )

    def _request(
        self,
        verb: str,
        kind: Kind,
        path: str,
        what: str,
        *,
        method: str = "GET",
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        accept: str = _JSON,
        content_type: str = _JSON,
    ) -> KubeObject:
        url = self._access.server + path + (f"?{urlencode(query)}" if query else "")
        headers = {
            "Accept": accept,
            "Content-Type": content_type,
            "User-Agent": FIELD_MANAGER,
            **self._authorization(what),
        }
        again = method == "GET"
        while True:
            with self._lock:
                self._requests[verb, kind.kind] += 1
            try:
                response = self._rest.request(  # type: ignore[no-untyped-call]
                    method, url, headers=headers, body=body, _request_timeout=self._timeout
                )
                data = response.read()
                break
            except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
                if again and isinstance(error, urllib3.exceptions.ProtocolError):
                    again = False  # the server closed a connection that lay idle in the pool
                    continue
                message = f"the API server did not answer: {_network_error(error)}"
                raise UnavailableError(0, "Unreachable", message, what) from error
        if response.status >= 400:
            raise error_of(response.status, response.reason or "", data, what)
        return _parsed(data, response.status, what)

    def _authorization(self, what: str) -> Mapping[str, str]:
        try:
            value = self._access.authorization()
        except OSError as error:
            raise UnavailableError(0, "NoToken", f"no token to show: {error}", what) from error
        return {"Authorization": value} if value else {}


def label_selector(labels: Mapping[str, str]) -> str:
    """The selector that asks for exactly these labels."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _parsed(data: bytes, status: int, what: str) -> KubeObject:
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        message = "the answer is not a JSON object: is a proxy on the way?"
        raise UnavailableError(status, "BadAnswer", message, what)
    return answer


def _network_error(error: Exception) -> str:
    return str(getattr(error, "reason", "") or error)


def _id(namespace: str | None, name: str) -> str:
    return f"{namespace}/{name}" if namespace else name
