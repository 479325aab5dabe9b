"""Which shapes a TensorRT engine is compiled for: decode steps, prompts' chunks.

A profile is tuned for one shape, so every size of decode step has a profile of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmengine.artifact import Cache, Limits
from llmengine_builder.graph import Decoder

Shape = tuple[int, ...]
# Of one input: the least, the one that is tuned for, and the greatest.
Range = tuple[Shape, Shape, Shape]
Profile = Mapping[str, Range]

# A slot's rows begin where 16 bytes may be read, whatever a row has.
_LENGTH_STEP = 64
_FEW_SLOTS = 8


def cache_length(max_sequence_length: int) -> int:
    """Rows of a slot: those of the longest sequence, in whole steps."""
    return -(-max_sequence_length // _LENGTH_STEP) * _LENGTH_STEP


def decode_batches(max_batch_size: int) -> tuple[int, ...]:
    """Slots of the decode steps: one, few, all."""
    return tuple(sorted({1, min(_FEW_SLOTS, max_batch_size), max_batch_size}))


def activation_bytes(decoder: Decoder, rows: int, element: int) -> int:
    """Device memory that a chunk or step of `rows` tokens takes beside the weights, estimated.

    What a layer holds at once, in numbers of `element` bytes.
    """
    heads = (decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim
    layer = 4 * decoder.hidden + 2 * heads + 3 * decoder.intermediate
    return rows * layer * element


def profiles(cache: Cache, limits: Limits) -> Sequence[Profile]:
    """Profile 0 is for prompts, then one for each of `cache.batches`; see tensorrt_programs."""
    chunk = limits.max_batch_tokens
    prompts = _profile(1, (1, chunk, chunk))
    return [prompts, *(_profile(size, (1, 1, 1)) for size in cache.batches)]


def _profile(rows: int, tokens: tuple[int, int, int]) -> Profile:
    least, best, most = ((rows, count) for count in tokens)
    lengths: Range = ((rows,), (rows,), (rows,))
    return {"input_ids": (least, best, most), "past_lens": lengths, "new_lens": lengths}
