"""Who may follow a runtime's new image now: a bad image stops at the first engines that get it."""

from __future__ import annotations

import threading

EngineId = tuple[str, str]


class RolloutGate:
    """At most `limit` engines roll to a new image at a time. Shared by all workers."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._rolling: set[EngineId] = set()

    def enter(self, engine: EngineId) -> bool:
        """Whether this engine may take the new image; if so it holds a place until it leaves."""
        with self._lock:
            if engine not in self._rolling and len(self._rolling) >= self._limit:
                return False
            self._rolling.add(engine)
            return True

    def leave(self, engine: EngineId) -> bool:
        """The engine has rolled out, or is gone. Whether it held a place."""
        with self._lock:
            held = engine in self._rolling
            self._rolling.discard(engine)
            return held
