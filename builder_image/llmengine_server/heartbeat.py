"""The loop's side of the files that `alive` and `serve` read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from llmengine_server import alive

# A pass may take a millisecond; the file need not be written each time.
_SECONDS_BETWEEN = 0.2


class Heartbeat:
    """Writes the heartbeat, sees a drain begin, and tells that it is done.

    `clock` must be the system's monotonic clock: other processes compare with it.
    """

    def __init__(self, directory: Path, clock: Callable[[], float]) -> None:
        self._draining = directory / alive.DRAINING
        self._drained = directory / alive.DRAINED
        self._clock = clock
        self._last = 0.0
        self._told = False
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / alive.HEARTBEAT
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.deadline: float | None = None

    def beat(self) -> None:
        """Say that the loop turns, and look for the wish to stop."""
        now = self._clock()
        if now - self._last < _SECONDS_BETWEEN:
            return
        self._last = now
        # One write of a fixed width: a reader never sees half of it.
        os.pwrite(self._file, b"%10d %20.3f\n" % (os.getpid(), now), 0)
        if self.deadline is None and self._draining.exists():
            self.deadline = float(self._draining.read_text())

    def tell_drained(self) -> None:
        if not self._told:
            self._drained.touch()
            self._told = True
