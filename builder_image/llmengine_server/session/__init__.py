"""A session steps an engine over a batch of slots; the scheduler decides which.

One thread owns a session. Slots 0..n-1 are the live ones; the scheduler keeps them packed. A slot
that was decoded and is left out of a later decode is free: its rows may be dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class EngineError(Exception):
    """An engine that this image cannot serve; the message says what to do."""


class RowLogits(Protocol):
    """The next-token logits of one sequence, without a promise that they are on the host.

    Valid until the session's next step, which may reuse their memory; `full` is not.
    """

    def argmax(self) -> int:
        """The token with the largest logit; the lowest id where several share it."""
        ...

    def finite(self) -> bool:
        """False when any logit is NaN or infinite: the row and its slot are spoiled."""
        ...

    def full(self) -> NDArray[np.float32]:
        """All logits, `[vocabulary]`, on the host. Owned by the caller."""
        ...


class Session(Protocol):
    """The engine and its KV cache.

    `slots` rows of at most `max_sequence_length` tokens; a prefill chunk has at most
    `max_batch_tokens` tokens.
    """

    @property
    def slots(self) -> int: ...

    @property
    def vocabulary(self) -> int: ...

    @property
    def max_sequence_length(self) -> int: ...

    @property
    def max_batch_tokens(self) -> int: ...

    def prefill(self, slot: int, tokens: Sequence[int], past: int) -> RowLogits:
        """Run one chunk of a prompt through `slot`, whose first `past` cache rows are valid.

        Appends len(tokens) rows to the slot's cache and returns the logits after the last token.
        Raises ValueError when the chunk or the resulting length is over the session's limits, or
        the slot has fewer than `past` rows.
        """
        ...

    def decode(self, tokens: Sequence[int], pasts: Sequence[int]) -> Sequence[RowLogits]:
        """One step of slots 0..len(tokens)-1: `tokens[i]` enters slot i at position `pasts[i]`.

        Appends one row to each of these slots. Raises ValueError as `prefill` does.
        """
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Move the first `length` cache rows of slot `source` to slot `target`.

        `source` is free afterwards.
        """
        ...

    def zero(self, slot: int) -> None:
        """Clear a slot's cache: a non-finite row left behind would spoil its next tenant."""
        ...
