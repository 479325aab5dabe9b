"""The life of an operator process: CRDs, leadership, work, and an end that is always an end.

Whatever stops working ends the whole process with an error, so that a fresh one begins; nothing
is restarted inside. Before it works, the process waits as long as it takes: an API server that is
away at the start must not become a crash loop with ever longer pauses.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol, TypeAlias

from llmengine_operator import logs
from llmengine_operator.config import Config
from llmengine_operator.crds import OutdatedCrdError, PendingCrdError, check_crds
from llmengine_operator.handlers import WATCHES, Wake, Watcher, WatchTiming, wake
from llmengine_operator.health import Check, HttpServer, probe
from llmengine_operator.kinds import LLMENGINE, Kind
from llmengine_operator.kube import Kube, KubeClient
from llmengine_operator.kube_access import Access
from llmengine_operator.kube_errors import KubeError
from llmengine_operator.leader import Leadership, LeaseTiming, LostLeaseError
from llmengine_operator.metrics import Metrics
from llmengine_operator.watch_audit import (
    AuditTiming,
    Delivered,
    Deliveries,
    StalledWatchError,
    WatchAudit,
)
from llmengine_operator.workqueue import Workers, WorkQueue

Key: TypeAlias = tuple[str, str]

EXIT_STOPPED = 0
EXIT_FAILED = 1
EXIT_OUTDATED = 3

log = logging.getLogger(__name__)


class Passes(Protocol):
    """What a process runs: `Reconciler`, or a stand-in for it in a test."""

    @property
    def wake(self) -> Wake: ...

    def start(self) -> None:
        """Called once, by the leader, before anything else. May raise KubeError."""

    def reconcile(self, key: Key) -> float | None:
        """One pass. After how many seconds the next is due, or None. Raises to come back later."""


PassesFactory: TypeAlias = Callable[[Kube, Config, Callable[[Key], None]], Passes]


@dataclass(frozen=True)
class Timing:
    """How patient a process is, in seconds."""

    watch: WatchTiming = field(default_factory=WatchTiming)
    audit: AuditTiming = field(default_factory=AuditTiming)
    startup_retry: float = 5
    """Between two looks at the CRDs."""
    drain: float = 5
    """For the passes under way when the process is to end."""
    ultimatum: float = 9
    """From the wish to end to the end, whatever hangs."""
    longest_pass: float = 600
    """A pass that takes longer hangs: the liveness probe fails."""


class Process:
    """One operator process. `host`: where probes and metrics are served; "" for everywhere."""

    def __init__(
        self,
        config: Config,
        passes: PassesFactory,
        *,
        timing: Timing | None = None,
        host: str = "",
    ) -> None:
        self._config = config
        self._timing = timing or Timing()
        self._stop = threading.Event()
        self._drained = threading.Event()
        self._failure = ""
        self._crds_checked = False
        self._working = False
        lease = LeaseTiming(config.leader_election.lease_seconds)
        access = Access(connections=config.workers + 2)
        # Apart from one another, so that none has to wait for the others' connections.
        self._kube = KubeClient(access)
        self._audit_kube = KubeClient(access, timeout=(5, self._timing.audit.request))
        self._lease_kube = KubeClient(access, timeout=lease.request_timeout)
        self._queue: WorkQueue[Key] = WorkQueue()
        self._passes = passes(self._kube, config, self._queue.add)
        self._deliveries = Deliveries()
        self.metrics = Metrics()
        self._workers = Workers(
            self._queue,
            self._pass,
            count=config.workers,
            observe=self._observe,
            broken=self._broke,
        )
        self._watcher = Watcher(
            access,
            watches=WATCHES,
            namespaces=self._namespaces,
            deliver=self._deliver,
            ended=self._fail,
            timing=self._timing.watch,
        )
        self._audit = WatchAudit(
            self._audit_kube,
            WATCHES,
            self._deliveries,
            namespaces=self._namespaces,
            lost=self._wake,
            timing=self._timing.audit,
        )
        self._leadership = Leadership(
            self._lease_kube, namespace=config.namespace, identity=_identity(), timing=lease
        )
        self._servers = (
            HttpServer(
                host,
                config.health_port,
                {
                    "/healthz": probe(self._liveness_checks()),
                    "/readyz": probe({"crds": self._crds_problem}),
                },
            ),
            HttpServer(host, config.metrics_port, {"/metrics": self.metrics.route}),
        )
        self._add_metrics()

    def run(self) -> int:
        """Until a signal or a failure. Returns the exit status of the process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        for server in self._servers:
            server.start()
        try:
            if self._until_done("the CRDs", self._check_crds) and self._await_leadership():
                self._work()
        except OutdatedCrdError as error:
            log.critical("%s", error)
            return EXIT_OUTDATED
        return EXIT_FAILED if self._failure else EXIT_STOPPED

    def _until_done(self, what: str, step: Callable[[], None]) -> bool:
        """Tries a step until the API server lets it succeed; whether it did before a signal."""
        while not self._stop.is_set():
            try:
                step()
            except (KubeError, PendingCrdError) as error:
                log.warning("waiting for %s: %s", what, error)
                self._stop.wait(self._timing.startup_retry)
            else:
                return True
        return False

    def _check_crds(self) -> None:
        check_crds(self._kube)
        self._crds_checked = True

    def _await_leadership(self) -> bool:
        return not self._elected or self._leadership.acquire(self._stop)

    def _work(self) -> None:
        if self._elected:
            self._background("lease", lambda: self._leadership.keep(self._drained), self._lost)
            self._background("deadline", self._enforce_deadline, self._lost)
        if self._until_done("the list of engines", self._passes.start):
            self._workers.start()
            self._watcher.start()
            self._background("audit", lambda: self._audit.run(self._stop), self._broke)
            self._working = True
            log.info("working, with %d workers", self._config.workers)
            self._stop.wait()
        self._end()

    def _enforce_deadline(self) -> None:
        """Apart from the renewal, which may hang in a request."""
        while not self._drained.wait(0.25):
            if self._leadership.overdue:
                raise LostLeaseError("the lease could not be renewed in time")

    def _end(self) -> None:
        if self._workers.stop(self._timing.drain):
            # Only now: what still works must not have a successor.
            self._drained.set()
            if self._elected:
                self._leadership.release()
        else:
            log.warning("a pass did not end in time: the lease is left to run out")
        if not self._watcher.stop(1):
            log.debug("the watches did not end in time")  # they write nothing, so let them be

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        log.info("%s: this process ends", signal.Signals(number).name)
        self._set_ultimatum()
        self._stop.set()

    def _fail(self, why: str, error: BaseException | None = None) -> None:
        """Ends the process, from any thread. The first reason counts."""
        if self._stop.is_set():
            return
        log.critical("this process ends: %s", why, exc_info=error)
        self._failure = why
        self._set_ultimatum()
        self._stop.set()

    def _broke(self, error: BaseException) -> None:
        foreseen = isinstance(error, StalledWatchError)
        self._fail(str(error) or repr(error), None if foreseen else error)

    def _lost(self, error: BaseException) -> None:
        """There may be another leader by now: no more writes, not even of a pass half done."""
        log.critical("this process ends at once: %s", error)
        os._exit(EXIT_FAILED)

    def _set_ultimatum(self) -> None:
        timer = threading.Timer(self._timing.ultimatum, os._exit, [EXIT_FAILED])
        timer.daemon = True
        timer.start()

    def _background(
        self, name: str, run: Callable[[], None], broke: Callable[[BaseException], None]
    ) -> None:
        def body() -> None:
            try:
                run()
            except BaseException as error:
                broke(error)

        threading.Thread(target=body, name=name, daemon=True).start()

    @property
    def _elected(self) -> bool:
        return self._config.leader_election.enabled

    @property
    def _namespaces(self) -> tuple[str, ...]:
        """Those that are watched; none for all. Builds may run where no engine is served."""
        watched = self._config.watch_namespaces
        return tuple(dict.fromkeys((*watched, self._config.builds.namespace))) if watched else ()

    def _deliver(self, kind: Kind, event: str | None, obj: Mapping[str, Any]) -> None:
        delivered = Delivered.of(obj, gone=event == "DELETED")
        self._wake(kind, delivered, None if delivered.gone else obj)
        self._deliveries.record(kind, obj["metadata"]["uid"], delivered)

    def _wake(self, kind: Kind, delivered: Delivered, obj: Mapping[str, Any] | None = None) -> None:
        watched = self._config.watch_namespaces
        if kind == LLMENGINE and watched and delivered.namespace not in watched:
            return  # the builds namespace is watched for its Jobs
        wake(self._passes.wake, kind, delivered, obj)

    def _pass(self, key: Key) -> float | None:
        with logs.about(engine=_name(key)):
            return self._passes.reconcile(key)

    def _observe(
        self, key: Key, *, seconds: float, error: Exception | None, again: float | None
    ) -> None:
        self.metrics.observe_pass(seconds=seconds, error=error, again=again)
        if error is None:
            return
        # Of what was foreseen the sentence says all; of a bug the trace is needed.
        trace = None if isinstance(error, KubeError) else error
        with logs.about(engine=_name(key)):
            log.warning("pass failed, again in %.1f s: %s", again, error, exc_info=trace)

    def _liveness_checks(self) -> Mapping[str, Check]:
        def watches() -> str | None:
            silent = self._watcher.seconds_since_alive
            return _over(self._working and silent, 60, "the event loop has not come round")

        def audit() -> str | None:
            since = self._audit.seconds_since_passed
            audit = self._timing.audit
            limit = audit.interval + audit.grace + audit.patience + 60
            return _over(self._working and since, limit, "no audit of the watches has passed")

        def workers() -> str | None:
            longest = self._queue.longest_pass_seconds
            return _over(longest, self._timing.longest_pass, "a pass has been running")

        return {"watches": watches, "audit": audit, "workers": workers}

    def _crds_problem(self) -> str | None:
        return None if self._crds_checked else "the CRDs could not be checked yet; see the log"

    def _add_metrics(self) -> None:
        m, queue = self.metrics, self._queue
        m.gauge("workqueue_depth", "Keys that wait for a worker.", lambda: queue.depth)
        m.gauge(
            "workqueue_oldest_seconds",
            "For how long the key that waits longest has waited.",
            lambda: queue.oldest_seconds,
        )
        m.gauge(
            "workqueue_longest_pass_seconds",
            "For how long the pass that runs longest has run.",
            lambda: queue.longest_pass_seconds,
        )
        m.gauge("leader", "1 in the process that works.", lambda: float(self._working))
        m.counters(
            "api_requests_total",
            "Requests to the API server, without those of the watches.",
            ("verb", "kind"),
            self._requests,
        )
        m.counters(
            "watch_events_total",
            "Events that the watches have brought.",
            ("kind",),
            lambda: {(w.kind.kind,): self._deliveries.events(w.kind) for w in WATCHES},
        )

    def _requests(self) -> Mapping[tuple[str, ...], float]:
        total: Counter[tuple[str, ...]] = Counter()
        for client in (self._kube, self._audit_kube, self._lease_kube):
            total.update(client.requests)
        return total


def _name(key: Key) -> str:
    return "/".join(part for part in key if part)


def _identity() -> str:
    """Of the pod, whose processes follow one another: a restarted container need not wait."""
    return os.environ.get("POD_NAME") or f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"


def _over(seconds: float, limit: float, what: str) -> str | None:
    return f"{what} for {seconds:.0f} s" if seconds > limit else None
