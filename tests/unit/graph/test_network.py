"""Graph contract 2: what goes in, what comes out, and what must not matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx.external_data_helper import load_external_data_for_model
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from llmengine.api.v1alpha1 import DType
from llmengine_builder.graph import CacheForm, read_model
from llmengine_builder.graph.writer import OPSET
from llmengine_builder.reference import Reference
from llmengine_server.session.onnxruntime import start_runtime
from tests.models.tiny import Family, TinyModel
from tests.unit.graph.engines import parse, relative_error, run_graph

FAMILIES: tuple[Family, ...] = ("llama", "mistral", "qwen2", "qwen3")
PROMPT = [5, 77, 131, 9, 250, 18, 44, 3, 201, 60, 12]


def graph_of(folder: Path, dtype: DType = DType.FLOAT32, cache: CacheForm = "inputs") -> bytes:
    return read_model(folder).graph(dtype, cache)


def inputs(rows: list[list[int]], pasts: list[int], pad: int = 0) -> dict[str, NDArray[np.int32]]:
    width = max(map(len, rows))
    return {
        "input_ids": np.array([row + [pad] * (width - len(row)) for row in rows], np.int32),
        "past_lens": np.array(pasts, np.int32),
        "new_lens": np.array([len(row) for row in rows], np.int32),
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16])
def test_a_graph_is_valid_and_of_standard_operators_only(
    family: Family, dtype: DType, tmp_path: Path
) -> None:
    folder = TinyModel(family=family, dtype="BF16").write(tmp_path / "model")
    graph = graph_of(folder, dtype)
    # The checker looks for external data beside the file, and must not find it in ours.
    path = folder / "graph.onnx"
    path.write_bytes(graph)
    onnx.checker.check_model(str(path), full_check=True)
    model = parse(graph)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]


def test_inputs_and_outputs_are_those_of_the_contract(tmp_path: Path) -> None:
    folder = TinyModel(layers=2, kv_heads=2).write(tmp_path / "model")
    model = parse(graph_of(folder))

    def shapes(values: list[onnx.ValueInfoProto]) -> dict[str, list[str | int]]:
        return {
            value.name: [
                axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim
            ]
            for value in values
        }

    assert shapes(list(model.graph.input)) == {
        "input_ids": ["batch", "tokens"],
        "past_lens": ["batch"],
        "new_lens": ["batch"],
        "k_past_0": ["batch", 2, "past", 16],
        "v_past_0": ["batch", 2, "past", 16],
        "k_past_1": ["batch", 2, "past", 16],
        "v_past_1": ["batch", 2, "past", 16],
    }
    assert shapes(list(model.graph.output)) == {
        "logits": ["batch", 293],
        "k_new": [2, "batch", 2, "tokens", 16],
        "v_new": [2, "batch", 2, "tokens", 16],
    }


def test_weights_stay_in_the_models_own_files(tmp_path: Path) -> None:
    folder = TinyModel(shards=2, unaligned=True).write(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = read_model(folder)
    graph = model.graph(DType.FLOAT32, "inputs")
    assert len(graph) < 60_000
    stored = {}
    for tensor in parse(graph).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            stored[tensor.name] = {entry.key: entry.value for entry in tensor.external_data}
    assert set(stored) == set(model.checkpoint.tensors)
    for name, place in stored.items():
        tensor = model.checkpoint.tensors[name]
        assert (folder / place["location"]).parent == folder
        data = before[place["location"]][int(place["offset"]) :][: int(place["length"])]
        assert data == model.checkpoint.read(tensor.name)
    run_graph(graph, folder, inputs([PROMPT], [0]))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    one = TinyModel(family="qwen3").write(tmp_path / "one")
    other = TinyModel(family="qwen3").write(tmp_path / "other")
    assert graph_of(one) == graph_of(other)


@pytest.mark.parametrize("family", FAMILIES)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(st.lists(st.integers(0, 292), min_size=1, max_size=9), min_size=1, max_size=4),
    pad=st.integers(0, 292),
)
def test_padding_and_neighbours_change_nothing(
    family: Family, rows: list[list[int]], pad: int, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    if not folder.exists():
        TinyModel(family=family).write(folder)
    graph = graph_of(folder)
    together = run_graph(graph, folder, inputs(rows, [0] * len(rows), pad))
    for i, row in enumerate(rows):
        alone = run_graph(graph, folder, inputs([row], [0]))
        np.testing.assert_allclose(together[0][i], alone[0][0], rtol=1e-4, atol=1e-4)
        for mine, theirs in zip(together[1:], alone[1:], strict=True):
            np.testing.assert_allclose(
                mine[:, i, :, : len(row)], theirs[:, 0], rtol=1e-4, atol=1e-4
            )


def test_rows_beyond_the_past_do_not_matter(tmp_path: Path) -> None:
    folder = TinyModel().write(tmp_path / "model")
    graph, step = graph_of(folder), inputs([[7]], [len(PROMPT)])
    _, keys, values = run_graph(graph, folder, inputs([PROMPT], [0]))
    clean, dirty = dict[str, NDArray[Any]](step), dict[str, NDArray[Any]](step)
    for layer in range(2):
        for kind, new in (("k", keys), ("v", values)):
            past = new[layer]
            shape = list(past.shape)
            shape[2] = 5
            name = f"{kind}_past_{layer}"
            clean[name] = past
            dirty[name] = np.concatenate([past, np.full(shape, 1e4, np.float32)], axis=2)
    np.testing.assert_allclose(
        run_graph(graph, folder, dirty)[0], run_graph(graph, folder, clean)[0], rtol=1e-5, atol=1e-5
    )


def test_a_stored_key_that_is_not_finite_is_masked_out(tmp_path: Path) -> None:
    """Masked by choice and not by addition, NaN in an unused key row cannot reach a score."""
    folder = TinyModel().write(tmp_path / "model")
    graph, step = graph_of(folder), inputs([[7]], [0])
    poisoned = dict[str, NDArray[Any]](step)
    for layer in range(2):
        poisoned[f"k_past_{layer}"] = np.full((1, 2, 4, 16), np.nan, np.float32)
        poisoned[f"v_past_{layer}"] = np.zeros((1, 2, 4, 16), np.float32)
    np.testing.assert_allclose(
        run_graph(graph, folder, poisoned)[0], run_graph(graph, folder, dict(step))[0], rtol=1e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_float16_engines_come_close_to_the_model(family: Family, tmp_path: Path) -> None:
    folder = TinyModel(family=family, dtype="F16").write(tmp_path / "model")
    logits, keys, _ = run_graph(graph_of(folder, DType.FLOAT16), folder, inputs([PROMPT], [0]))
    (reference,) = Reference(folder).logits([PROMPT], [[len(PROMPT) - 1]])
    assert logits.dtype == np.float32
    assert keys.dtype == np.float16
    assert relative_error(logits, reference) < 5e-3


@pytest.mark.parametrize("stored", ["F32", "BF16"])
def test_bfloat16_engines_come_close_to_the_model(stored: str, tmp_path: Path) -> None:
    """By ONNX's own evaluator: ONNX Runtime has no bfloat16 products on a CPU."""
    folder = TinyModel(family="qwen3", dtype="BF16" if stored == "BF16" else "F32").write(
        tmp_path / "model"
    )
    model = parse(graph_of(folder, DType.BFLOAT16))
    load_external_data_for_model(model, str(folder))
    feeds: dict[str, NDArray[Any]] = dict(inputs([PROMPT], [0]))
    for layer in range(2):
        feeds[f"k_past_{layer}"] = np.zeros((1, 2, 3, 24), ml_dtypes.bfloat16)
        feeds[f"v_past_{layer}"] = np.zeros((1, 2, 3, 24), ml_dtypes.bfloat16)
    outputs: Any = ReferenceEvaluator(model).run(None, feeds)
    logits, keys, _ = outputs
    (reference,) = Reference(folder).logits([PROMPT], [[len(PROMPT) - 1]])
    assert keys.dtype == ml_dtypes.bfloat16
    assert relative_error(logits, reference) < 3e-2


