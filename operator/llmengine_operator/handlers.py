"""The only module that imports kopf: watch events wake the queue, and nothing else happens.

kopf writes nothing: no finalizer, annotation, Event, or peering object. A handler that only looks
at events needs none of them. When its watches end, for whatever reason, whoever started them is
told, and the process must end: kopf has no way to start one again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import kopf

from llmengine_operator.kinds import DEPLOYMENT, JOB, LLMENGINE, NODE, POD, RUNTIME, Kind
from llmengine_operator.kube import label_selector
from llmengine_operator.kube_access import Access
from llmengine_operator.watch_audit import Delivered, Watch

MANAGED = {"app.kubernetes.io/managed-by": "llmengine-operator"}
WATCHES = (
    Watch(LLMENGINE),
    Watch(RUNTIME),
    Watch(NODE),
    Watch(JOB, MANAGED),
    Watch(DEPLOYMENT, MANAGED),
    Watch(POD, MANAGED),
)

log = logging.getLogger(__name__)


def _not_about_signals(record: logging.LogRecord) -> bool:
    return "OS signals are ignored" not in record.getMessage()


# Else kopf asks the system for a user name, which the image's user has not. Its type is private.
_IDENTITY: Any = "llmengine-operator"

# kopf warns at each start that it will not end at SIGTERM. This process sees to that.
logging.getLogger("kopf._core.reactor.running").addFilter(_not_about_signals)


class Wake(Protocol):
    """Where events go. Called for every event, from one thread: return at once."""

    def engine(self, namespace: str, name: str) -> None: ...

    def runtime(self, name: str) -> None: ...

    def node(self, name: str, obj: Mapping[str, Any] | None) -> None: ...

    def child(
        self,
        kind: str,
        namespace: str,
        labels: Mapping[str, str],
        annotations: Mapping[str, str],
    ) -> None: ...


def wake(to: Wake, kind: Kind, delivered: Delivered, obj: Mapping[str, Any] | None = None) -> None:
    """Passes on that an object changed, or is gone: then there is no `obj`."""
    if kind == LLMENGINE:
        to.engine(delivered.namespace, delivered.name)
    elif kind == RUNTIME:
        to.runtime(delivered.name)
    elif kind == NODE:
        to.node(delivered.name, obj)
    else:
        to.child(kind.kind, delivered.namespace, delivered.labels, delivered.annotations)


@dataclass(frozen=True)
class WatchTiming:
    """How long kopf tries, in seconds."""

    error_backoffs: tuple[float, ...] = (1, 1, 2, 3, 5, 8, 13)
    """Between the attempts of a request that is answered 403, 429 or 5xx, or not at all."""
    server_timeout: float = 240
    """A watch is asked for anew after this time, healthy or not."""
    inactivity_timeout: float = 70
    """Without any event: bookmarks come every minute, the server remembers 75 s of changes."""
    connect_timeout: float = 10
    request_timeout: float = 30


class Watcher:
    """kopf, in a thread and an event loop of its own.

    `deliver` is called in that thread with each event: kind, type (None when it came from a list)
    and object. `ended` is told why the watches ended, unless stop() ended them.
    """

    def __init__(
        self,
        access: Access,
        *,
        watches: Sequence[Watch],
        namespaces: Sequence[str],
        deliver: Callable[[Kind, str | None, Mapping[str, Any]], None],
        ended: Callable[[str], None],
        timing: WatchTiming,
    ) -> None:
        self._access = access
        self._watches = watches
        self._namespaces = namespaces
        self._deliver = deliver
        self._ended = ended
        self._timing = timing
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._stopping = threading.Event()
        self._over = False
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="watches", daemon=True)

    @property
    def seconds_since_alive(self) -> float:
        """Since the event loop last came round; it does so every second."""
        return time.monotonic() - self._beat

    def start(self) -> None:
        self._beat = time.monotonic()
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Whether the watches ended in time."""
        self._stopping.set()
        if self._thread.is_alive() and not self._over:
            if self._loop is not None and self._stop is not None:
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(seconds)
        return self._over or not self._thread.is_alive()

    def _run(self) -> None:
        try:
            asyncio.run(self._operate())
        except BaseException as error:
            self._finish(f"the watches ended: {error!r}")
        else:
            self._finish("the watches ended")

    def _finish(self, why: str) -> None:
        if not self._over and not self._stopping.is_set():
            self._over = True
            self._ended(why)

    async def _operate(self) -> None:
        """Returns when stop() was called; else it raises, or hangs, after _finish() was called."""
        self._loop = asyncio.get_running_loop()
        # Not a threading.Event: kopf would wait for it in a thread that outlives its failure.
        self._stop = asyncio.Event()
        if self._stopping.is_set():
            return
        self._pulse(self._loop)
        existing = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(
            registry=self._registry(),
            settings=operator_settings(self._watches, self._timing),
            identity=_IDENTITY,
            standalone=True,
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            stop_flag=self._stop,
        )
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        # Told before kopf ends: after a failure its end hangs, since watches that are left wait
        # for a login that nobody performs any more, and swallow their cancellation.
        self._finish(f"the watches ended: {done.pop().exception()!r}")
        await kopf.run_tasks(tasks, ignored=existing)

    def _pulse(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beat = time.monotonic()
        loop.call_later(1, self._pulse, loop)

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        # Retried inside kopf, a failing login would freeze every watch without a word.
        kopf.on.login(id="login", registry=registry, errors=kopf.ErrorsMode.IGNORED)(self._login)
        for kind in (watch.kind for watch in self._watches):
            kopf.on.event(
                group=kind.group,
                version=kind.version,
                plural=kind.plural,
                id=kind.plural,
                registry=registry,
            )(self._handler(kind))
        return registry

    def _handler(self, kind: Kind) -> Callable[..., Awaitable[None]]:
        async def handle(*, event: kopf.RawEvent, **_: Any) -> None:
            self._deliver(kind, event["type"], event["object"])

        return handle

    def _login(self, **_: Any) -> kopf.ConnectionInfo:
        endpoint = self._access.endpoint()
        scheme, *rest = endpoint.authorization.split(" ", 1)
        return kopf.ConnectionInfo(
            server=endpoint.server,
            ca_path=endpoint.ca_file,
            certificate_path=endpoint.certificate_file,
            private_key_path=endpoint.key_file,
            scheme=scheme or None,
            token=rest[0] if rest else None,
            insecure=endpoint.insecure,
            proxy_url=endpoint.proxy,
        )


def operator_settings(watches: Sequence[Watch], timing: WatchTiming) -> kopf.OperatorSettings:
    """kopf's settings: quiet, bounded, and filtered by the server."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.posting.enabled = False
    # No list or watch of CRDs and namespaces: what is served is known, and a CRD that goes away
    # ends the watch with an error, as it should.
    settings.scanning.disabled = True
    settings.watching.server_timeout = timing.server_timeout
    settings.watching.client_timeout = timing.server_timeout + 30
    settings.watching.inactivity_timeout = timing.inactivity_timeout
    settings.watching.connect_timeout = timing.connect_timeout
    settings.watching.reconnect_backoff = 1.0
    settings.watching.chunk_size = 500
    for watch in watches:
        if watch.labels:
            kind = watch.kind
            selector = label_selector(watch.labels)
            settings.watching.label_selectors[kind.group, kind.version, kind.plural] = selector
    settings.networking.request_timeout = timing.request_timeout
    settings.networking.connect_timeout = timing.connect_timeout
    settings.networking.error_backoffs = timing.error_backoffs
    settings.networking.enforce_retry_after = True
    settings.queueing.error_delays = (1, 2, 5, 10)
    settings.queueing.exit_timeout = 0.5
    settings.execution.max_workers = 1
    # The last resort when kopf's own end hangs after a failure: it kills the process.
    settings.process.ultimate_exiting_timeout = 20
    return settings
