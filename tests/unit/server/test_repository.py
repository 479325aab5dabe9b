"""Triton's model repository, rendered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmengine.artifact import Cache, Device, Limits, Manifest, Verification
from llmengine.key import engine_key
from llmengine.requests import ServeRequest, StoreLocation
from llmengine_server.dialect import INPUTS
from llmengine_server.repository import render

FACTORS = {"backend": "onnxruntime"}
KEY = engine_key(FACTORS)


def manifest() -> Manifest:
    return Manifest(
        key=KEY,
        factors=FACTORS,
        created="2026-11-24T00:00:00Z",
        builder_version="0.1.0",
        model_type="llama",
        vocabulary=300,
        limits=Limits(max_batch_size=4, max_sequence_length=64, max_batch_tokens=16),
        cache=Cache(
            layout="plain", dtype="float32", layers=2, kv_heads=2, head_dim=16, buckets=(64,)
        ),
        device=Device(name="cpu"),
        seconds={},
        verification=Verification(tokens=1, mean_relative_error=0, max_logit_gap=0),
        model_files=(),
        files=(),
    )


def request(model_name: str = "my-model.v1") -> ServeRequest:
    return ServeRequest(
        key=KEY,
        manifest_digest="sha256:" + "0" * 64,
        model_name=model_name,
        store=StoreLocation(bucket="engines"),
    )


def test_the_repository_has_the_served_names_folder(tmp_path: Path) -> None:
    render(Path("/engine"), request(), manifest(), tmp_path)
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert found == ["my-model.v1/1/model.py", "my-model.v1/config.pbtxt"]
    text = (tmp_path / "my-model.v1/config.pbtxt").read_text()
    assert 'name: "my-model.v1"' in text
    assert 'string_value: "/engine"' in text
    assert "llmengine_server.triton_model" in (tmp_path / "my-model.v1/1/model.py").read_text()


def test_every_input_of_the_dialect_is_declared_and_optional(tmp_path: Path) -> None:
    render(Path("/engine"), request(), manifest(), tmp_path)
    text = (tmp_path / "my-model.v1/config.pbtxt").read_text()
    optional = re.findall(r'name: "(\w+)".*optional: true', text)
    assert optional == [declared.name for declared in INPUTS]


def test_rendering_again_leaves_the_same_files(tmp_path: Path) -> None:
    for _ in range(2):
        render(Path("/engine"), request(), manifest(), tmp_path)
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 2


def test_a_pod_of_another_user_can_read_it(tmp_path: Path) -> None:
    render(Path("/engine"), request(), manifest(), tmp_path)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o004


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", 'quote"'])
def test_a_name_that_would_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a model name"):
        render(Path("/engine"), request(name), manifest(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_of_another_key_is_refused(tmp_path: Path) -> None:
    other = request().model_copy(update={"key": "b" * 64})
    with pytest.raises(ValueError, match=f"holds engine {KEY[:12]}, not bbbbbbbbbbbb"):
        render(Path("/engine"), other, manifest(), tmp_path)
