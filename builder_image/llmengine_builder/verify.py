"""An engine is published only after it computed what the model's own files say.

The engine chooses tokens under the conditions that break engines: uneven lengths, chunks, a slot
used again after a longer sequence, a cache that grows. The reference then computes the same tokens
once more, all at once; free-running texts are never compared, for they part at the first near-tie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmengine.api.v1alpha1 import DType
from llmengine.artifact import Verification
from llmengine.requests import BuildReason
from llmengine_builder.errors import VerificationError
from llmengine_builder.reference import Reference
from llmengine_server.session import RowLogits, Session

# Slots that verification uses, where the engine has as many.
SLOTS = 2
# Largest mean of |engine - reference| / |reference| over the compared rows of logits.
MEAN_RELATIVE_ERROR: Mapping[DType, float] = {
    DType.FLOAT32: 1e-5,
    # SmolLM2 has 4.5e-3 to 5.0e-3 on an H100.
    DType.FLOAT16: 1e-2,
    DType.BFLOAT16: 3e-2,
}
# How far a chosen token's logit may lie below the reference's largest.
LOGIT_GAP = 0.5
# Of any verified sequence, in tokens.
LONGEST_PROMPT = 512
# Where the cache has one length, which may be that of a whole book: the reference's time and memory
# grow with the square.
LONGEST_SEQUENCE = 1024
# Below most engines' own, so that a long prompt comes in several pieces, the last one shorter.
LONGEST_CHUNK = 200
_STEPS = 8
_STEPS_OF_MANY = 2
_SEED = 20240229


@dataclass
class _Sequence:
    """One verified sequence: its prompt, then the tokens that the engine chose.

    `rows[i]` are the engine's logits after the token at `positions[i]`.
    """

    name: str
    tokens: list[int]
    rows: list[NDArray[np.float32]] = field(default_factory=list)

    @property
    def past(self) -> int:
        """Rows in the cache while it decodes: its last token has not been through the engine."""
        return len(self.tokens) - 1

    @property
    def positions(self) -> range:
        return range(self.past - len(self.rows), self.past)

    def extend(self, row: RowLogits) -> None:
        logits = row.full()
        if not np.isfinite(logits).all():
            raise VerificationError(
                BuildReason.VERIFICATION_FAILED,
                f"the engine's logits after {self.where(self.past)} are not finite",
            )
        self.rows.append(logits)
        self.tokens.append(int(logits.argmax()))

    def where(self, position: int) -> str:
        return f"token {position + 1} of {self.name}"


def verify(
    open_engine: Callable[[], Session],
    model_folder: Path,
    dtype: DType,
    buckets: tuple[int, ...],
    batches: tuple[int, ...] = (),
) -> Verification:
    """Compare the engine with the reference over the model in `model_folder`.

    `open_engine` opens it with SLOTS slots, or with as many as its largest decode step has; the
    session is closed before the reference starts, so that their memory does not add up.
    `buckets`: the lengths, in tokens, that its cache grows through; `batches`: the sizes of the
    decode steps that it was compiled for, each of which is code of its own. Raises
    VerificationError, which names the token that differs most, when a logit is not finite, when
    a chosen token lies more than LOGIT_GAP below the reference's best, or when the mean relative
    error is over that of the engine's dtype.
    """
    sequences = _run(open_engine, buckets, batches)
    rows = Reference(model_folder).logits(
        [sequence.tokens for sequence in sequences], [s.positions for s in sequences]
    )
    return _compare(sequences, rows, MEAN_RELATIVE_ERROR[dtype])


def _run(
    open_engine: Callable[[], Session], buckets: tuple[int, ...], batches: tuple[int, ...]
) -> list[_Sequence]:
    """Everything that the engine is asked. Nothing refers to the session afterwards."""
    session = open_engine()
    try:
        sequences = _share(session, buckets)
        for size in batches:
            if size <= session.slots:
                sequences += _fill(session, size)
        return sequences
    finally:
        session.close()


def _share(session: Session, buckets: tuple[int, ...]) -> list[_Sequence]:
    """Let the engine choose tokens the way the scheduler would have it do."""
    longest = session.max_sequence_length - _STEPS - 1
    numbers = np.random.default_rng(_SEED)

    def sequence(name: str, length: int) -> _Sequence:
        length = max(1, min(length, longest))
        prompt = numbers.integers(0, session.vocabulary, length).tolist()
        return _Sequence(f"{name} ({length} tokens of prompt)", prompt)

    grown = (
        "a sequence that outgrows the cache's first bucket" if len(buckets) > 1 else "a long one"
    )
    growing = sequence(grown, min(buckets[0], LONGEST_SEQUENCE) - _STEPS // 2)
    short = sequence("a short sequence beside it", 7)
    long = sequence("a long prompt in chunks", LONGEST_PROMPT)
    reusing = sequence("a sequence in the slot of a longer one", 11)
    if session.slots == 1:
        for alone in (growing, short, long, reusing):
            _prefill(session, 0, alone)
            _decode(session, [alone])
        return [growing, short, long, reusing]
    _prefill(session, 0, growing)
    _prefill(session, 1, short)
    _decode(session, [growing, short])
    # The first one ends, and the last one moves into its slot.
    session.move(1, 0, short.past)
    fresh = sequence("a sequence in a slot used twice before", 5)
    _prefill(session, 1, long)
    _decode(session, [short, long])
    _prefill(session, 0, fresh)
    _prefill(session, 1, reusing)
    _decode(session, [fresh, reusing])
    return [growing, short, long, fresh, reusing]


def _fill(session: Session, size: int) -> list[_Sequence]:
    """Decode steps of exactly `size` slots, each with a sequence of its own."""
    numbers = np.random.default_rng(_SEED + size)
    sequences = []
    for slot in range(size):
        length = min(3 + slot % 4, session.max_sequence_length - 2)
        prompt = numbers.integers(0, session.vocabulary, max(1, length)).tolist()
        name = f"sequence {slot + 1} of {size} that are decoded at once ({length} tokens of prompt)"
        sequences.append(_Sequence(name, prompt))
        _prefill(session, slot, sequences[-1])
    _decode(session, sequences, _STEPS_OF_MANY)
    return sequences


def _prefill(session: Session, slot: int, sequence: _Sequence) -> None:
    prompt = list(sequence.tokens)
    size = min(session.max_batch_tokens, LONGEST_CHUNK)
    for past in range(0, len(prompt), size):
        row = session.prefill(slot, prompt[past : past + size], past)
    sequence.extend(row)


def _decode(session: Session, sequences: list[_Sequence], steps: int = _STEPS) -> None:
    room = session.max_sequence_length - max(sequence.past for sequence in sequences)
    for _ in range(min(steps, room)):
        rows = session.decode(
            [sequence.tokens[-1] for sequence in sequences],
            [sequence.past for sequence in sequences],
        )
        for sequence, row in zip(sequences, rows, strict=True):
            sequence.extend(row)


def _compare(
    sequences: list[_Sequence], references: list[NDArray[np.float32]], allowed: float
) -> Verification:
    errors: list[tuple[float, str]] = []
    gaps: list[tuple[float, str]] = []
    for sequence, reference in zip(sequences, references, strict=True):
        for position, mine, theirs in zip(
            sequence.positions, sequence.rows, reference, strict=True
        ):
            where = sequence.where(position)
            scale = float(np.linalg.norm(theirs)) or 1.0
            errors.append((float(np.linalg.norm(mine - theirs)) / scale, where))
            chosen = sequence.tokens[position + 1]
            gaps.append((float(theirs.max() - theirs[chosen]), where))
    mean = float(np.mean([error for error, _ in errors]))
    (worst, at), (gap, gap_at) = max(errors), max(gaps)
    if not mean <= allowed:
        raise VerificationError(
            BuildReason.VERIFICATION_FAILED,
            f"the engine's logits differ from the reference's by {mean:.1e} on average (allowed:"
            f" {allowed:.0e}), most of all by {worst:.1e} after {at}; it is not published",
        )
    if not gap <= LOGIT_GAP:
        raise VerificationError(
            BuildReason.VERIFICATION_FAILED,
            f"the engine chose a token whose logit is {gap:.2f} below the reference's best"
            f" (allowed: {LOGIT_GAP}) after {gap_at}; it is not published",
        )
    return Verification(tokens=len(errors), mean_relative_error=mean, max_logit_gap=gap)
