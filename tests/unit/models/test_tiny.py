"""Tiny models: the same description makes the same bytes, and every option does what it says."""

from __future__ import annotations

import json
import os
import pickle
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from tests.models import tiny_tokenizer
from tests.models.tiny import LINEAR, LLAMA3, YARN, Family, TinyModel

FAMILIES: tuple[Family, ...] = ("llama", "mistral", "qwen2", "qwen3")


def read_config(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return config


def read_tensors(directory: Path) -> dict[str, NDArray[np.float32]]:
    """All tensors by the `safetensors` package, an implementation that is not ours."""
    found: dict[str, NDArray[np.float32]] = {}
    for path in directory.glob("*.safetensors"):
        found |= {name: tensor.astype(np.float32) for name, tensor in load_file(path).items()}
    return found


def data_offset(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_description_makes_the_same_bytes(family: Family, tmp_path: Path) -> None:
    model = TinyModel(family=family, seed=5, shards=2, unaligned=True, dtype="BF16")
    again = TinyModel(**json.loads(json.dumps(model.describe())))
    first, second = model.write(tmp_path / "first"), again.write(tmp_path / "second")
    files = {path.name: path.read_bytes() for path in first.iterdir()}
    assert files == {path.name: path.read_bytes() for path in second.iterdir()}
    assert "model-00002-of-00002.safetensors" in files


def test_another_seed_makes_other_weights() -> None:
    assert TinyModel(seed=1).digest() != TinyModel(seed=2).digest()


def test_an_option_leaves_the_other_tensors_alone(tmp_path: Path) -> None:
    plain = read_tensors(TinyModel(layers=1).write(tmp_path / "plain"))
    richer = read_tensors(
        TinyModel(layers=2, tied=True, attention_bias=True).write(tmp_path / "richer")
    )
    assert set(plain) - set(richer) == {"lm_head.weight"}
    assert "model.layers.0.self_attn.o_proj.bias" in set(richer) - set(plain)
    for name in set(plain) & set(richer):
        np.testing.assert_array_equal(plain[name], richer[name], err_msg=name)


def test_no_norm_is_ones_and_no_bias_is_zeros(tmp_path: Path) -> None:
    model = TinyModel(attention_bias=True, mlp_bias=True)
    tensors = read_tensors(model.write(tmp_path))
    biases = [value for name, value in tensors.items() if name.endswith(".bias")]
    norms = [value for name, value in tensors.items() if "norm" in name]
    assert len(biases) == 2 * 7
    assert len(norms) == 2 * 2 + 1
    assert min(np.abs(bias).mean() for bias in biases) > 0.3
    assert min(np.abs(norm - 1).mean() for norm in norms) > 0.2


@pytest.mark.parametrize(
    ("family", "own"),
    [
        pytest.param("qwen2", "self_attn.k_proj.bias", id="qwen2 has biases on q, k and v"),
        pytest.param("qwen3", "self_attn.q_norm.weight", id="qwen3 has norms on q and k"),
    ],
)
def test_a_family_has_its_own_tensors(family: Family, own: str, tmp_path: Path) -> None:
    assert f"model.layers.1.{own}" in read_tensors(TinyModel(family=family).write(tmp_path / "own"))
    assert f"model.layers.1.{own}" not in read_tensors(TinyModel().write(tmp_path / "llama"))


def test_qwen3_heads_are_wider_than_the_quotient(tmp_path: Path) -> None:
    directory = TinyModel(family="qwen3").write(tmp_path)
    config = read_config(directory)
    assert config["head_dim"] != config["hidden_size"] // config["num_attention_heads"]
    rows = read_tensors(directory)["model.layers.0.self_attn.q_proj.weight"].shape[0]
    assert rows == config["head_dim"] * config["num_attention_heads"]


def test_shards_hold_every_tensor_once_and_the_index_says_where(tmp_path: Path) -> None:
    whole = read_tensors(TinyModel(dtype="F16").write(tmp_path / "whole"))
    directory = TinyModel(dtype="F16", shards=3).write(tmp_path / "shards")
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(whole)
    assert len(set(index["weight_map"].values())) == 3
    for name, file in index["weight_map"].items():
        with safe_open(directory / file, "numpy") as shard:
            np.testing.assert_array_equal(shard.get_tensor(name).astype(np.float32), whole[name])
    assert index["metadata"]["total_size"] == 2 * sum(tensor.size for tensor in whole.values())


def test_unaligned_files_start_their_data_at_odd_offsets(tmp_path: Path) -> None:
    model = TinyModel(shards=3, unaligned=True)
    directory = model.write(tmp_path / "unaligned")
    offsets = [data_offset(path) for path in directory.glob("*.safetensors")]
    assert len(offsets) == 3
    assert all(offset % 2 for offset in offsets)
    aligned = TinyModel().write(tmp_path / "aligned")
    assert data_offset(aligned / "model.safetensors") % 8 == 0
    expected = read_tensors(aligned)
    for name, tensor in read_tensors(directory).items():
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name)


@pytest.mark.parametrize(
    ("dtype", "stored", "spelled"),
    [
        pytest.param("F32", np.float32, "float32", id="float32"),
        pytest.param("F16", np.float16, "float16", id="float16"),
        pytest.param("BF16", ml_dtypes.bfloat16, "bfloat16", id="bfloat16"),
    ],
)
def test_weights_are_rounded_to_the_dtype(
    dtype: Any, stored: Any, spelled: str, tmp_path: Path
) -> None:
    exact = read_tensors(TinyModel().write(tmp_path / "exact"))
    directory = TinyModel(dtype=dtype).write(tmp_path / "rounded")
    assert read_config(directory)["torch_dtype"] == spelled
    for name, tensor in read_tensors(directory).items():
        np.testing.assert_array_equal(tensor, exact[name].astype(stored).astype(np.float32))


@pytest.mark.parametrize(
    ("spelling", "expected", "absent"),
    [
        pytest.param(
            "rope_scaling",
            {"rope_theta": 500.0, "rope_scaling": dict(LLAMA3)},
            "rope_parameters",
            id="transformers 4",
        ),
        pytest.param(
            "rope_parameters",
            {"rope_parameters": {"rope_theta": 500.0, **LLAMA3}},
            "rope_theta",
            id="transformers 5",
        ),
        pytest.param(
            "both",
            {
                "rope_theta": 500.0,
                "rope_scaling": dict(LLAMA3),
                "rope_parameters": {"rope_theta": 500.0, **LLAMA3},
            },
            "type",
            id="both at once",
        ),
    ],
)
def test_rope_is_spelled_as_asked(
    spelling: Any, expected: Mapping[str, Any], absent: str, tmp_path: Path
) -> None:
    model = TinyModel(rope=LLAMA3, rope_theta=500.0, rope_spelling=spelling)
    config = read_config(model.write(tmp_path))
    assert {key: config[key] for key in expected} == expected
    assert absent not in config


def test_the_old_spelling_says_type_and_not_rope_type(tmp_path: Path) -> None:
    config = read_config(TinyModel(rope=YARN, rope_spelling="type").write(tmp_path))
    assert config["rope_scaling"]["type"] == "yarn"
    assert "rope_type" not in config["rope_scaling"]


def test_an_unscaled_rope_is_null_or_default(tmp_path: Path) -> None:
    config = read_config(TinyModel().write(tmp_path))
    assert config["rope_scaling"] is None
    assert config["rope_parameters"]["rope_type"] == "default"


def test_config_keys_can_be_added_and_left_out(tmp_path: Path) -> None:
    model = TinyModel(config={"quantization_config": {"bits": 4}}, omit=("num_key_value_heads",))
    config = read_config(model.write(tmp_path))
    assert config["quantization_config"] == {"bits": 4}
    assert "num_key_value_heads" not in config


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_a_sliding_window_is_written_as_given(family: Family, tmp_path: Path) -> None:
    config = read_config(TinyModel(family=family, sliding_window=7).write(tmp_path))
    assert config["sliding_window"] == 7


def test_an_extra_tensor_is_stored(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert read_tensors(TinyModel(extra_tensors={name: (8,)}).write(tmp_path))[name].shape == (8,)


def test_a_truncated_file_cannot_be_read(tmp_path: Path) -> None:
    directory = TinyModel(weights="truncated", shards=2).write(tmp_path)
    with (
        pytest.raises(SafetensorError),
        safe_open(directory / "model-00002-of-00002.safetensors", "numpy"),
    ):
        pass
    with safe_open(directory / "model-00001-of-00002.safetensors", "numpy") as whole:
        assert whole.keys()


def test_loading_the_pickle_ends_the_process(tmp_path: Path) -> None:
    directory = TinyModel(weights="pickle").write(tmp_path)
    assert not list(directory.glob("*.safetensors"))
    with zipfile.ZipFile(directory / "pytorch_model.bin") as archive:
        content = archive.read("pytorch_model/data.pkl")
    with pytest.raises(SystemExit, match="unpickled"):
        pickle.loads(content)


@pytest.fixture
def tight_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("tight_umask")
def test_another_user_can_read_every_file(tmp_path: Path) -> None:
    directory = TinyModel(shards=2).write(tmp_path)
    TinyModel(weights="pickle").write(tmp_path)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == dict.fromkeys(modes, 0o644)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        pytest.param({"vocab_size": 100}, "below the tokenizer's", id="vocabulary too small"),
        pytest.param({"family": "mistral", "attention_bias": True}, "attention_bias", id="mistral"),
        pytest.param({"family": "qwen3", "mlp_bias": True}, "mlp_bias", id="qwen3"),
    ],
)
def test_a_shape_that_no_family_has_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TinyModel(rope=LINEAR, **options)


