"""Turns tokens into responses on a thread of its own, so that sending never holds up a step.

Every request that was opened gets exactly one last response, whatever happens: a server that owes
one cannot unload its model.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llmengine_server.generation import Event, Finish, Generation
from llmengine_server.scheduler import CUT_OFF, Occupancy
from llmengine_server.tokenizer import Detokenizer, StopWords

log = logging.getLogger(__name__)

# Whether a client is still there costs a question to Triton (0.1 ms).
_SECONDS_BETWEEN_CHECKS = 0.05
_SECONDS_BETWEEN_REPORTS = 0.25


@dataclass(frozen=True, slots=True)
class Reply:
    """One response: text to append, and in the last one (`finish` set) how the request ended.

    `message` is set when that end is an error.
    """

    text: str
    input_tokens: int
    output_tokens: int
    finish: Finish | None = None
    message: str = ""


class Responder(Protocol):
    """The way back to one client."""

    def send(self, reply: Reply) -> None: ...

    def cancelled(self) -> bool:
        """True when nobody waits for the answer any more."""
        ...


class Meter(Protocol):
    """What is counted. Seconds, and tokens; called by the delivery's thread alone."""

    def first_token(self, seconds: float) -> None: ...

    def between_tokens(self, seconds: float) -> None: ...

    def ended(self, finish: Finish, input_tokens: int) -> None: ...

    def report(self, occupancy: Occupancy, generated: int) -> None:
        """Every quarter of a second: who is where, and the tokens since the last report."""
        ...


@dataclass(slots=True)
class Stream:
    """One request on its way out. `arrived`: seconds on the delivery's clock."""

    request: Generation
    detokenizer: Detokenizer
    stop_words: StopWords
    streaming: bool
    responder: Responder
    arrived: float
    pending: str = ""
    tokens: int = 0
    sent_tokens: int = 0
    last_token: float = field(default=0.0)
    last_sent: float | None = None
    last_sent_token: float = field(default=0.0)

    def take(self, event: Event, at: float) -> Finish | None:
        """Add an event's token; the request's end when this is it."""
        finish = event.finish
        if event.token is not None:
            self.tokens += 1
            self.last_token = at
            if not (finish is Finish.STOP and event.token in self.request.stop_ids):
                self.pending += self.stop_words.push(self.detokenizer.push(event.token))
        if finish in (Finish.STOP, Finish.LENGTH):
            self.pending += self.stop_words.push(self.detokenizer.flush())
            self.pending += self.stop_words.flush()
        return Finish.STOP if self.stop_words.matched else finish

    def due(self, interval: float) -> float | None:
        """When a response should go out; None when there is none to send yet."""
        if not self.streaming or not self.pending:
            return None
        return 0.0 if self.last_sent is None else self.last_sent + interval


class Delivery:
    """`interval`: seconds between two responses of one request. `cancel` ends one in the loop."""

    def __init__(
        self,
        *,
        interval: float,
        meter: Meter,
        cancel: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval = interval
        self._meter = meter
        self._cancel = cancel
        self._clock = clock
        self._inbox: queue.SimpleQueue[tuple[Sequence[Event], float] | None] = queue.SimpleQueue()
        self._streams: dict[int, Stream] = {}
        self._closed = False
        self._lock = threading.Lock()
        self._occupancy: Occupancy | None = None
        self._generated = 0
        self._next_check = 0.0
        self._next_report = 0.0

    def open(self, stream: Stream) -> bool:
        """Expect events for a request. False, with its last response sent, after `close`."""
        with self._lock:
            if not self._closed:
                self._streams[stream.request.id] = stream
                return True
        self._last(stream, Finish.REFUSED, CUT_OFF)
        return False

    def publish(self, events: Sequence[Event], at: float) -> None:
        self._inbox.put((events, at))

    def occupied(self, occupancy: Occupancy) -> None:
        self._occupancy = occupancy

    @property
    def quiet(self) -> bool:
        return not self._streams and self._inbox.empty()

    def close(self) -> None:
        """Make `run` answer whatever is open, and return."""
        self._inbox.put(None)

    def run(self) -> None:
        """Deliver until `close`."""
        while True:
            try:
                batch = self._inbox.get(timeout=self._wait(self._clock()))
            except queue.Empty:
                batch = ((), 0.0)
            if batch is None:
                break
            self.accept(*batch)
            self.turn(self._clock())
        with self._lock:
            self._closed = True
        for stream in list(self._streams.values()):
            self._end(stream, Finish.REFUSED, CUT_OFF)

    def accept(self, events: Sequence[Event], at: float) -> None:
        """Add tokens to their streams; streams that end are answered."""
        for event in events:
            self._take(event, at)

    def turn(self, now: float) -> None:
        """Send what is due, look for clients that left, report."""
        for stream in list(self._streams.values()):
            due = stream.due(self._interval)
            if due is not None and due <= now:
                self._flush(stream, now)
        if now >= self._next_check:
            self._next_check = now + _SECONDS_BETWEEN_CHECKS
            for stream in list(self._streams.values()):
                if stream.responder.cancelled():
                    self._cancel(stream.request.id)
                    self._end(stream, Finish.CANCELLED, "the client went away")
        if now >= self._next_report:
            self._next_report = now + _SECONDS_BETWEEN_REPORTS
            if self._occupancy is not None:
                self._meter.report(self._occupancy, self._generated)
                self._generated = 0

    def _wait(self, now: float) -> float:
        moments = [self._next_report]
        if self._streams:
            moments.append(self._next_check)
        for stream in list(self._streams.values()):
            due = stream.due(self._interval)
            if due is not None:
                moments.append(due)
        return max(min(moments) - now, 0.0)

    def _take(self, event: Event, at: float) -> None:
        self._generated += event.token is not None
        stream = self._streams.get(event.id)
        if stream is None:  # ended here before the loop heard of it
            return
        if event.token is not None and stream.tokens == 0:
            self._meter.first_token(at - stream.arrived)
            stream.last_sent_token = at
            stream.sent_tokens = 1
        finish = stream.take(event, at)
        if finish is None:
            return
        if event.finish is None:
            self._cancel(event.id)  # a stop word, of which the loop knows nothing
        self._end(stream, finish, event.message)

    def _flush(self, stream: Stream, now: float) -> None:
        text, stream.pending, stream.last_sent = stream.pending, "", now
        self._measure(stream)
        reply = Reply(text, len(stream.request.prompt), stream.tokens)
        try:
            stream.responder.send(reply)
        except Exception:
            log.exception("request %d: a response could not be sent", stream.request.id)
            self._cancel(stream.request.id)
            self._end(stream, Finish.FAILED, "a response could not be sent")

    def _end(self, stream: Stream, finish: Finish, message: str) -> None:
        self._measure(stream)
        self._last(stream, finish, message)
        self._meter.ended(finish, len(stream.request.prompt))
        del self._streams[stream.request.id]

    def _last(self, stream: Stream, finish: Finish, message: str) -> None:
        reply = Reply(stream.pending, len(stream.request.prompt), stream.tokens, finish, message)
        try:
            stream.responder.send(reply)
        except Exception:
            log.exception("request %d: its last response could not be sent", stream.request.id)

    def _measure(self, stream: Stream) -> None:
        """Time per token since the last response; the first token has a measure of its own."""
        tokens = stream.tokens - stream.sent_tokens
        if tokens > 0:
            self._meter.between_tokens((stream.last_token - stream.last_sent_token) / tokens)
            stream.sent_tokens, stream.last_sent_token = stream.tokens, stream.last_token
