"""A session steps an engine over a batch of slots; the scheduler decides which.

One thread owns a session. Slots 0..n-1 are the live ones; the scheduler keeps them packed. A slot
that was decoded and is left out of a later decode is free: its rows may be dropped. Work is done
in the order in which it is started, so a slot may be moved or cleared while a step is under way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class EngineError(Exception):
    """An engine that this image cannot serve; the message says what to do."""


class OutOfMemoryError(Exception):
    """The device had no memory for a step, which was not begun: less work may still fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How a session that chooses tokens itself chooses those of one sequence.

    `temperature` 0: the largest logit. `top_k` 0 and `top_p` 1 keep every token; formulas are
    those of `llmengine_server.sampling`. `seen`: the tokens that penalties count from the start,
    empty where there are no penalties. `banned` cannot be chosen as long as the sequence has
    fewer than `banned_until` tokens. `number(length)`: what decides the token that follows the
    first `length` ones, in [0, 1).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seen: tuple[int, ...] = ()
    banned: tuple[int, ...] = ()
    banned_until: int = 0
    number: Callable[[int], float] = lambda length: 0.0

    @property
    def penalised(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


class RowLogits(Protocol):
    """The next-token logits of one sequence, without a promise that they are on the host.

    Valid until the session's next step, which may reuse their memory; `full` is not.
    """

    def chosen(self) -> int | None:
        """The token that the session chose, or None where the caller has to choose one."""
        ...

    def argmax(self) -> int:
        """The token with the largest logit; the lowest id where several share it."""
        ...

    def finite(self) -> bool:
        """False when any logit is NaN or infinite: the row and its slot are spoiled."""
        ...

    def full(self) -> NDArray[np.float32]:
        """All logits, `[vocabulary]`, on the host. Owned by the caller."""
        ...


class Pending(Protocol):
    """A step that was started."""

    def collect(self) -> Sequence[RowLogits]:
        """Wait for the step; one row for each sequence in it.

        What was started first must be collected first. `chosen` and `finite` of a row stay valid;
        its logits do until the next step is started.
        """
        ...


class Session(Protocol):
    """The engine and its KV cache.

    `slots` rows of at most `max_sequence_length` tokens; a prefill chunk has at most
    `max_batch_tokens` tokens.

    `ahead`: how many steps may be started before the oldest must be collected, beside that one.
    0: every token is the caller's choice. Else the session chooses tokens itself, `start_decode`
    without tokens goes on with those that it chose, and a row that is not finite is reported but
    never kept: its slot may have its next tenant before anybody hears of it.
    """

    @property
    def slots(self) -> int: ...

    @property
    def vocabulary(self) -> int: ...

    @property
    def max_sequence_length(self) -> int: ...

    @property
    def max_batch_tokens(self) -> int: ...

    @property
    def ahead(self) -> int: ...

    def start_prefill(
        self, slot: int, tokens: Sequence[int], past: int, choice: Choice | None = None
    ) -> Pending:
        """Run one chunk of a prompt through `slot`, whose first `past` cache rows are valid.

        Appends len(tokens) rows to the slot's cache; the logits are those after the last token.
        `choice` comes with the last chunk of a prompt, and holds from there on; a session that
        leaves choosing to its caller ignores it. Raises ValueError when the chunk or the
        resulting length is over the session's limits, or the slot has fewer than `past` rows;
        OutOfMemoryError.
        """
        ...

    def start_decode(self, tokens: Sequence[int] | None, pasts: Sequence[int]) -> Pending:
        """One step of slots 0..len(pasts)-1: `tokens[i]` enters slot i at position `pasts[i]`.

        `tokens` None: the tokens that the session chose in the slots' last steps. Appends one row
        to each of these slots. Raises ValueError and OutOfMemoryError as `start_prefill` does.
        """
        ...

    def prefill(self, slot: int, tokens: Sequence[int], past: int) -> RowLogits:
        """`start_prefill`, and wait for it."""
        ...

    def decode(self, tokens: Sequence[int], pasts: Sequence[int]) -> Sequence[RowLogits]:
        """`start_decode`, and wait for it."""
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Move the first `length` cache rows of slot `source` to slot `target`.

        `source` is free afterwards.
        """
        ...

    def zero(self, slot: int) -> None:
        """Clear a slot's cache: a non-finite row left behind would spoil its next tenant."""
        ...

    def close(self) -> None:
        """Give back the memory of engine and cache; the session cannot be used any more."""
        ...


class Done:
    """A step that was over before it could be waited for."""

    def __init__(self, rows: Sequence[RowLogits]) -> None:
        self._rows = rows

    def collect(self) -> Sequence[RowLogits]:
        return self._rows
