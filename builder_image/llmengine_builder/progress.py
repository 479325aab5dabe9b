"""How far a build is: a line on stdout for each change, and an object in the store every 10 s.

Nothing here can fail a build.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from llmengine.artifact import BuildProgress
from llmengine.last_words import print_line
from llmengine.requests import Phase
from llmengine.store import StoreError

HEARTBEAT_SECONDS = 10.0


class Progress:
    """The phases of one build, and the seconds that each has taken.

    Entered, it calls `put` every HEARTBEAT_SECONDS and at each new phase, from a thread.
    """

    def __init__(
        self,
        key: str,
        job: str,
        put: Callable[[BuildProgress], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key = key
        self._job = job
        self._put = put
        self._clock = clock
        self._started = clock()
        self._phase = Phase.RESOLVE
        self._phase_started = self._started
        self._percent = 0
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._beat, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Not joined: a last beat into a dead store must not hold up the end of the build.
        with self._lock:
            self._over = True
        self._news.set()

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """What happens inside belongs to `phase`."""
        with self._lock:
            self._phase, self._phase_started = phase, self._clock()
        self._say(0)
        self._news.set()
        yield
        self.percent(100)
        self._seconds = self.seconds

    def percent(self, percent: int) -> None:
        """How much of the phase is done; less than was said before is not heard."""
        with self._lock:
            if percent <= self._percent:
                return
        self._say(min(percent, 100))

    def of_bytes(self, total: int) -> Callable[[int], None]:
        """Turns bytes that were dealt with since into percent of `total`; for several threads."""
        lock, done = threading.Lock(), 0

        def count(more: int) -> None:
            nonlocal done
            with lock:
                done += more
                # 100 is for the end of the phase, which has more to do than to move bytes.
                percent = 99 * done // max(total, 1)
            self.percent(min(percent, 99))

        return count

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, the running one included."""
        running = round(self._clock() - self._phase_started, 2)
        return {**self._seconds, self._phase.value: running}

    @property
    def elapsed(self) -> float:
        """Seconds since the build began."""
        return self._clock() - self._started

    def _say(self, percent: int) -> None:
        with self._lock:
            self._percent = percent
            phase = self._phase
        print_line({"phase": phase.value, "percent": percent, "seconds": round(self.elapsed, 2)})

    def _beat(self) -> None:
        complained = False
        while not self._over:
            self._news.clear()
            heartbeat = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
            said = BuildProgress(
                key=self._key,
                phase=self._phase.value,
                percent=self._percent,
                heartbeat=heartbeat,
                job=self._job,
            )
            try:
                self._put(said)
            except StoreError as error:
                with self._lock:  # nothing may be said after the last words
                    if not complained and not self._over:
                        print_line({"warning": f"progress cannot be told: {error}"})
                complained = True
            self._news.wait(HEARTBEAT_SECONDS)
