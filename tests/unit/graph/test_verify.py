"""Verification passes what is right, and names where an engine that is wrong goes wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from llmengine.api.v1alpha1 import DType
from llmengine.artifact import Limits
from llmengine.requests import ExitCode
from llmengine_builder.backends import CompiledEngine, find_backend
from llmengine_builder.errors import VerificationError
from llmengine_builder.reference import Reference
from llmengine_builder.verify import LONGEST_SEQUENCE, SLOTS, verify
from llmengine_server.session import RowLogits, Session
from llmengine_server.session.onnxruntime import VERSION
from tests.models.tiny import Family, TinyModel
from tests.unit.graph.engines import compile_engine, parse

FAMILIES: tuple[Family, ...] = ("llama", "mistral", "qwen2", "qwen3")
Tamper = Callable[[onnx.ModelProto], None]


def run_verification(engine: CompiledEngine, model: Path, slots: int = SLOTS) -> None:
    backend = find_backend("onnxruntime", VERSION)
    result = verify(lambda: backend.open(engine, slots), model, DType.FLOAT32, engine.cache.buckets)
    assert result.tokens >= 4 * 8
    assert 0 < result.mean_relative_error <= 1e-5
    assert 0 <= result.max_logit_gap <= 0.5
    assert result.reference == "numpy-float32"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("slots", [1, 2])
def test_a_right_engine_passes(family: Family, slots: int, tmp_path: Path) -> None:
    model = TinyModel(family=family).write(tmp_path / "model")
    run_verification(compile_engine(model, tmp_path / "engine"), model, slots)


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param(Limits(max_batch_size=2, max_sequence_length=16, max_batch_tokens=1), id="16"),
        pytest.param(
            Limits(max_batch_size=2, max_sequence_length=131, max_batch_tokens=7),
            id="just over a bucket",
        ),
        pytest.param(
            Limits(max_batch_size=2, max_sequence_length=1024, max_batch_tokens=512),
            id="512 tokens of prompt",
        ),
    ],
)
def test_an_engine_of_any_length_can_be_verified(limits: Limits, tmp_path: Path) -> None:
    model = TinyModel(max_position_embeddings=1024).write(tmp_path / "model")
    backend = find_backend("onnxruntime", VERSION)
    engine = compile_engine(model, tmp_path / "engine", limits)
    verification = verify(
        lambda: backend.open(engine, SLOTS), model, DType.FLOAT32, engine.cache.buckets
    )
    assert verification.mean_relative_error <= 1e-5


def test_what_is_verified_does_not_grow_with_a_cache_of_one_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []

    class Watched(Reference):
        def logits(
            self, sequences: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]
        ) -> list[NDArray[np.float32]]:
            lengths.extend(map(len, sequences))
            return super().logits(sequences, wanted)

    monkeypatch.setattr("llmengine_builder.verify.Reference", Watched)
    model = TinyModel(max_position_embeddings=4096).write(tmp_path / "model")
    backend = find_backend("onnxruntime", VERSION)
    limits = Limits(max_batch_size=2, max_sequence_length=4096, max_batch_tokens=512)
    engine = compile_engine(model, tmp_path / "engine", limits)
    verify(lambda: backend.open(engine, SLOTS), model, DType.FLOAT32, buckets=(4096,))
    assert max(lengths) == LONGEST_SEQUENCE + 5


def swap_layers(model: onnx.ModelProto) -> None:
    """Layer 0 gets the up projection of layer 1, and the other way round."""
    places = {t.name: t.external_data for t in model.graph.initializer if t.external_data}
    pair = [places[f"model.layers.{i}.mlp.up_proj.weight"] for i in (0, 1)]
    offsets = [next(entry for entry in place if entry.key == "offset") for place in pair]
    offsets[0].value, offsets[1].value = offsets[1].value, offsets[0].value


def another_theta(model: onnx.ModelProto) -> None:
    edit_constant(model, lambda value: value.dtype == np.float32 and value.size > 4, 0.5)


def is_epsilon(value: NDArray[Any]) -> bool:
    return value.dtype == np.float32 and value.size == 1 and 0 < float(value) < 1e-3


def another_epsilon(model: onnx.ModelProto) -> None:
    edit_constant(model, is_epsilon, 1e4)


def see_the_future(model: onnx.ModelProto) -> None:
    (node,) = (node for node in model.graph.node if node.op_type == "LessOrEqual")
    node.op_type = "GreaterOrEqual"


def see_one_row_less(model: onnx.ModelProto) -> None:
    """The newest cached row is masked out: right for a prompt in one chunk, wrong afterwards."""
    (node,) = (node for node in model.graph.node if node.op_type == "Less")
    shifted = model.graph.node.add(
        op_type="Add", input=[node.input[0], "one"], output=["shifted"], name="shifted"
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.int32), "one"))
    node.input[0] = "shifted"
    nodes = list(model.graph.node)[:-1]
    nodes.insert(nodes.index(node), shifted)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def edit_constant(
    model: onnx.ModelProto, wanted: Callable[[NDArray[Any]], bool], factor: float
) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            continue
        value = numpy_helper.to_array(tensor)
        if wanted(value):
            tensor.CopyFrom(numpy_helper.from_array(value * value.dtype.type(factor), tensor.name))
            return
    raise AssertionError("no such constant")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "tamper", [swap_layers, another_theta, another_epsilon, see_the_future, see_one_row_less]
)
def test_a_wrong_engine_is_refused(family: Family, tamper: Tamper, tmp_path: Path) -> None:
    model = TinyModel(family=family).write(tmp_path / "model")
    engine = compile_engine(model, tmp_path / "engine")
    graph = parse(engine.files["graph.onnx"].read_bytes())
    tamper(graph)
    engine.files["graph.onnx"].write_bytes(graph.SerializeToString())
    with pytest.raises(
        VerificationError,
        match=r"logits differ from the reference's by .* on average \(allowed: 1e-05\), most of all"
        r" by .* after token \d+ of a .*; it is not published",
    ) as caught:
        run_verification(engine, model)
    assert caught.value.exit_code is ExitCode.VERIFICATION_FAILED


def test_an_engine_that_does_not_load_is_refused(tmp_path: Path) -> None:
    model = TinyModel().write(tmp_path / "model")
    engine = compile_engine(model, tmp_path / "engine")
    engine.files["graph.onnx"].write_bytes(b"not a graph")
    with pytest.raises(VerificationError, match="cannot load the engine"):
        run_verification(engine, model)


class Faulty:
    """A session that is right but for what `spoil` does to the logits of one decode step."""

    def __init__(self, session: Session, spoil: Callable[[NDArray[Any]], None], step: int) -> None:
        self._session = session
        self._spoil = spoil
        self._steps_left = step

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)

    def decode(self, tokens: list[int], pasts: list[int]) -> list[RowLogits]:
        rows = [SpoiledRow(row.full()) for row in self._session.decode(tokens, pasts)]
        self._steps_left -= 1
        if self._steps_left == 0:
            self._spoil(rows[0].logits)
        return list[RowLogits](rows)


@dataclasses.dataclass
class SpoiledRow:
    logits: NDArray[Any]

    def chosen(self) -> int | None:
        return None

    def argmax(self) -> int:
        return int(self.logits.argmax())

    def finite(self) -> bool:
        return bool(np.isfinite(self.logits).all())

    def full(self) -> NDArray[Any]:
        return self.logits.copy()


def verify_faulty(tmp_path: Path, spoil: Callable[[NDArray[Any]], None]) -> None:
    model = TinyModel().write(tmp_path / "model")
    engine = compile_engine(model, tmp_path / "engine")
    backend = find_backend("onnxruntime", VERSION)

    def open_faulty() -> Session:
        session: Session = Faulty(backend.open(engine, SLOTS), spoil, step=3)  # type: ignore[assignment]
        return session

    verify(open_faulty, model, DType.BFLOAT16, engine.cache.buckets)


def test_logits_that_are_not_finite_are_refused_by_place(tmp_path: Path) -> None:
    def spoil(logits: NDArray[Any]) -> None:
        logits[7] = np.nan

    with pytest.raises(
        VerificationError,
        match=r"after token 127 of a sequence that outgrows the cache's first bucket \(124 tokens"
        r" of prompt\) are not finite",
    ):
        verify_faulty(tmp_path, spoil)


def test_a_token_that_the_reference_would_never_choose_is_refused(tmp_path: Path) -> None:
    """Even where the mean error is small enough: a user reads tokens, not means."""

    def spoil(logits: NDArray[Any]) -> None:
        logits[int(logits.argmin())] = logits.max() + 0.01

    with pytest.raises(
        VerificationError,
        match=r"chose a token whose logit is \d+.\d\d below the reference's best .* after token 127"
        r" of a sequence that outgrows",
    ):
        verify_faulty(tmp_path, spoil)