def test_norms_and_activations_are_written_as_runtimes_fuse_them(tmp_path: Path) -> None:
    """One kernel for a norm: unfused, small models spend a tenth of a step on launches."""
    folder = TinyModel(layers=2).write(tmp_path / "model")
    options = ort.SessionOptions()
    optimized = tmp_path / "optimized.onnx"
    options.optimized_model_filepath = str(optimized)
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    ort.InferenceSession(graph_of(folder), options, providers=["CPUExecutionProvider"])
    kinds = [
        node.op_type for node in onnx.load_model(optimized, load_external_data=False).graph.node
    ]
    assert (
        kinds.count("SimplifiedLayerNormalization")
        + kinds.count("SkipSimplifiedLayerNormalization")
        == 5
    )
    assert kinds.count("QuickGelu") == 2
    assert "Pow" not in kinds


def test_a_folder_that_may_only_be_read_is_enough(tmp_path: Path) -> None:
    folder = TinyModel().write(tmp_path / "model")
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    try:
        graph = graph_of(folder)
        start_runtime(graph, folder, threads=1)
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            [
                "config.json",
                "generation_config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
            ]
        )
    finally:
        folder.chmod(0o755)


def test_the_graph_does_not_depend_on_remarks_in_the_config(tmp_path: Path) -> None:
    folder = TinyModel().write(tmp_path / "model")
    before = graph_of(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "9"}))
    assert graph_of(folder) == before


