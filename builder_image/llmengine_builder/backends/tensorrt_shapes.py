"""Which shapes a TensorRT engine is compiled for: cache lengths, decode steps, prompts' chunks.

A profile is tuned for one shape, so every size of decode step has a profile of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmengine.artifact import Cache, Limits
from llmengine.quantity import GIB

Shape = tuple[int, ...]
# Of one input: the least, the one that is tuned for, and the greatest.
Range = tuple[Shape, Shape, Shape]
Profile = Mapping[str, Range]

_SHORTEST_BUCKET = 256
_GROWTH = 4
# Rows are read 16 bytes at once, see llmengine_server.session.cuda_arena.
_LENGTH_STEP = 64
_FEW_SLOTS = 8
# Where most sequences are.
_TUNED_LENGTH = 1024
# Scores of one layer: float32, their mask, their softmax in both types.
_SCORE_BYTES = 10
_MOST_SCORE_BYTES = GIB
_CHUNK_STEP = 16


def cache_buckets(max_sequence_length: int) -> tuple[int, ...]:
    """Lengths that a cache is held at: from 256 on by 4, the last one fits the longest sequence."""
    longest = -(-max_sequence_length // _LENGTH_STEP) * _LENGTH_STEP
    buckets = []
    bucket = _SHORTEST_BUCKET
    while bucket < longest:
        buckets.append(bucket)
        bucket *= _GROWTH
    return (*buckets, longest)


def decode_batches(max_batch_size: int) -> tuple[int, ...]:
    """Slots of the decode steps: one, few, all."""
    return tuple(sorted({1, min(_FEW_SLOTS, max_batch_size), max_batch_size}))


def bounded_chunk(heads: int, length: int, chunk: int) -> int:
    """The longest chunk of a prompt up to `chunk` tokens whose scores over `length` cached rows
    and the chunk itself take no more than 1 GiB; 0 where not even a short one does."""
    while chunk > 0 and heads * chunk * (length + chunk) * _SCORE_BYTES > _MOST_SCORE_BYTES:
        chunk = (chunk - 1) // _CHUNK_STEP * _CHUNK_STEP
    return max(chunk, 0)


def score_bytes(heads: int, length: int, chunk: int) -> int:
    """Device memory that the scores of one layer take while a chunk is computed."""
    return heads * chunk * (length + chunk) * _SCORE_BYTES


def profiles(cache: Cache, limits: Limits) -> Sequence[Profile]:
    """Profile 0 is for prompts, then one for each of `cache.batches`; see tensorrt_programs."""
    chunk = limits.max_batch_tokens
    longest = cache.buckets[-1]
    tuned = next((bucket for bucket in cache.buckets if bucket >= _TUNED_LENGTH), longest)
    lengths = (cache.buckets[0], tuned, longest)
    prompts = _profile(cache, 1, (1, chunk, chunk), lengths)
    return [prompts, *(_profile(cache, size, (1, 1, 1), lengths) for size in cache.batches)]


def _profile(
    cache: Cache, rows: int, tokens: tuple[int, int, int], lengths: tuple[int, int, int]
) -> Profile:
    shapes: dict[str, list[Shape]] = {
        "input_ids": [(rows, count) for count in tokens],
        "past_lens": [(rows,)] * 3,
        "new_lens": [(rows,)] * 3,
    }
    keys = [(rows, cache.kv_heads, cache.head_dim, length) for length in lengths]
    values = [(rows, cache.kv_heads, length, cache.head_dim) for length in lengths]
    for layer in range(cache.layers):
        shapes[f"k_past_{layer}"] = list(keys)
        shapes[f"v_past_{layer}"] = list(values)
    return {name: (least, best, most) for name, (least, best, most) in shapes.items()}
