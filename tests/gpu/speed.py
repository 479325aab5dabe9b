"""How fast a session steps, and how often it chooses what float32 would."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmengine.artifact import Manifest
from llmengine_builder.reference import Reference
from llmengine_server.session import Session
from llmengine_server.session.cuda_arena import ELEMENT_BYTES

# Steps begin with so many rows in a cache of 1024: it is nearly full.
PROMPT = 800
STEPS = 200
_SEED = 7


def step_seconds(session: Session, slots: int, steps: int = STEPS, prompt: int = PROMPT) -> float:
    """Seconds a greedy decode step, the device feeding itself and the host a step behind."""
    numbers = np.random.default_rng(_SEED)
    for slot in range(slots):
        tokens = numbers.integers(0, session.vocabulary, prompt).tolist()
        for past in range(0, prompt, session.max_batch_tokens):
            session.prefill(slot, tokens[past : past + session.max_batch_tokens], past)
    warm = 10
    pending = session.start_decode([1] * slots, [prompt] * slots)
    began = 0.0
    for step in range(1, steps + warm):
        if step == warm:
            began = time.perf_counter()
        newer = session.start_decode(None, [prompt + step] * slots)
        [row.chosen() for row in pending.collect()]
        pending = newer
    pending.collect()
    return (time.perf_counter() - began) / steps


def prefill_seconds(session: Session, length: int) -> float:
    """Seconds of a prompt of `length` tokens, the best of three."""
    tokens = np.random.default_rng(_SEED).integers(0, session.vocabulary, length).tolist()
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        for past in range(0, length, session.max_batch_tokens):
            session.prefill(0, tokens[past : past + session.max_batch_tokens], past)
        best = min(best, time.perf_counter() - began)
    return best


def floor_seconds(manifest: Manifest, weights: int, slots: int, bandwidth: float) -> float:
    """Seconds that reading `weights` bytes and the rows of `step_seconds` takes, at so many bytes a
    second."""
    cache, length = manifest.cache, PROMPT + STEPS // 2
    row = cache.kv_heads * cache.head_dim * ELEMENT_BYTES[cache.dtype]
    return (weights + 2 * cache.layers * slots * length * row) / bandwidth


@dataclass(frozen=True)
class Agreement:
    """Of the tokens chosen by an engine, how many float32 would have chosen, and by how many
    logits the others lie below its best at most."""

    equal: int
    tokens: int
    largest_gap: float


def agreement(
    session: Session, model: Path, prompts: Sequence[Sequence[int]], count: int
) -> Agreement:
    """`count` greedy tokens a prompt; the reference sees what the engine has seen."""
    sequences = []
    for prompt in prompts:
        tokens = [*prompt]
        tokens.append(session.prefill(0, tokens, 0).argmax())
        while len(tokens) < len(prompt) + count:
            tokens.append(session.decode([tokens[-1]], [len(tokens) - 1])[0].argmax())
        sequences.append(tokens)
    rows = Reference(model).logits(
        [tokens[:-1] for tokens in sequences],
        [
            range(len(prompt) - 1, len(tokens) - 1)
            for prompt, tokens in zip(prompts, sequences, strict=True)
        ],
    )
    equal, total, gap = 0, 0, 0.0
    for prompt, tokens, logits in zip(prompts, sequences, rows, strict=True):
        for row, token in zip(logits, tokens[len(prompt) :], strict=True):
            total += 1
            equal += int(row.argmax() == token)
            gap = max(gap, float(row.max() - row[token]))
    return Agreement(equal, total, gap)
