"""Who may follow a runtime's new image now: a bad image stops at the first engines that get it."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from llmengine_operator.decision import EngineId


class RolloutGate:
    """At most `limit` engines roll to a new image at a time. Shared by all workers.

    After a start nobody enters until every engine was looked at: some may be rolling already.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._rolling: set[EngineId] = set()
        self._expected: set[EngineId] = set()

    def expect(self, engines: Iterable[EngineId]) -> None:
        """Engines that exist and have to be looked at."""
        with self._lock:
            self._expected |= set(engines)

    def seen(self, engine: EngineId) -> bool:
        """The engine was looked at. Whether it was the last that had to be."""
        with self._lock:
            last = self._expected == {engine}
            self._expected.discard(engine)
            return last

    def enter(self, engine: EngineId) -> bool:
        """Whether this engine may take the new image; if so it holds a place until it leaves."""
        with self._lock:
            full = len(self._rolling) >= self._limit or not self._expected <= {engine}
            if engine not in self._rolling and full:
                return False
            self._rolling.add(engine)
            return True

    def holders(self) -> frozenset[EngineId]:
        """Who has a place now: those that the others wait for."""
        with self._lock:
            return frozenset(self._rolling)

    def resume(self, engine: EngineId) -> None:
        """The engine is found rolling: it holds a place, be it one too many."""
        with self._lock:
            self._rolling.add(engine)

    def leave(self, engine: EngineId) -> bool:
        """The engine has rolled out, or is gone. Whether it held a place."""
        with self._lock:
            held = engine in self._rolling
            self._rolling.discard(engine)
            return held
