"""The one thread that owns the scheduler and with it the session; others leave it messages."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from llmengine_server.generation import Event, Generation
from llmengine_server.scheduler import Occupancy, Scheduler, turned_away

log = logging.getLogger(__name__)

# An idle loop still shows that it lives.
_IDLE_SECONDS = 0.5


class Pulse(Protocol):
    """What the outside sees of the loop, and the outside's wish that it come to an end.

    `deadline`: when everything must have been answered, seconds on the system's monotonic clock;
    None while nobody wishes for an end.
    """

    deadline: float | None

    def beat(self) -> None: ...

    def tell_drained(self) -> None: ...


class Listener(Protocol):
    """Takes what comes out of the loop, in order, without blocking it."""

    def publish(self, events: Sequence[Event], at: float) -> None:
        """`at`: when the events came about, seconds on the loop's clock."""
        ...

    def occupied(self, occupancy: Occupancy) -> None: ...

    @property
    def quiet(self) -> bool:
        """True when every event was answered."""
        ...


class EngineLoop:
    """Runs a scheduler. `submit`, `cancel` and `stop` may be called by any thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        pulse: Pulse,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._pulse = pulse
        self._clock = clock
        self._inbox: queue.SimpleQueue[Generation | int | None] = queue.SimpleQueue()
        self._stopping = False

    def submit(self, request: Generation) -> None:
        self._inbox.put(request)

    def cancel(self, request_id: int) -> None:
        """End a request; nothing happens when it has ended already."""
        self._inbox.put(request_id)

    def stop(self) -> None:
        """Make `run` return after its current step; whatever still runs is not finished."""
        self._inbox.put(None)

    def run(self, listener: Listener) -> None:
        """Turn until `stop`. What the session raises comes out of here: the engine is gone."""
        while not self._stopping:
            self._pulse.beat()
            events = [*self._read_inbox(), *self._hurry()]
            if not self._scheduler.idle:
                # A refusal need not wait for the step.
                self._tell(listener, events)
                events = self._scheduler.step()
            self._tell(listener, events)
            if self._pulse.deadline is not None and self._done(listener):
                self._pulse.tell_drained()

    def _hurry(self) -> list[Event]:
        """Nobody is left without an answer, be it that there will be none."""
        if self._pulse.deadline is None:
            return []
        events = self._scheduler.hurry(self._pulse.deadline - self._clock())
        if events:
            log.warning("%d requests cannot be finished before the server ends", len(events))
        return events

    def _done(self, listener: Listener) -> bool:
        return self._scheduler.idle and self._inbox.empty() and listener.quiet

    def _tell(self, listener: Listener, events: Sequence[Event]) -> None:
        if events:
            listener.publish(events, self._clock())
        listener.occupied(self._scheduler.occupancy)

    def _read_inbox(self) -> list[Event]:
        """Act on every message; wait for one when there is nothing else to do."""
        events: list[Event] = []
        wait = self._scheduler.idle
        while not self._stopping:
            try:
                message = (
                    self._inbox.get(timeout=_IDLE_SECONDS) if wait else self._inbox.get_nowait()
                )
            except queue.Empty:
                break
            wait = False
            if message is None:
                self._stopping = True
            elif isinstance(message, int):
                if cancelled := self._scheduler.cancel(message):
                    events.append(cancelled)
            elif self._pulse.deadline is not None:
                # What waited before the drain keeps its place as long as there is time for it: its
                # client took this server for one that serves, and may not ask twice.
                events.append(turned_away(message))
            elif refused := self._scheduler.submit(message):
                events.append(refused)
        return events