TOKENIZER = Tokenizer.from_str(tiny_tokenizer.tokenizer_json(adds_bos=False))


@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("family", "first"),
    [
        pytest.param("llama", [tiny_tokenizer.BOS_ID], id="llama puts one"),
        pytest.param("qwen2", [], id="qwen2 puts none"),
    ],
)
def test_bos_is_put_in_front_by_the_families_that_do(
    family: Family, first: list[int], tmp_path: Path
) -> None:
    directory = TinyModel(family=family).write(tmp_path)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    plain = TOKENIZER.encode("the capital").ids
    assert tokenizer.encode("the capital").ids == first + plain
    assert tokenizer.get_vocab_size() == read_config(directory)["vocab_size"]


def test_a_chat_is_rendered_with_special_tokens(tmp_path: Path) -> None:
    directory = TinyModel().write(tmp_path)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    template = ImmutableSandboxedEnvironment().from_string(settings["chat_template"])
    prompt = template.render(
        messages=[{"role": "user", "content": "hi"}],
        bos_token=settings["bos_token"],
        add_generation_prompt=True,
    )
    assert prompt == "<|bos|><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    special = [i for i in TOKENIZER.encode(prompt).ids if i < len(tiny_tokenizer.SPECIAL)]
    turn, end = tiny_tokenizer.TURN_ID, tiny_tokenizer.END_OF_TURN_ID
    assert special == [tiny_tokenizer.BOS_ID, turn, end, turn]
