"""A session whose logits depend on a sequence's tokens alone, and which checks its caller."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from llmengine_server.sampling import Sampling, draw, penalise
from llmengine_server.session import Choice, OutOfMemoryError, Pending, RowLogits

VOCABULARY = 24


def choose(choice: Choice, logits: NDArray[np.float32], counts: Counter[int], length: int) -> int:
    """What a session chooses after the first `length` tokens of a sequence, of which penalties
    count `counts`."""
    logits = logits.copy()
    sampling = Sampling(
        temperature=choice.temperature,
        top_k=choice.top_k,
        top_p=choice.top_p,
        repetition_penalty=choice.repetition_penalty,
        presence_penalty=choice.presence_penalty,
        frequency_penalty=choice.frequency_penalty,
    )
    if choice.penalised:
        penalise(logits, counts, sampling)
    if length < choice.banned_until:
        logits[list(choice.banned)] = -np.inf
    if sampling.greedy:
        return int(logits.argmax())
    return draw(logits, sampling, choice.number(length))


@dataclass(frozen=True)
class FakeRow:
    logits: NDArray[np.float32]
    choice: int | None = None

    def chosen(self) -> int | None:
        return self.choice

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
    `decode_cost` for each step. `ahead` > 0 makes it choose tokens itself; `full` makes it run out
    of memory as often as it says.
    """

    slots: int = 4
    max_sequence_length: int = 32
    max_batch_tokens: int = 8
    vocabulary: int = VOCABULARY
    poison: int = -1
    cost: float = 0.001
    decode_cost: float = 0.001
    ahead: int = 0
    full: int = 0
    now: float = 0.0
    calls: list[tuple[str, int]] = field(default_factory=list)
    moves: int = 0

    def __post_init__(self) -> None:
        self._cache: list[list[int | None]] = [[] for _ in range(self.slots)]
        self._under_way: list[_FakeStep] = []
        self._tenants = [_Tenant() for _ in range(self.slots)]

    def clock(self) -> float:
        return self.now

    def start_prefill(
        self, slot: int, tokens: Sequence[int], past: int, choice: Choice | None = None
    ) -> Pending:
        self._require_memory()
        row = self.prefill(slot, tokens, past)
        if self.ahead and choice is not None:
            # The poison is no token of the vocabulary.
            seen = Counter(token for token in choice.seen if token < self.vocabulary)
            self._tenants[slot] = _Tenant(choice, seen)
            row = self._choose(slot, row)
        return self._begin([row])

    def start_decode(self, tokens: Sequence[int] | None, pasts: Sequence[int]) -> Pending:
        self._require_memory()
        assert (tokens is None) == bool(self.ahead)
        if tokens is not None:
            return self._begin(self.decode(tokens, pasts))
        rows = self.decode([t.token for t in self._tenants[: len(pasts)]], pasts)
        return self._begin([self._choose(slot, row) for slot, row in enumerate(rows)])

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
        moved = self._tenants[source]
        self._tenants[target] = replace(moved, counts=Counter(moved.counts))

    def zero(self, slot: int) -> None:
        self._cache[slot] = []

    def close(self) -> None: ...

    def _require_memory(self) -> None:
        if self.full:
            self.full -= 1
            raise OutOfMemoryError("0 bytes are free")

    def _begin(self, rows: Sequence[FakeRow]) -> _FakeStep:
        step = _FakeStep(self._under_way, rows)
        self._under_way.append(step)
        assert len(self._under_way) <= self.ahead + 1, "too many steps are under way"
        return step

    def _choose(self, slot: int, row: FakeRow) -> FakeRow:
        tenant = self._tenants[slot]
        length = len(self._cache[slot])
        if row.finite():
            tenant.token = choose(tenant.choice, row.logits, tenant.counts, length)
        tenant.counts[tenant.token] += 1
        return FakeRow(row.logits, tenant.token)

    def spoiled_slots(self) -> list[int]:
        return [slot for slot, rows in enumerate(self._cache) if self.poison in rows]

    def _append(self, slot: int, tokens: Sequence[int], past: int) -> FakeRow:
        rows = self._cache[slot]
        assert past <= len(rows), f"slot {slot} has {len(rows)} rows, {past} were promised"
        assert past + len(tokens) <= self.max_sequence_length
        rows[past:] = tokens
        row = FakeRow(self._logits(rows))
        if self.ahead:
            rows[:] = [None if token == self.poison else token for token in rows]
        return row

    def _logits(self, rows: Sequence[int | None]) -> NDArray[np.float32]:
        digest = hashlib.blake2b(repr(list(rows)).encode()).digest()
        seed = int.from_bytes(digest[:8], "little")
        logits = np.random.default_rng(seed).normal(0, 2, self.vocabulary).astype(np.float32)
        if self.poison in rows:
            logits[0] = np.nan
        return logits


@dataclass
class _Tenant:
    """How a slot's tokens are chosen, and the last one of them."""

    choice: Choice = field(default_factory=Choice)
    counts: Counter[int] = field(default_factory=Counter)
    token: int = 0


@dataclass
class _FakeStep:
    """Checks that steps are collected in their order."""

    under_way: list[_FakeStep]
    rows: Sequence[FakeRow]

    def collect(self) -> Sequence[RowLogits]:
        assert self.under_way.pop(0) is self
        return self.rows
