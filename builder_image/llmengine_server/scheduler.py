"""Continuous batching: which sequence is in which slot, and what the session does next.

Decoding sequences fill slots 0..n-1 without holes, the one being prefilled has slot n; whoever
waits is served in order. Every request that was taken ends with exactly one event that says why.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from llmengine_server.chunking import Chunking
from llmengine_server.generation import Event, Finish, Generation
from llmengine_server.sampling import Chooser
from llmengine_server.session import RowLogits, Session

# Waiting requests for each slot; beyond that another server is the better place.
QUEUE_PER_SLOT = 4

_SPOILED = (
    "the engine computed a number that is not finite for this request; other requests are not"
    " affected. Retry it, and report the prompt if it happens again"
)
_SHUTTING_DOWN = "the server is shutting down before it could start on this request: retry it"


@dataclass(slots=True)
class _Sequence:
    """A request in a slot. `tokens`: its prompt and what was generated; the session's cache
    holds the first `past` of them."""

    request: Generation
    chooser: Chooser
    tokens: list[int]
    past: int = 0
    generated: int = field(default=0)

    @classmethod
    def of(cls, request: Generation) -> _Sequence:
        chooser = Chooser(request.sampling, request.prompt, request.stop_ids)
        return cls(request, chooser, list(request.prompt))

    def extend(self, row: RowLogits) -> Event:
        """Choose the next token."""
        token = self.chooser.choose(row)
        self.tokens.append(token)
        self.generated += 1
        finish = None
        if token in self.request.stop_ids:
            finish = Finish.STOP
        elif self.generated == self.request.max_tokens:
            finish = Finish.LENGTH
        return Event(self.request.id, token, finish)

    def spoiled(self) -> Event:
        return Event(self.request.id, None, Finish.FAILED, _SPOILED)


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Requests that wait, are being prefilled, and decode; and how many slots there are."""

    waiting: int
    prefilling: int
    decoding: int
    slots: int


class Scheduler:
    """Owns a session. Not thread-safe: one loop calls it.

    `clock`: seconds, monotonic; only its differences are used, to size prefill chunks.
    """

    def __init__(self, session: Session, clock: Callable[[], float]) -> None:
        self._session = session
        self._clock = clock
        self._chunking = Chunking(session.max_batch_tokens)
        self._waiting: deque[Generation] = deque()
        self._decoding: list[_Sequence] = []
        self._prefilling: _Sequence | None = None
        self._prefill_seconds = 0.0  # since the last decode step

    @property
    def occupancy(self) -> Occupancy:
        return Occupancy(
            waiting=len(self._waiting),
            prefilling=int(self._prefilling is not None),
            decoding=len(self._decoding),
            slots=self._session.slots,
        )

    @property
    def idle(self) -> bool:
        """True when a step would do nothing."""
        return not self._waiting and self._prefilling is None and not self._decoding

    def submit(self, request: Generation) -> Event | None:
        """Put a request at the end of the queue; an event when there is no room for it.

        Raises ValueError for a request that the session has no space for.
        """
        length = len(request.prompt) + request.max_tokens
        if not request.prompt or request.max_tokens < 1:
            raise ValueError(f"request {request.id} has no prompt or asks for no tokens")
        if length > self._session.max_sequence_length:
            raise ValueError(
                f"request {request.id} needs {length} tokens of {self._session.max_sequence_length}"
            )
        room = QUEUE_PER_SLOT * self._session.slots + self._session.slots - self._taken
        if len(self._waiting) >= room:
            return Event(
                request.id,
                None,
                Finish.REFUSED,
                f"the server is busy: {self._taken} requests run and {len(self._waiting)} wait."
                " Retry later, or add replicas",
            )
        self._waiting.append(request)
        return None

    def cancel(self, request_id: int) -> Event | None:
        """End a request now and free its slot; None when it is not here (any more)."""
        event = Event(request_id, None, Finish.CANCELLED)
        if self._prefilling is not None and self._prefilling.request.id == request_id:
            self._prefilling = None
            return event
        for slot, sequence in enumerate(self._decoding):
            if sequence.request.id == request_id:
                self._release(slot)
                return event
        for request in self._waiting:
            if request.id == request_id:
                self._waiting.remove(request)
                return event
        return None

    def refuse_waiting(self) -> list[Event]:
        """End whatever has no slot yet: the server shuts down, and another one has time for it."""
        events = [Event(r.id, None, Finish.REFUSED, _SHUTTING_DOWN) for r in self._waiting]
        self._waiting.clear()
        return events

    def step(self) -> list[Event]:
        """One prefill chunk or one decode step; the tokens that came of it.

        Prompts go first as long as those who generate are not kept waiting for it.
        """
        if self._prefilling is None and self._waiting and self._taken < self._session.slots:
            self._prefilling = _Sequence.of(self._waiting.popleft())
        if self._prefilling is not None and (size := self._chunk_size(self._prefilling)):
            return self._prefill(self._prefilling, size)
        return self._decode() if self._decoding else []

    @property
    def _taken(self) -> int:
        return len(self._decoding) + (self._prefilling is not None)

    def _chunk_size(self, sequence: _Sequence) -> int:
        rest = len(sequence.tokens) - sequence.past
        if not self._decoding:
            return self._chunking.size_alone(rest)
        return self._chunking.size_between_steps(rest, self._prefill_seconds)

    def _prefill(self, sequence: _Sequence, size: int) -> list[Event]:
        slot = len(self._decoding)
        chunk = sequence.tokens[sequence.past : sequence.past + size]
        before = self._clock()
        row = self._session.prefill(slot, chunk, sequence.past)
        finite = row.finite()
        seconds = self._clock() - before
        self._chunking.prefilled(len(chunk), seconds)
        self._prefill_seconds += seconds
        sequence.past += len(chunk)
        if not finite:
            self._session.zero(slot)
            self._prefilling = None
            return [sequence.spoiled()]
        if sequence.past < len(sequence.tokens):
            return []
        self._prefilling = None
        event = sequence.extend(row)
        if event.finish is None:
            self._decoding.append(sequence)
        return [event]

    def _decode(self) -> list[Event]:
        before = self._clock()
        rows = self._session.decode(
            [sequence.tokens[-1] for sequence in self._decoding],
            [sequence.past for sequence in self._decoding],
        )
        events = []
        for slot, (sequence, row) in enumerate(zip(self._decoding, rows, strict=True)):
            sequence.past += 1
            if row.finite():
                events.append(sequence.extend(row))
            else:
                self._session.zero(slot)
                events.append(sequence.spoiled())
        self._chunking.decoded(self._clock() - before)
        self._prefill_seconds = 0.0
        # From the last slot down: whoever moves into a hole then stays in the batch.
        for slot in range(len(events) - 1, -1, -1):
            if events[slot].finish is not None:
                self._release(slot)
        return events

    def _release(self, slot: int) -> None:
        """Take a sequence out of its slot; the last ones close the gap."""
        last = len(self._decoding) - 1
        moved = self._decoding.pop()
        if slot != last:
            self._session.move(last, slot, moved.past)
            self._decoding[slot] = moved
        if self._prefilling is not None and self._prefilling.past:
            self._session.move(last + 1, last, self._prefilling.past)
