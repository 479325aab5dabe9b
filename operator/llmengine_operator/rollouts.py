"""Who may follow a runtime's new image now: a bad image stops at the first engines that get it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable

from llmengine_operator.decision import EngineId, Turn

# Of those who wait, so many are told whom they wait for, and look again when a place is free. With
# all of them a hundred engines would look, and write, ten thousand times.
NEAR = 3


class RolloutGate:
    """At most `limit` engines roll to a new image at a time. Shared by all workers.

    After a start nobody enters until every engine was looked at: some may be rolling already.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._rolling: set[EngineId] = set()
        self._expected: set[EngineId] = set()
        # In the order in which they came.
        self._line: dict[EngineId, None] = {}

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
        """Whether this engine may take the new image: it holds a place until it leaves, or waits in
        line until it gives up."""
        with self._lock:
            full = len(self._rolling) >= self._limit or not self._expected <= {engine}
            if engine not in self._rolling and full:
                self._line.setdefault(engine)
                return False
            self._rolling.add(engine)
            self._line.pop(engine, None)
            return True

    def give_up(self, engine: EngineId) -> bool:
        """The engine waits for no image any more. Whether it was one of those who look."""
        with self._lock:
            near = engine in self._near(NEAR)
            self._line.pop(engine, None)
            return near

    def turn(self, engine: EngineId) -> Turn:
        """What an engine in line is told of those before it."""
        with self._lock:
            if engine in self._near(NEAR):
                return Turn(rolling=frozenset(self._rolling))
            return Turn(more_than=NEAR)

    def next_in_line(self) -> list[EngineId]:
        """Who has to look when a place is free: who may take it, and who is near it then."""
        with self._lock:
            return self._near(NEAR + self._limit)

    def _near(self, count: int) -> list[EngineId]:
        return list(itertools.islice(self._line, count))

    def resume(self, engine: EngineId) -> None:
        """The engine is found rolling: it holds a place, be it one too many."""
        with self._lock:
            self._rolling.add(engine)
            self._line.pop(engine, None)

    def leave(self, engine: EngineId) -> bool:
        """The engine has rolled out, or is gone. Whether it held a place."""
        with self._lock:
            held = engine in self._rolling
            self._rolling.discard(engine)
            return held
