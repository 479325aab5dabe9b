"""Attention starts the kernels that a device has, and is a plugin by the rules of TensorRT."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmengine_builder.graph.cached_attention import CACHE_WORDS
from llmengine_server.session import tensorrt_attention
from llmengine_server.session.cuda import Argument
from llmengine_server.session.cuda_attention import (
    LIVE_WORD,
    TABLE_WORDS,
    Attention,
    Heads,
    Tensors,
    cache_table,
)

LLAMA = Heads(heads=32, kv_heads=8, head_dim=64, dtype="bfloat16")
PLAIN = Heads(heads=32, kv_heads=8, head_dim=64, dtype="float32")
WIDE = Heads(heads=12, kv_heads=1, head_dim=80, dtype="float16")
TENSORS = Tensors(*range(1, 8))
Launch = tuple[str, tuple[int, int, int]]


@dataclass
class Launches:
    """What was started, and with which addresses."""

    tensor_cores: bool = True
    kernels: list[Launch] = field(default_factory=list)
    arguments: list[list[Any]] = field(default_factory=list)

    def __call__(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        threads: int,
        stream: int,
        *arguments: Argument,
    ) -> None:
        assert stream == 7
        assert threads in (128, 256)
        self.kernels.append((kernel, grid))
        self.arguments.append([argument.value for argument in arguments])


@pytest.mark.parametrize(
    ("heads", "rows", "tokens", "tensor_cores", "expected"),
    [
        pytest.param(LLAMA, 1, 1, True, [("attend_step", (16, 8, 1))], id="one slot, in parts"),
        pytest.param(LLAMA, 8, 1, True, [("attend_step", (2, 8, 8))], id="some slots"),
        pytest.param(LLAMA, 64, 1, True, [("attend_step", (1, 8, 64))], id="enough slots"),
        pytest.param(LLAMA, 8, 1, False, [("attend_one", (4, 8, 8))], id="no tensor cores"),
        pytest.param(PLAIN, 8, 1, True, [("attend_one", (4, 8, 8))], id="float32"),
        pytest.param(
            WIDE, 4, 1, True, [("attend_one", (32, 2, 4))], id="other heads, in two blocks"
        ),
        pytest.param(
            LLAMA,
            1,
            100,
            True,
            [("append_rows", (100, 8, 1)), ("attend_many", (2, 32, 1))],
            id="a prompt",
        ),
        pytest.param(
            LLAMA,
            1,
            100,
            False,
            [("append_rows", (100, 8, 1)), ("attend_each", (1, 8, 100))],
            id="a prompt without tensor cores",
        ),
    ],
)
def test_each_shape_is_attended_by_the_kernel_that_is_made_for_it(
    heads: Heads, rows: int, tokens: int, tensor_cores: bool, expected: list[Launch]
) -> None:
    launches = Launches(tensor_cores)
    Attention(heads, launches).enqueue(3, TENSORS, rows, tokens, stream=7)
    assert launches.kernels == expected
    *addresses, layer, count, scale = launches.arguments[-1]
    assert (addresses, layer, count) == ([1, 2, 3, 4, 5, 6, 7], 3, tokens)
    assert scale == pytest.approx(heads.head_dim**-0.5 * np.log2(np.e))


@pytest.mark.parametrize("heads", [LLAMA, WIDE])
def test_there_is_room_for_the_parts_of_steps_of_any_size(heads: Heads) -> None:
    for slots in (1, 7, 32, 300):
        for rows in range(1, slots + 1):
            parts = rows * heads.heads * heads.splits(rows) * (heads.head_dim + 2)
            assert 4 * parts <= heads.partial_bytes(slots)


def test_the_table_is_as_long_as_the_graph_says_and_tells_how_many_rows_count() -> None:
    table = cache_table(
        first_slot=5,
        live=1,
        rows=1 << 40,
        layer_stride=20,
        value_offset=10,
        length=64,
        spoiled=2,
        partial=3,
        arrived=4,
    )
    assert table.tolist() == [5, 1, 1 << 40, 20, 10, 64, 2, 3, 4]
    assert len(table) == TABLE_WORDS == CACHE_WORDS
    assert table[LIVE_WORD] == 1


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("fake_library")))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    # The fake one replaces it when it is imported.
    monkeypatch.setattr(ctypes, "CDLL", ctypes.CDLL)
    import tensorrt

    tensorrt.TensorFormat = SimpleNamespace(LINEAR="linear")
    tensorrt.TensorRTPhase = SimpleNamespace(BUILD="build", RUNTIME="runtime")
    tensorrt.DimsExprs = list
    yield tensorrt
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)


def plugin(trt: Any, phase: str, layer: int = 2) -> Any:
    values = {"layer": layer, "heads": 32, "kv_heads": 8, "head_dim": 64}
    fields = [SimpleNamespace(name=name, data=np.array([value])) for name, value in values.items()]
    return tensorrt_attention._creator(trt).create_plugin("attention", fields, phase)


def described(trt: Any) -> list[Any]:
    kinds = [trt.bfloat16, trt.float32, trt.float32, trt.int32, trt.int32, trt.int64, trt.bfloat16]
    return [SimpleNamespace(desc=SimpleNamespace(format="linear", type=kind)) for kind in kinds]


def run(made: Any, trt: Any) -> None:
    inputs = [SimpleNamespace(dims=(300, 3072), type=trt.bfloat16)]
    inputs += [
        SimpleNamespace(dims=dims) for dims in ((3, 100, 32), (3, 100, 32), (3,), (3,), (9,))
    ]
    made.enqueue(inputs, [], [1, 2, 3, 4, 5, 6], [7], 0, 7)


def test_a_layer_of_a_loaded_engine_attends_for_its_own_rows(
    trt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches, asked = Launches(), []

    def attention_for(heads: Heads) -> Attention:
        asked.append(heads)
        return Attention(heads, launches)

    monkeypatch.setattr(tensorrt_attention, "attention_for", attention_for)
    made = plugin(trt, "runtime").attach_to_context(None)
    run(made, trt)
    assert asked == [LLAMA]
    assert launches.kernels == [("append_rows", (100, 8, 3)), ("attend_many", (2, 32, 3))]
    assert launches.arguments[-1][:8] == [1, 2, 3, 4, 5, 6, 7, 2]


def test_nothing_is_attended_while_an_engine_is_built(
    trt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_attention, "attention_for", lambda heads: pytest.fail("asked"))
    run(plugin(trt, "build").clone(), trt)


def test_a_plan_has_what_makes_the_layer_anew(trt: Any) -> None:
    fields = plugin(trt, "build", layer=5).get_fields_to_serialize()
    again = tensorrt_attention._creator(trt).create_plugin("attention", fields, "runtime")
    assert [int(f.data[0]) for f in again.get_fields_to_serialize()] == [5, 32, 8, 64]


def test_the_output_has_a_head_for_each_of_the_query(trt: Any) -> None:
    builder = SimpleNamespace(constant=lambda value: value)
    assert plugin(trt, "build").get_output_shapes([["n", 3072]], [], builder) == [["n", 2048]]
    assert plugin(trt, "build").get_output_data_types([trt.bfloat16]) == [trt.bfloat16]


def test_only_plain_tensors_of_the_types_that_the_kernels_take_are_supported(trt: Any) -> None:
    made, tensors = plugin(trt, "build"), described(trt)
    assert all(made.supports_format_combination(at, tensors, 6) for at in range(7))
    tensors[6].desc.type = trt.float16
    assert not made.supports_format_combination(6, tensors, 6)
    tensors[1].desc.type = trt.bfloat16
    assert not made.supports_format_combination(1, tensors, 6)
    tensors[3].desc.format = "packed"
    assert not made.supports_format_combination(3, tensors, 6)


def test_a_plugin_outlives_whatever_python_forgets(trt: Any) -> None:
    """TensorRT deletes its half of the object; Python must not do so again."""
    made = plugin(trt, "runtime")
    assert sys.getrefcount(made) == 3
