"""Chooses a sequence's next token: the same logits, seed and position give the same token.

No state of a random generator is kept: each position's uniform number is a hash of the seed and
the position, so that neither the batch nor a moved slot can change what a request gets.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from llmengine_server.session import Choice, RowLogits

# Nucleus sampling sorts this many of the likeliest tokens first, and all only if it must.
_SHORTLIST = 1024
_MAX_SEED = 2**64 - 1


class InvalidRequestError(ValueError):
    """A request asks for what cannot be done; the message says what to send instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen. None is "not said"; with nothing said the choice is greedy.

    Raises InvalidRequestError for values outside their range.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature is not None:
            _check(
                math.isfinite(self.temperature) and self.temperature >= 0,
                f"temperature must be 0 (greedy) or a positive number (got {self.temperature:g})",
            )
        if self.top_k is not None:
            _check(
                self.top_k >= 0,
                f"top_k must be 0 (every token) or a positive number (got {self.top_k})",
            )
        if self.top_p is not None:
            _check(
                0 <= self.top_p <= 1,
                f"top_p must be between 0 and 1; 1 keeps every token (got {self.top_p:g})",
            )
        _check(
            self.min_tokens >= 0,
            f"min_tokens must be 0 or a positive number (got {self.min_tokens})",
        )
        _check(
            math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0,
            "repetition_penalty must be a positive number; 1 changes nothing"
            f" (got {self.repetition_penalty:g})",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            value: float = getattr(self, name)
            _check(
                math.isfinite(value),
                f"{name} must be a finite number; 0 changes nothing (got {value:g})",
            )
        _check(
            0 <= self.seed <= _MAX_SEED,
            f"seed must be between 0 and {_MAX_SEED} (got {self.seed})",
        )

    @property
    def greedy(self) -> bool:
        """True when the largest logit wins.

        As in TensorRT-LLM, `top_p` 0 without a `top_k` means greedy too.
        """
        if self.temperature == 0 or self.top_k == 1:
            return True
        if self.top_p == 0 and not self.top_k:
            return True
        return self.temperature is None and self.top_k is None and self.top_p is None

    @property
    def penalised(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


class Chooser:
    """Chooses the tokens of one sequence.

    Penalties count the prompt too, as TensorRT-LLM does (its `prompt_ignore_length` 0).
    """

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], stop_ids: Iterable[int] = ()
    ) -> None:
        self._sampling = sampling
        self._stop_ids = sorted(stop_ids)
        self._prompt = tuple(prompt)
        self._start = len(prompt)
        self._position = len(prompt)
        self._counts: Counter[int] | None = Counter(prompt) if sampling.penalised else None

    def choice(self) -> Choice:
        """The same, as a session is told that chooses by itself."""
        sampling = self._sampling
        # As in `draw`: 0 and 1 leave every token in.
        nucleus = sampling.top_p if sampling.top_p is not None and 0 < sampling.top_p < 1 else 1.0
        temperature = 1.0 if sampling.temperature is None else sampling.temperature
        return Choice(
            temperature=0.0 if sampling.greedy else temperature,
            top_k=sampling.top_k or 0,
            top_p=nucleus,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            seen=self._prompt if sampling.penalised else (),
            banned=tuple(self._stop_ids) if sampling.min_tokens else (),
            banned_until=self._start + sampling.min_tokens,
            number=partial(uniform, sampling.seed),
        )

    def choose(self, row: RowLogits) -> int:
        """The next token, from the logits that follow the tokens so far."""
        sampling = self._sampling
        young = self._position - self._start < sampling.min_tokens and self._stop_ids
        if sampling.greedy and self._counts is None and not young:
            token = row.argmax()
        else:
            logits = row.full()
            if self._counts is not None:
                penalise(logits, self._counts, sampling)
            if young:
                logits[self._stop_ids] = -np.inf
            token = (
                int(logits.argmax())
                if sampling.greedy
                else draw(logits, sampling, uniform(sampling.seed, self._position))
            )
        self._position += 1
        if self._counts is not None:
            self._counts[token] += 1
        return token


def penalise(logits: NDArray[np.float32], counts: Counter[int], sampling: Sampling) -> None:
    """Lower the logits of the tokens in `counts`, in place.

    Repetition divides what is positive and multiplies what is negative (CTRL, arXiv:1909.05858);
    presence and frequency subtract once, and once per appearance.
    """
    tokens = np.fromiter(counts.keys(), dtype=np.int64, count=len(counts))
    times = np.fromiter(counts.values(), dtype=np.float32, count=len(counts))
    seen = logits[tokens]
    penalty = np.float32(sampling.repetition_penalty)
    seen = np.where(seen > 0, seen / penalty, seen * penalty)
    seen -= np.float32(sampling.presence_penalty) + np.float32(sampling.frequency_penalty) * times
    logits[tokens] = seen


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, a function of seed and position alone."""
    data = seed.to_bytes(8, "little") + position.to_bytes(8, "little")
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def draw(logits: NDArray[np.float32], sampling: Sampling, number: float) -> int:
    """The token at `number` in [0, 1) of the distribution that temperature, top-k and top-p leave.

    Top-k comes first; top-p then keeps the fewest likeliest tokens whose share reaches it.
    """
    vocabulary = logits.size
    top_k = min(sampling.top_k or vocabulary, vocabulary)
    nucleus = sampling.top_p if sampling.top_p is not None and 0 < sampling.top_p < 1 else None
    weights = _weights(logits, 1.0 if sampling.temperature is None else sampling.temperature)
    if top_k == vocabulary and nucleus is None:
        return _pick(weights, number)
    tokens = _likeliest(weights, top_k if top_k < vocabulary else min(_SHORTLIST, vocabulary))
    if nucleus is not None:
        total = weights[tokens].sum() if top_k < vocabulary else weights.sum()
        if weights[tokens].sum() < nucleus * total:
            tokens = _likeliest(weights, vocabulary)
        reached = np.searchsorted(weights[tokens].cumsum(), nucleus * total)
        tokens = tokens[: int(reached) + 1]
    return int(tokens[_pick(weights[tokens], number)])


def _weights(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Softmax without its division: the largest weight is 1."""
    scaled = logits.astype(np.float64)
    scaled -= scaled.max()
    scaled /= temperature
    return np.exp(scaled, out=scaled)


def _likeliest(weights: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The `count` tokens of largest weight, likeliest first, the lower id where two are equal."""
    tokens = np.arange(weights.size)
    if count < weights.size:
        least = np.partition(weights, weights.size - count)[weights.size - count]
        above = np.flatnonzero(weights > least)
        level = np.flatnonzero(weights == least)[: count - above.size]
        tokens = np.sort(np.concatenate([above, level]))
    return tokens[np.argsort(-weights[tokens], kind="stable")]


def _pick(weights: NDArray[np.float64], number: float) -> int:
    shares = weights.cumsum()
    index = int(np.searchsorted(shares, number * shares[-1], side="right"))
    # Rounding may carry the product up to the total itself.
    return index if index < weights.size else int(np.flatnonzero(weights)[-1])


def _check(holds: bool, sentence: str) -> None:
    if not holds:
        raise InvalidRequestError(sentence)
