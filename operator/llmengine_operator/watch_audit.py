"""Proves that the watches deliver, by comparing what they brought with what the API server has.

A watch can end or stall in many ways that look like silence from inside. Each of them shows here:
an object that a list has and whose version the watch has not brought a while later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from llmengine_operator.kinds import Kind
from llmengine_operator.kube import Kube
from llmengine_operator.kube_errors import KubeError

log = logging.getLogger(__name__)


class StalledWatchError(Exception):
    """A watch does not deliver, or nobody can tell: the process must be started anew."""


@dataclass(frozen=True)
class Watch:
    """What is watched: a kind, and the labels that an object must have, checked by the server."""

    kind: Kind
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Delivered:
    """An object as the watch last brought it; `gone` when that was its deletion."""

    version: int
    namespace: str
    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    gone: bool = False

    @classmethod
    def of(cls, obj: Mapping[str, Any], *, gone: bool) -> Delivered:
        metadata = obj["metadata"]
        return cls(
            # An integer by contract since Kubernetes 1.35, and in fact for ever.
            version=int(metadata["resourceVersion"]),
            namespace=metadata.get("namespace") or "",
            name=metadata["name"],
            labels=metadata.get("labels") or {},
            annotations=metadata.get("annotations") or {},
            gone=gone,
        )


class Deliveries:
    """What the watches have brought so far. Written by the watches, read by the audit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[Kind, dict[str, Delivered]] = {}
        self._events: dict[Kind, int] = {}

    def record(self, kind: Kind, uid: str, delivered: Delivered) -> None:
        with self._lock:
            self._objects.setdefault(kind, {})[uid] = delivered
            self._events[kind] = self._events.get(kind, 0) + 1

    def objects(self, kind: Kind) -> Mapping[str, Delivered]:
        """By uid, as of now."""
        with self._lock:
            return dict(self._objects.get(kind, {}))

    def events(self, kind: Kind) -> int:
        """How many events the watch has brought."""
        with self._lock:
            return self._events.get(kind, 0)

    def drop(self, kind: Kind, gone: Mapping[str, Delivered]) -> None:
        """These are no more, unless the watch has brought something newer of them meanwhile."""
        with self._lock:
            objects = self._objects.get(kind, {})
            for uid, delivered in gone.items():
                if objects.get(uid) is delivered:
                    del objects[uid]


@dataclass(frozen=True)
class AuditTiming:
    """All in seconds.

    The worst case from a change that is not delivered to the alarm is interval + grace, from an
    API server that does not answer to the alarm interval + patience, each plus a request.
    """

    interval: float = 45
    """Between two audits."""
    grace: float = 30
    """How long a watch may take to bring what a list has."""
    patience: float = 45
    """How long the lists may fail."""
    retry: float = 5
    """Between two attempts while they fail."""
    request: float = 10
    """How long a request may take to be answered."""


@dataclass(frozen=True)
class Suspicion:
    """What a list has and a watch has not brought yet."""

    watch: Watch
    versions: Mapping[str, int]
    """By uid, of objects that changed."""
    vanished: frozenset[str]
    """The uids of objects that the watch brought before the list, which had them no more."""


def suspect(
    watch: Watch, before: Mapping[str, Delivered], listed: Mapping[str, int]
) -> Suspicion | None:
    """What must still be delivered. `before` was read before the list was asked for."""
    behind = {
        uid: version
        for uid, version in listed.items()
        if uid not in before or before[uid].version < version
    }
    vanished = frozenset(
        uid for uid, delivered in before.items() if not delivered.gone and uid not in listed
    )
    return Suspicion(watch, behind, vanished) if behind or vanished else None


def remaining(suspicion: Suspicion, after: Mapping[str, Delivered]) -> Suspicion | None:
    """What of a suspicion is still not delivered."""
    behind = {
        uid: version
        for uid, version in suspicion.versions.items()
        if uid not in after or after[uid].version < version
    }
    vanished = frozenset(uid for uid in suspicion.vanished if uid in after and not after[uid].gone)
    rest = replace(suspicion, versions=behind, vanished=vanished)
    return rest if behind or vanished else None


class WatchAudit:
    """Audits until it is stopped; raises StalledWatchError.

    `namespaces`: none for all. `lost` is told of each object whose deletion was not delivered.
    """

    def __init__(
        self,
        kube: Kube,
        watches: Sequence[Watch],
        deliveries: Deliveries,
        *,
        namespaces: Sequence[str],
        lost: Callable[[Kind, Delivered], None],
        timing: AuditTiming,
    ) -> None:
        self._kube = kube
        self._watches = watches
        self._deliveries = deliveries
        self._namespaces = namespaces
        self._lost = lost
        self._timing = timing
        self._events_at_loss: dict[Kind, int] = {}
        self._passed = time.monotonic()

    @property
    def seconds_since_passed(self) -> float:
        """Since the last audit that found nothing wrong, or since the first began."""
        return time.monotonic() - self._passed

    def run(self, stop: threading.Event) -> None:
        self._passed = time.monotonic()
        failing_since: float | None = None
        wait = self._timing.interval
        while not stop.wait(wait):
            began = time.monotonic()
            try:
                self._audit(stop)
            except KubeError as error:
                failing_since = failing_since or began
                if time.monotonic() - failing_since >= self._timing.patience:
                    raise StalledWatchError(
                        f"nobody can tell whether the watches deliver: {error}"
                    ) from error
                log.warning("the watches cannot be audited: %s", error)
                wait = self._timing.retry
            else:
                failing_since = None
                self._passed = time.monotonic()
                wait = self._timing.interval

    def _audit(self, stop: threading.Event) -> None:
        suspicions = [s for watch in self._watches if (s := self._compare(watch)) is not None]
        if not suspicions or stop.wait(self._timing.grace):
            return
        for suspicion in suspicions:
            rest = remaining(suspicion, self._deliveries.objects(suspicion.watch.kind))
            if rest is not None:
                self._judge(rest)

    def _compare(self, watch: Watch) -> Suspicion | None:
        before = self._deliveries.objects(watch.kind)
        listed = self._list(watch)
        gone = {uid: d for uid, d in before.items() if d.gone and uid not in listed}
        self._deliveries.drop(watch.kind, gone)
        return suspect(watch, before, listed)

    def _list(self, watch: Watch) -> Mapping[str, int]:
        scopes = (self._namespaces if watch.kind.namespaced else ()) or (None,)
        return {
            item["metadata"]["uid"]: int(item["metadata"]["resourceVersion"])
            for namespace in scopes
            for item in self._kube.list(
                watch.kind, namespace, labels=watch.labels, metadata_only=True
            )
        }

    def _judge(self, rest: Suspicion) -> None:
        kind = rest.watch.kind
        if rest.versions:
            raise StalledWatchError(
                f"the watch of {kind.plural} has not delivered {len(rest.versions)} change(s)"
                f" within {self._timing.grace:g} s"
            )
        # A watch that had to list anew (its position was too old) never tells of what was deleted
        # meanwhile: that is a loss to be made good, no stall. Losing twice in silence is one.
        events = self._deliveries.events(kind)
        if self._events_at_loss.get(kind) == events:
            raise StalledWatchError(
                f"the watch of {kind.plural} delivers no deletions, nor anything else"
            )
        self._events_at_loss[kind] = events
        objects = self._deliveries.objects(kind)
        lost = {uid: objects[uid] for uid in rest.vanished & objects.keys()}
        self._deliveries.drop(kind, lost)
        log.warning("the watch of %s has not told of %d deletion(s)", kind.plural, len(lost))
        for delivered in lost.values():
            self._lost(kind, delivered)
