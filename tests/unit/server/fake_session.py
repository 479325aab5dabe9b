"""A session whose logits depend on a sequence's tokens alone, and which checks its caller."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 24


@dataclass(frozen=True)
class FakeRow:
    logits: NDArray[np.float32]

    def argmax(self) -> int:
        return int(self.logits.argmax())

    def finite(self) -> bool:
        return bool(np.isfinite(self.logits).all())

    def full(self) -> NDArray[np.float32]:
        return self.logits.copy()


@dataclass
class FakeSession:
    """Its cache holds the tokens themselves, so a row in the wrong place changes what follows.

    A sequence that contains `poison` has logits that are not finite. `calls` records prefill
    chunks and decode batches; `cost` is added to `now` for each token of a prompt and
    `decode_cost` for each step.
    """

    slots: int = 4
    max_sequence_length: int = 32
    max_batch_tokens: int = 8
    vocabulary: int = VOCABULARY
    poison: int = -1
    cost: float = 0.001
    decode_cost: float = 0.001
    now: float = 0.0
    calls: list[tuple[str, int]] = field(default_factory=list)
    moves: int = 0

    def __post_init__(self) -> None:
        self._cache: list[list[int | None]] = [[] for _ in range(self.slots)]

    def clock(self) -> float:
        return self.now

    def prefill(self, slot: int, tokens: Sequence[int], past: int) -> FakeRow:
        assert 0 < len(tokens) <= self.max_batch_tokens
        self.calls.append(("prefill", len(tokens)))
        self.now += self.cost * len(tokens)
        return self._append(slot, tokens, past)

    def decode(self, tokens: Sequence[int], pasts: Sequence[int]) -> Sequence[FakeRow]:
        assert 0 < len(tokens) <= self.slots
        self.calls.append(("decode", len(tokens)))
        self.now += self.decode_cost
        return [
            self._append(slot, [token], past)
            for slot, (token, past) in enumerate(zip(tokens, pasts, strict=True))
        ]

    def move(self, source: int, target: int, length: int) -> None:
        assert source != target
        assert len(self._cache[source]) >= length
        self.moves += 1
        self._cache[target] = self._cache[source][:length]

    def zero(self, slot: int) -> None:
        self._cache[slot] = []

    def spoiled_slots(self) -> list[int]:
        return [slot for slot, rows in enumerate(self._cache) if self.poison in rows]

    def _append(self, slot: int, tokens: Sequence[int], past: int) -> FakeRow:
        rows = self._cache[slot]
        assert past <= len(rows), f"slot {slot} has {len(rows)} rows, {past} were promised"
        assert past + len(tokens) <= self.max_sequence_length
        rows[past:] = tokens
        return FakeRow(self._logits(rows))

    def _logits(self, rows: Sequence[int | None]) -> NDArray[np.float32]:
        digest = hashlib.blake2b(repr(list(rows)).encode()).digest()
        seed = int.from_bytes(digest[:8], "little")
        logits = np.random.default_rng(seed).normal(0, 2, self.vocabulary).astype(np.float32)
        if self.poison in rows:
            logits[0] = np.nan
        return logits
