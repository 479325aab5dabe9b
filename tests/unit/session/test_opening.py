"""Only an engine that this image can serve is opened; any other says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmengine.artifact import Device, Manifest, Verification
from llmengine.key import engine_key
from llmengine_server.session import EngineError
from llmengine_server.session.onnxruntime import VERSION
from llmengine_server.session.opening import open_session
from tests.models.tiny import TinyModel
from tests.unit.graph.engines import compile_engine


def engine(tmp_path: Path, **factors: str) -> tuple[Path, Manifest]:
    """An engine's folder as the fetch leaves it, and its manifest."""
    model = TinyModel(family="mistral", shards=2).write(tmp_path / "source")
    compiled = compile_engine(model, tmp_path / "compiled")
    folder = tmp_path / "engine"
    for name, path in compiled.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(path.read_bytes())
    all_factors = {"backend": "onnxruntime", "backendVersion": VERSION, **factors}
    return folder, Manifest(
        key=engine_key(all_factors),
        factors=all_factors,
        created="2026-11-24T12:00:00Z",
        builder_version="0.1.0",
        model_type=compiled.model_type,
        vocabulary=compiled.vocabulary,
        limits=compiled.limits,
        cache=compiled.cache,
        device=Device(name="a CPU"),
        seconds={},
        verification=Verification(tokens=1, mean_relative_error=0, max_logit_gap=0),
        model_files=(),
        files=(),
    )


def test_an_engine_answers_from_its_own_folder(tmp_path: Path) -> None:
    session = open_session(*engine(tmp_path), threads=1)
    row = session.prefill(0, [1, 2, 3], 0)
    assert row.finite()
    assert row.full().shape == (session.vocabulary,)
    assert (session.slots, session.max_sequence_length, session.max_batch_tokens) == (3, 256, 32)


def test_an_engine_of_another_backend_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        EngineError, match=r"built by the backend tensorrt, which this image cannot"
    ):
        open_session(*engine(tmp_path, backend="tensorrt"))


def test_an_engine_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        EngineError,
        match=rf"built by ONNX Runtime 1.0.0, but this image has {VERSION}: give its EngineRuntime"
        r" the image of version 1.0.0",
    ):
        open_session(*engine(tmp_path, backendVersion="1.0.0"))


def test_a_folder_without_a_graph_is_refused(tmp_path: Path) -> None:
    folder, manifest = engine(tmp_path)
    (folder / "graph.onnx").unlink()
    with pytest.raises(EngineError, match="holds no graph"):
        open_session(folder, manifest)


@pytest.mark.parametrize("damage", ["graph.onnx", "model/model-00002-of-00002.safetensors"])
def test_an_engine_with_a_file_cut_short_is_refused(damage: str, tmp_path: Path) -> None:
    folder, manifest = engine(tmp_path)
    with (folder / damage).open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(EngineError, match="cannot load the engine"):
        open_session(folder, manifest)


@pytest.mark.parametrize("change", [{"layout": "transposed"}, {"dtype": "float16"}])
def test_a_cache_that_this_session_cannot_hold_is_refused(
    change: dict[str, str], tmp_path: Path
) -> None:
    folder, manifest = engine(tmp_path)
    other = manifest.model_copy(update={"cache": manifest.cache.model_copy(update=change)})
    with pytest.raises(EngineError, match="takes plain float32"):
        open_session(folder, other)
