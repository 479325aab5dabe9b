"""Which key is to be worked on next: no key twice at once, none lost, a failing one ever later.

The semantics are those of client-go's queues. `Schedule` is the pure part and takes the time as
an argument; `WorkQueue` adds the lock and the waiting; `Workers` the threads.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Backoff:
    """Seconds to wait after the n-th failure in a row: doubling from `first` up to `cap`.

    `jitter` is the share of the delay that is left to chance, so that keys that failed together
    (because the store was away) do not come back together.
    """

    first: float = 1.0
    cap: float = 300.0
    jitter: float = 0.2

    def delay(self, failures: int, chance: float) -> float:
        """`failures` >= 1; `chance` in [0, 1)."""
        # 2.0 ** 1024 overflows, and the cap is reached long before.
        full = min(self.cap, self.first * 2.0 ** min(failures - 1, 62))
        return full * (1 - self.jitter * chance)


class Schedule(Generic[Key]):
    """Ready, running and delayed keys. Times are seconds of any clock that only goes forward."""

    def __init__(self) -> None:
        self._ready: dict[Key, float] = {}  # in the order of arrival, with the time of it
        self._running: dict[Key, float] = {}
        self._dirty: dict[Key, float] = {}  # asked for again while it runs
        self._due: dict[Key, float] = {}  # delayed, by the time it becomes ready
        self._heap: list[tuple[float, int, Key]] = []  # of _due; outdated entries stay until popped
        self._sequence = itertools.count()

    def add(self, key: Key, now: float) -> None:
        """The key is to be worked on as soon as possible, and by one worker only."""
        if key in self._running:
            self._dirty.setdefault(key, now)
        else:
            self._ready.setdefault(key, now)

    def add_at(self, key: Key, due: float) -> None:
        """The same later. Of several wishes for one key the earliest counts."""
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._heap, (due, next(self._sequence), key))

    def start_next(self, now: float) -> Key | None:
        """The key to work on now, if there is one. Whoever takes it calls finish() later.

        Earlier wishes for a later pass are void: the pass that starts now decides anew.
        """
        self._promote(now)
        if not self._ready:
            return None
        key = next(iter(self._ready))
        del self._ready[key]
        self._due.pop(key, None)
        self._running[key] = now
        return key

    def finish(self, key: Key) -> None:
        """The work on the key has ended; it is ready again if it was asked for meanwhile."""
        del self._running[key]
        if key in self._dirty:
            self._ready[key] = self._dirty.pop(key)

    def next_due(self) -> float | None:
        """When the next delayed key becomes ready."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def depth(self, now: float) -> int:
        """How many keys wait for a worker."""
        self._promote(now)
        return len(self._ready) + len(self._dirty)

    def oldest(self, now: float) -> float:
        """For how long the key that waits longest for a worker has waited, or 0."""
        self._promote(now)
        return max((now - since for since in self._ready.values()), default=0.0)

    def longest(self, now: float) -> float:
        """For how long the pass that runs longest has run, or 0."""
        return max((now - since for since in self._running.values()), default=0.0)

    def _promote(self, now: float) -> None:
        while (due := self.next_due()) is not None and due <= now:
            _, _, key = heapq.heappop(self._heap)
            del self._due[key]
            self.add(key, due)


class WorkQueue(Generic[Key]):
    """A schedule that threads share."""

    def __init__(
        self,
        *,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._chance = chance
        self._changed = threading.Condition()
        self._schedule: Schedule[Key] = Schedule()
        self._failures: dict[Key, int] = {}
        self._closed = False

    def add(self, key: Key) -> None:
        with self._changed:
            self._schedule.add(key, self._clock())
            self._changed.notify()

    def add_after(self, key: Key, seconds: float) -> None:
        with self._changed:
            self._schedule.add_at(key, self._clock() + seconds)
            self._changed.notify()

    def retry(self, key: Key) -> float:
        """The key failed: it comes back after a while, the later the more often it failed.

        Returns the delay in seconds.
        """
        with self._changed:
            self._failures[key] = self._failures.get(key, 0) + 1
            delay = self._backoff.delay(self._failures[key], self._chance())
            self._schedule.add_at(key, self._clock() + delay)
            self._changed.notify()
            return delay

    def forget(self, key: Key) -> None:
        """The key succeeded: its next failure is the first."""
        with self._changed:
            self._failures.pop(key, None)

    def get(self) -> Key | None:
        """Waits for a key to work on; None once the queue is closed."""
        with self._changed:
            while not self._closed:
                key = self._schedule.start_next(self._clock())
                if key is not None:
                    return key
                due = self._schedule.next_due()
                self._changed.wait(None if due is None else max(0.0, due - self._clock()))
            return None

    def done(self, key: Key) -> None:
        with self._changed:
            self._schedule.finish(key)
            self._changed.notify()

    def close(self) -> None:
        """No more keys are handed out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def depth(self) -> int:
        with self._changed:
            return self._schedule.depth(self._clock())

    @property
    def oldest_seconds(self) -> float:
        with self._changed:
            return self._schedule.oldest(self._clock())

    @property
    def longest_pass_seconds(self) -> float:
        with self._changed:
            return self._schedule.longest(self._clock())


Key_contra = TypeVar("Key_contra", bound=Hashable, contravariant=True)


class PassObserver(Protocol[Key_contra]):
    """Told of each pass: how long it took, what it raised, in how many seconds the next is due."""

    def __call__(
        self, key: Key_contra, *, seconds: float, error: Exception | None, again: float | None
    ) -> None: ...


class Workers(Generic[Key]):
    """Threads that take keys and run passes.

    A pass returns after how many seconds its key is due again, or None for never; when it raises,
    its key is due after the back-off. What escapes a worker otherwise goes to `broken`.
    """

    def __init__(
        self,
        queue: WorkQueue[Key],
        run: Callable[[Key], float | None],
        *,
        count: int,
        observe: PassObserver[Key],
        broken: Callable[[BaseException], None],
    ) -> None:
        self._queue = queue
        self._run = run
        self._observe = observe
        self._broken = broken
        self._threads = [
            threading.Thread(target=self._work, name=f"worker-{n}", daemon=True)
            for n in range(count)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float) -> bool:
        """Hands out no more keys; whether the passes under way ended in time."""
        self._queue.close()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        try:
            while (key := self._queue.get()) is not None:
                try:
                    self._pass(key)
                finally:
                    self._queue.done(key)
        except BaseException as error:
            self._broken(error)

    def _pass(self, key: Key) -> None:
        begin = time.monotonic()
        error: Exception | None = None
        try:
            again = self._run(key)
        except Exception as raised:
            error = raised
            again = self._queue.retry(key)
        else:
            self._queue.forget(key)
            if again is not None:
                self._queue.add_after(key, again)
        self._observe(key, seconds=time.monotonic() - begin, error=error, again=again)
