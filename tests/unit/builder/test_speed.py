"""The speed in a manifest is that of decode steps with every slot, at the lengths it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from llmengine.artifact import DecodeStep
from llmengine_builder.backends.onnxruntime import cache_buckets
from llmengine_builder.speed import MEASURED_SLOTS, measure, measured_rows
from llmengine_builder.verify import LONGEST_CHUNK
from tests.unit.server.fake_session import FakeRow, FakeSession


@dataclass
class Device(FakeSession):
    """A step takes 1 ms, and 1 us for each row of the longest sequence; the first two hang."""

    closed: bool = False
    steps: int = 0

    def decode(self, tokens: Sequence[int], pasts: Sequence[int]) -> Sequence[FakeRow]:
        self.steps += 1
        self.decode_cost = 0.001 + 1e-6 * max(pasts) + (60 if self.steps <= 2 else 0)
        return super().decode(tokens, pasts)

    def close(self) -> None:
        self.closed = True


def test_every_slot_decodes_at_a_short_and_at_a_longer_length() -> None:
    device = Device(slots=3, max_sequence_length=2048, max_batch_tokens=512)
    speed = measure(lambda: device, (128, 320, 2048), device.clock)
    assert speed.slots == 3
    assert [step.length for step in speed.steps] == [128, 320]
    assert [step.seconds for step in speed.steps] == pytest.approx([0.001001, 0.001256])
    assert {count for call, count in device.calls if call == "decode"} == {3}
    assert max(count for call, count in device.calls if call == "prefill") <= LONGEST_CHUNK
    assert device.closed


@pytest.mark.parametrize(
    ("longest", "chunk", "lengths"),
    [
        pytest.param(16, 16, [2, 16], id="the shortest engine"),
        pytest.param(128, 64, [2, 128], id="of one length"),
        pytest.param(200, 1, [128, 200], id="shorter than the second measurement"),
        pytest.param(4096, 512, [128, 320], id="any other"),
    ],
)
def test_an_engine_of_any_length_is_measured(longest: int, chunk: int, lengths: list[int]) -> None:
    device = Device(slots=2, max_sequence_length=longest, max_batch_tokens=chunk)
    buckets = cache_buckets(longest)
    speed = measure(lambda: device, buckets, device.clock)
    assert [step.length for step in speed.steps] == lengths
    assert measured_rows(buckets, 2) == 2 * lengths[-1]


def test_no_more_memory_is_asked_for_than_for_so_many_slots() -> None:
    assert measured_rows(cache_buckets(4096), 256) == MEASURED_SLOTS * 320


def test_a_session_that_fails_is_closed_all_the_same() -> None:
    device = Device(slots=1, max_sequence_length=1)
    with pytest.raises(AssertionError):
        measure(lambda: device, (1,), device.clock)
    assert device.closed


def test_a_speed_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        DecodeStep(length=128, seconds=0)
