"""An operator in the threads of a test: the reconciler between the queue and the watches of a
process, with a clock that can be moved on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

from llmengine.store import Store, Timeouts
from llmengine_operator.catalog import EngineStore
from llmengine_operator.config import Config
from llmengine_operator.handlers import WATCHES, wake
from llmengine_operator.kinds import LLMENGINE, Kind
from llmengine_operator.kube import Kube, KubeClient
from llmengine_operator.kube_errors import KubeError
from llmengine_operator.reconciler import Key, Reconciler
from llmengine_operator.watch_audit import Delivered
from llmengine_operator.workqueue import Backoff, Workers, WorkQueue
from tests.contract.operator.stage import Stage
from tests.contract.operator.watching import Watches

IMPATIENT = Timeouts(connect_seconds=1, read_seconds=2, attempts=1)


class Clock:
    """The time that an operator believes in."""

    def __init__(self) -> None:
        self._ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self._ahead

    def advance(self, **duration: float) -> None:
        self._ahead += timedelta(**duration)


class LiveOperator:
    """Works while it is entered. `raised` has what its passes raised, by key."""

    def __init__(
        self,
        stage: Stage,
        *,
        config: Config | None = None,
        kube: Kube | None = None,
        store: EngineStore | None = None,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self.config = config or stage.config()
        self.client = stage.connect()
        self.clock = clock or Clock()
        self.raised: list[tuple[Key, Exception]] = []
        self.passes: list[Key] = []
        self._queue: WorkQueue[Key] = WorkQueue(backoff=Backoff(first=0.2, cap=5))
        self._kube = kube or self.client
        self.reconciler = Reconciler(
            self._kube,
            self.config,
            self._queue.add,
            store=store or make_store(self.config, stage),
            now=self.clock,
        )
        self._workers = Workers(
            self._queue,
            self.reconciler.reconcile,
            count=self.config.workers,
            observe=self._observe,
            broken=self._broke,
        )
        watched = self.config.watch_namespaces
        places = (*watched, self.config.builds.namespace) if watched else ()
        self._watches = Watches(stage.cluster, WATCHES, places, self._deliver)

    def __enter__(self) -> LiveOperator:
        self.reconciler.start()
        self._workers.start()
        self._watches.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watches.stop()
        assert self._workers.stop(30), "a pass hangs"
        if error is None:
            bugs = [raised for _, raised in self.raised if not isinstance(raised, KubeError)]
            assert not bugs, bugs

    @property
    def writes(self) -> int:
        return self.client.writes

    def resync(self) -> None:
        """What a process does at its start and every ten minutes."""
        self.reconciler.start()

    def _observe(
        self, key: Key, *, seconds: float, error: Exception | None, again: float | None
    ) -> None:
        self.passes.append(key)
        if error is not None:
            self.raised.append((key, error))

    def _broke(self, error: BaseException) -> None:
        raise error

    def _deliver(self, kind: Kind, event: str, obj: Mapping[str, Any]) -> None:
        delivered = Delivered.of(obj, gone=event == "DELETED")
        watched = self.config.watch_namespaces
        if kind == LLMENGINE and watched and delivered.namespace not in watched:
            return
        wake(self.reconciler.wake, kind, delivered, None if delivered.gone else obj)


class Stepper:
    """An operator that makes a pass only when told, and then all that follow from it."""

    def __init__(
        self,
        stage: Stage,
        *,
        config: Config | None = None,
        kube: Kube | None = None,
        store: EngineStore | None = None,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self.config = config or stage.config()
        self.client = kube if isinstance(kube, KubeClient) else stage.connect()
        self.clock = clock or Clock()
        self._ready: dict[Key, None] = {}
        self.due: dict[Key, float | None] = {}
        self.reconciler = Reconciler(
            kube or self.client,
            self.config,
            self._add,
            store=store or make_store(self.config, stage),
            now=self.clock,
        )

    def _add(self, key: Key) -> None:
        self._ready.setdefault(key)

    def run(self, most: int = 200) -> None:
        """Passes over all that exists or did, and over all that these wake. Raises KubeError."""
        self.reconciler.start()
        for known in list(self.due):
            self._add(known)  # as when it is due again
        for _ in range(most):
            if not self._ready:
                return
            key = next(iter(self._ready))
            del self._ready[key]
            self.due[key] = self.reconciler.reconcile(key)
        raise AssertionError(f"passes wake one another for ever: {list(self._ready)}")


def make_store(config: Config, stage: Stage) -> Store:
    return Store(config.store.location, stage.place.credentials, timeouts=IMPATIENT)
