"""Headers are read without data, and whatever is damaged is refused with the file's name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmengine_builder.errors import BadInputError, UnsupportedError
from llmengine_builder.safetensors import read_checkpoint
from tests.models import safetensors_file
from tests.models.tiny import TinyModel

SINGLE = "model.safetensors"
FIRST = "model-00001-of-00003.safetensors"
SECOND = "model-00002-of-00003.safetensors"


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return TinyModel().write(tmp_path / "model")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return TinyModel(shards=3, unaligned=True).write(tmp_path / "model")


def edit_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def edit_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / safetensors_file.INDEX
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_is_found_where_its_bytes_are(shards: int, tmp_path: Path) -> None:
    model = TinyModel(dtype="BF16", shards=shards, unaligned=True)
    checkpoint = read_checkpoint(model.write(tmp_path / "model"))
    stored = {tensor.name: tensor for tensor in model.tensors()}
    assert set(checkpoint.tensors) == set(stored)
    assert len(checkpoint.files) == shards
    for name, tensor in stored.items():
        assert checkpoint.tensors[name].shape == tensor.shape
        assert checkpoint.read(name) == safetensors_file.encode(tensor.values(), "BF16")


def test_a_lone_file_of_another_name_is_taken(single: Path) -> None:
    (single / SINGLE).rename(single / "weights.safetensors")
    assert read_checkpoint(single).files == ("weights.safetensors",)


def test_a_truncated_file_is_refused_by_name_of_file_and_tensor(tmp_path: Path) -> None:
    folder = TinyModel(shards=3, weights="truncated").write(tmp_path / "model")
    with pytest.raises(
        BadInputError,
        match=r"model-00003-of-00003.safetensors is truncated: tensor lm_head.weight ends at byte"
        r" \d+, the file at byte \d+; upload it again",
    ):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(0, id="empty"),
        pytest.param(5, id="within its first eight bytes"),
        pytest.param(100, id="within its header"),
    ],
)
def test_a_file_cut_before_its_data_is_refused_by_name(size: int, single: Path) -> None:
    with (single / SINGLE).open("r+b") as file:
        file.truncate(size)
    with pytest.raises(BadInputError, match=rf"model.safetensors is truncated .* {size} bytes"):
        read_checkpoint(single)


@given(damage=st.binary(min_size=1, max_size=200))
def test_no_damaged_header_escapes_as_anything_but_bad_input(
    damage: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    (folder / SINGLE).write_bytes(len(damage).to_bytes(8, "little") + damage)
    try:
        checkpoint = read_checkpoint(folder)
    except BadInputError as error:
        assert SINGLE in error.message
    else:
        assert not checkpoint.tensors
    shutil.rmtree(folder)


def test_pickles_alone_are_refused_and_never_read(tmp_path: Path) -> None:
    folder = TinyModel(weights="pickle").write(tmp_path / "model")
    with pytest.raises(
        UnsupportedError,
        match=r"pickle files only \(pytorch_model.bin\), .* convert them to safetensors",
    ):
        read_checkpoint(folder)


def test_a_folder_without_weights_is_refused(single: Path) -> None:
    (single / SINGLE).unlink()
    with pytest.raises(BadInputError, match=r"no model.safetensors and no model.safetensors.index"):
        read_checkpoint(single)


def test_two_files_without_an_index_are_refused(sharded: Path) -> None:
    (sharded / safetensors_file.INDEX).unlink()
    with pytest.raises(BadInputError, match=r"3 safetensors files .* but no .*index.json"):
        read_checkpoint(sharded)


def test_a_missing_shard_is_refused_by_name(sharded: Path) -> None:
    (sharded / SECOND).unlink()
    with pytest.raises(BadInputError, match=f"names {SECOND}, which is not there"):
        read_checkpoint(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    def add(header: dict[str, Any]) -> None:
        header["model.norm.weight"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}

    edit_header(sharded / FIRST, add)
    with pytest.raises(
        BadInputError, match=rf"tensor model.norm.weight is in both {FIRST} and model-00003"
    ):
        read_checkpoint(sharded)


def test_a_tensor_that_is_not_where_the_index_says_is_refused(sharded: Path) -> None:
    def lie(index: dict[str, Any]) -> None:
        index["weight_map"]["model.embed_tokens.weight"] = SECOND

    edit_index(sharded, lie)
    with pytest.raises(BadInputError, match=f"puts tensor model.embed_tokens.weight into {SECOND}"):
        read_checkpoint(sharded)


@pytest.mark.parametrize("place", ["../outside.safetensors", "/etc/passwd", "pytorch_model.bin"])
def test_an_index_that_leaves_the_folder_is_refused(place: str, sharded: Path) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update({"model.norm.weight": place}))
    with pytest.raises(BadInputError, match=r"which is not a .safetensors file of the model's"):
        read_checkpoint(sharded)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}'])
def test_an_index_without_a_map_is_refused(text: str, sharded: Path) -> None:
    (sharded / safetensors_file.INDEX).write_text(text)
    with pytest.raises(BadInputError, match=r"index.json (has no readable|names no tensor)"):
        read_checkpoint(sharded)


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        pytest.param({"shape": [3]}, "does not fill bytes", id="a shape of another size"),
        pytest.param({"dtype": "F4"}, "unknown dtype F4", id="an unknown dtype"),
        pytest.param({"shape": [-1, -64]}, "negative length", id="a negative length"),
        pytest.param({"data_offsets": [-4, 252]}, "negative", id="a negative offset"),
        pytest.param({"data_offsets": [0, 256]}, "overlap", id="another tensor's bytes"),
        pytest.param({"data_offsets": None}, "cannot be read", id="no offsets"),
    ],
)
def test_a_contradictory_header_is_refused(
    entry: dict[str, Any], complaint: str, single: Path
) -> None:
    edit_header(single / SINGLE, lambda header: header["model.norm.weight"].update(entry))
    with pytest.raises(BadInputError, match=f"model.safetensors.*{complaint}"):
        read_checkpoint(single)


def test_a_header_that_names_a_tensor_twice_is_refused(single: Path) -> None:
    text = b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "a": {}}'
    (single / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(BadInputError, match="a is in it twice"):
        read_checkpoint(single)