class CachedAttention(OpRun):
    """The operator of graphs that know their cache by its address, here an empty one."""

    op_domain = "llmengine"

    def _run(  # noqa: PLR0917 - ONNX's evaluator calls it
        self,
        projected: NDArray[np.float32],
        cosine: NDArray[np.float32],
        sine: NDArray[np.float32],
        past_lens: NDArray[np.int32],
        new_lens: NDArray[np.int32],
        cache: NDArray[np.int64],
        **attributes: Any,
    ) -> tuple[NDArray[np.float32]]:
        batch, tokens, _ = cosine.shape
        group = attributes["heads"] // attributes["kv_heads"]

        sizes = [attributes["heads"], attributes["kv_heads"], attributes["kv_heads"]]
        borders = np.cumsum(sizes)[:2] * attributes["head_dim"]
        query, key, value = np.split(projected, borders, axis=1)

        def heads(flat: NDArray[np.float32], turned: bool) -> NDArray[np.float32]:
            split = flat.reshape(batch, tokens, -1, attributes["head_dim"])
            low, high = np.split(split, 2, axis=-1)
            c, s = cosine[:, :, None], sine[:, :, None]
            if turned:
                split = np.concatenate([low * c - high * s, high * c + low * s], axis=-1)
            return split.transpose(0, 2, 1, 3)

        queries = heads(query, True)
        keys, values = (
            np.repeat(heads(flat, turned), group, axis=1)
            for flat, turned in ((key, True), (value, False))
        )
        scores = queries @ keys.transpose(0, 1, 3, 2) * attributes["head_dim"] ** -0.5
        scores += np.triu(np.full((tokens, tokens), -np.inf, np.float32), 1)
        share = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = share / share.sum(axis=-1, keepdims=True) @ values
        return (mixed.transpose(0, 2, 1, 3).reshape(query.shape).astype(np.float32),)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_with_its_cache_by_address_computes_the_same(
    family: Family, tmp_path: Path
) -> None:
    folder = TinyModel(family=family).write(tmp_path / "model")
    graph = parse(graph_of(folder, cache="address"))
    load_external_data_for_model(graph, str(folder))
    rows = inputs([PROMPT, PROMPT[:4]], [0, 0])
    evaluator = ReferenceEvaluator(graph, new_ops=[CachedAttention])
    mine, *_ = evaluator.run(None, {**rows, "cache": np.zeros(9, np.int64)})
    theirs, *_ = run_graph(graph_of(folder), folder, rows)
    np.testing.assert_allclose(np.asarray(mine), theirs, rtol=1e-4, atol=1e-4)


def test_a_graph_with_its_cache_by_address_has_no_other_tensor_of_it(tmp_path: Path) -> None:
    model = parse(graph_of(TinyModel(layers=2).write(tmp_path / "model"), cache="address"))
    names = [value.name for value in model.graph.input]
    assert names == ["input_ids", "past_lens", "new_lens", "cache"]
    assert [value.name for value in model.graph.output] == ["logits"]
    own = [node for node in model.graph.node if node.domain]
    assert [(node.domain, node.op_type) for node in own] == [("llmengine", "CachedAttention")] * 2
    layers = [{a.name: a.i for a in node.attribute}["layer"] for node in own]
    assert layers == [0, 1]
