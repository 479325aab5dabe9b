"""One operator works at a time: the one that holds a Lease, which it must not outlive.

kubernetes.leaderelection is not used: it measures with the wall clock, cannot be stopped, never
releases, and a request that hangs keeps it from noticing that its time is up.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from llmengine_operator.events import micro_time
from llmengine_operator.kinds import LEASE
from llmengine_operator.kube import Kube
from llmengine_operator.kube_errors import (
    AlreadyExistsError,
    ConflictError,
    KubeError,
    NotFoundError,
)

LEASE_NAME = "llmengine-operator"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeaseTiming:
    """In seconds, all derived from how long the others wait for a leader that is silent."""

    duration: float

    @property
    def deadline(self) -> float:
        """A leader that could not renew for so long stops, before the others begin."""
        return self.duration * 2 / 3

    @property
    def renewal(self) -> float:
        return self.duration / 7.5

    @property
    def retry(self) -> float:
        """Between two looks at somebody else's lease, or after a failed renewal."""
        return min(1.0, self.duration / 15)

    @property
    def request_timeout(self) -> tuple[float, float]:
        """For connecting and for reading: two attempts fit into the deadline."""
        return (self.duration / 10, self.duration / 6)


class Sighting:
    """For how long a Lease has not changed, by our own clock: that of its holder may be wrong."""

    def __init__(self) -> None:
        self._version = ""
        self._since = 0.0

    def unchanged(self, lease: Mapping[str, Any], at: float) -> float:
        """In seconds; 0 when it has changed since the last look."""
        version = lease["metadata"]["resourceVersion"]
        if version != self._version:
            self._version, self._since = version, at
        return at - self._since


def may_take(lease: Mapping[str, Any], identity: str, unchanged: float) -> bool:
    """Whether a Lease is ours, nobody's, or of somebody who has been silent for too long."""
    spec = lease.get("spec") or {}
    holder = spec.get("holderIdentity") or ""
    return holder in ("", identity) or unchanged >= spec.get("leaseDurationSeconds", 0)


def taken(
    lease: Mapping[str, Any], identity: str, duration: float, now: datetime
) -> dict[str, Any]:
    """The Lease as its new holder, or its old one, writes it."""
    spec = dict(lease.get("spec") or {})
    if spec.get("holderIdentity") != identity:
        spec["acquireTime"] = micro_time(now)
        spec["leaseTransitions"] = spec.get("leaseTransitions", 0) + 1
    spec["holderIdentity"] = identity
    spec["leaseDurationSeconds"] = math.ceil(duration)
    spec["renewTime"] = micro_time(now)
    return {**lease, "spec": spec}


def released(lease: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """The Lease as its holder leaves it behind: free for whoever looks next."""
    spec = {k: v for k, v in (lease.get("spec") or {}).items() if k != "holderIdentity"}
    return {**lease, "spec": {**spec, "leaseDurationSeconds": 1, "renewTime": micro_time(now)}}


class LostLeaseError(Exception):
    """Somebody else holds the Lease, or may hold it by now."""


class Leadership:
    """Acquires, renews and releases the Lease.

    `identity` must be of this process alone; or of a pod, whose processes follow one another.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        namespace: str,
        identity: str,
        timing: LeaseTiming,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._identity = identity
        self._timing = timing
        self._clock = clock
        self._now = now
        self._sighting = Sighting()
        self._lease: Mapping[str, Any] | None = None
        self._writing = threading.Lock()
        self._renewed = 0.0

    @property
    def overdue(self) -> bool:
        """Whether the deadline for the next renewal has passed: the process must end at once."""
        return self._clock() - self._renewed >= self._timing.deadline

    def acquire(self, stop: threading.Event) -> bool:
        """Waits until this process is the leader. Whether it is; it is not when it was stopped."""
        announced = ""
        while not stop.is_set():
            try:
                holder = self._try_to_acquire()
            except KubeError as error:
                holder = f"unknown: {error}"
            if holder == self._identity:
                log.info("this process is the leader")
                return True
            if holder != announced:
                log.info("waiting for the lease; its holder is %s", holder or "nobody")
                announced = holder
            stop.wait(self._timing.retry)
        return False

    def keep(self, stop: threading.Event) -> None:
        """Renews until stopped. Raises LostLeaseError when somebody else has the Lease."""
        wait = self._timing.renewal
        while not stop.wait(wait):
            with self._writing:
                if stop.is_set():  # and perhaps released, while this waited for its turn
                    return
                try:
                    renewed = self._renew()
                except KubeError as error:
                    log.warning("the lease was not renewed: %s", error)
                    renewed = False
            wait = self._timing.renewal if renewed else self._timing.retry

    def release(self) -> None:
        """Lets the next one begin at once. After all work, and after keep() was stopped."""
        with self._writing:
            if self._lease is None:
                return
            try:
                self._kube.replace(LEASE, released(self._lease, self._now()))
                log.info("the lease is released")
            except KubeError as error:
                log.warning("the lease was not released, the next leader has to wait: %s", error)

    def _try_to_acquire(self) -> str:
        """The holder; ourselves if it worked."""
        asked = self._clock()
        try:
            lease = self._kube.get(LEASE, self._namespace, LEASE_NAME)
        except NotFoundError:
            return self._create(asked)
        unchanged = self._sighting.unchanged(lease, self._clock())
        holder = str((lease.get("spec") or {}).get("holderIdentity") or "")
        if not may_take(lease, self._identity, unchanged):
            return holder
        return self._write(lease, asked)

    def _create(self, asked: float) -> str:
        lease = {"metadata": {"namespace": self._namespace, "name": LEASE_NAME}}
        body = taken(lease, self._identity, self._timing.duration, self._now())
        try:
            self._lease = self._kube.create(LEASE, body)
        except AlreadyExistsError:
            return ""
        self._renewed = asked
        return self._identity

    def _write(self, lease: Mapping[str, Any], asked: float) -> str:
        body = taken(lease, self._identity, self._timing.duration, self._now())
        try:
            self._lease = self._kube.replace(LEASE, body)
        except (ConflictError, NotFoundError):
            return ""
        # As of when it was asked for: the others count from when they see it, which is later.
        self._renewed = asked
        return self._identity

    def _renew(self) -> bool:
        asked = self._clock()
        if self._lease is not None and self._write(self._lease, asked) == self._identity:
            return True
        # Somebody wrote to it: an annotation, perhaps, or a new holder. Or deleted it.
        holder = self._try_to_acquire()
        if holder not in ("", self._identity):
            raise LostLeaseError(f"the lease is now held by {holder}")
        return holder == self._identity
