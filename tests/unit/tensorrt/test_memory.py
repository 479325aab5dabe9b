"""An engine that a GPU is too small for is refused with numbers that would fit."""

from __future__ import annotations

import re

import pytest

from llmengine.artifact import Cache, Limits
from llmengine.quantity import GIB
from llmengine_server.session import EngineError
from llmengine_server.session.tensorrt_memory import USABLE, Needs, check_memory

# Llama-3.1-8B: 128 KiB of cache a token.
CACHE = Cache(
    layout="plain",
    dtype="bfloat16",
    layers=32,
    kv_heads=8,
    head_dim=128,
    buckets=(8192,),
    batches=(1, 8, 32),
    query_heads=32,
)
LIMITS = Limits(max_batch_size=32, max_sequence_length=8192, max_batch_tokens=512)
NEEDS = Needs(engine=16 * GIB, scratch=GIB, cache=CACHE, limits=LIMITS, vocabulary=128256)


def refusal(needs: Needs, memory: int) -> str:
    with pytest.raises(EngineError) as caught:
        check_memory(needs, "NVIDIA-L4", memory)
    return str(caught.value)


def test_the_cache_is_counted_at_its_full_length() -> None:
    assert NEEDS.arena == 32 * GIB


def test_an_engine_that_fits_is_taken() -> None:
    check_memory(NEEDS, "NVIDIA-H100-80GB-HBM3", 80 * GIB)


def test_slots_beyond_those_asked_for_are_counted_where_steps_have_them() -> None:
    fewer = Needs(16 * GIB, GIB, CACHE, LIMITS.model_copy(update={"max_batch_size": 9}), 128256)
    assert fewer.slots == 32


def test_a_refusal_names_numbers_that_fit() -> None:
    memory = 44 * GIB
    said = refusal(NEEDS, memory)
    assert "weights 16.0 GiB, KV cache 32." in said
    assert "92% of NVIDIA-L4 are 40.5 GiB" in said
    slots = int(re.search(r"maxBatchSize to (\d+) or less", said)[1])  # type: ignore[index]
    length = int(re.search(r"maxSequenceLength to (\d+) or less", said)[1])  # type: ignore[index]
    assert 1 <= slots < 32
    assert 1 <= length < 8192
    for limits, batches, buckets in (
        ({"max_batch_size": slots}, (1, 8, slots), CACHE.buckets),
        ({"max_sequence_length": length}, CACHE.batches, (-(-length // 64) * 64,)),
    ):
        smaller = Needs(
            engine=NEEDS.engine,
            scratch=NEEDS.scratch,
            cache=CACHE.model_copy(update={"batches": batches, "buckets": buckets}),
            limits=LIMITS.model_copy(update=limits),
            vocabulary=NEEDS.vocabulary,
        )
        assert smaller.total <= USABLE * memory


def test_weights_that_do_not_fit_at_all_ask_for_another_gpu() -> None:
    assert refusal(NEEDS, 16 * GIB).endswith("take a GPU with more memory")
