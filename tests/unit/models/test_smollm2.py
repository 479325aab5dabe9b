"""SmolLM2 out of the GGUF is the published model: its rows, its tokens, its answers."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray
from safetensors import safe_open
from tokenizers import Tokenizer

from tests.models import golden, smollm2

CONVERSATIONS = golden.load_smollm2().conversations
Array = NDArray[np.float32]


def rotate_neighbours(rows: Array, position: int, frequencies: Array) -> Array:
    """llama.cpp's rotation of one head, [head_dim]: the pairs are (2i, 2i+1)."""
    pairs = rows.reshape(-1, 2).view(np.complex64)[:, 0]
    turned = (pairs * np.exp(1j * position * frequencies)).astype(np.complex64)
    rotated: Array = turned.view(np.float32)
    return rotated


def rotate_halves(rows: Array, position: int, frequencies: Array) -> Array:
    """Hugging Face's rotation of one head, [head_dim]: the pairs are (i, i + head_dim / 2)."""
    low, high = np.split(rows, 2)
    cos, sin = np.cos(position * frequencies), np.sin(position * frequencies)
    rotated: Array = np.concatenate([low * cos - high * sin, high * cos + low * sin])
    return rotated


def test_unpaired_rows_score_under_halves_as_paired_rows_under_neighbours() -> None:
    heads, width, columns = 3, 8, 5
    random = np.random.default_rng(0)
    q, k = random.standard_normal((2, heads * width, columns), dtype=np.float32)
    x, y = random.standard_normal((2, columns), dtype=np.float32)
    frequencies = (100.0 ** -np.linspace(0, 1, width // 2)).astype(np.float32)

    def scores(rotate: Any, q: Array, k: Array) -> list[float]:
        ends = zip((q @ x).reshape(heads, width), (k @ y).reshape(heads, width), strict=True)
        return [float(rotate(a, 7, frequencies) @ rotate(b, 2, frequencies)) for a, b in ends]

    expected = scores(rotate_neighbours, q, k)
    unpaired = scores(rotate_halves, smollm2.unpair(q, heads), smollm2.unpair(k, heads))
    np.testing.assert_allclose(unpaired, expected, rtol=1e-4)
    # Rows left in llama.cpp's order fail: the rotation does tell the two orders apart.
    assert not np.allclose(scores(rotate_halves, q, k), expected, rtol=0.1)


def test_a_failed_conversion_leaves_nothing_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    not_a_wheel = tmp_path / "broken.whl"
    not_a_wheel.write_bytes(b"")
    with pytest.raises(Exception, match="zip"):
        smollm2.convert(not_a_wheel, target)
    assert list(tmp_path.iterdir()) == [not_a_wheel]


@pytest.fixture(scope="module")
def directory() -> Path:
    return smollm2.directory()


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.mark.model
def test_the_weights_are_those_that_the_goldens_were_recorded_with(directory: Path) -> None:
    with (directory / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert digest == golden.load_smollm2().weights_digest, golden.REMEDY


@pytest.mark.model
def test_another_user_can_read_the_model(directory: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == dict.fromkeys(modes, 0o644)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755
    assert set(modes) >= {"config.json", "generation_config.json", "tokenizer_config.json"}


@pytest.mark.model
def test_the_config_gives_theta_in_both_spellings(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100000
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] is True
    with safe_open(directory / "model.safetensors", "numpy") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 (not a mapping)
        assert file.get_slice("model.embed_tokens.weight").get_dtype() == "BF16"


# The ids are llama.cpp's for the same GGUF, special tokens parsed.
@pytest.mark.model
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        pytest.param(
            "Year 2026: 123 ½ ٤٢",
            [19840, 216, 34, 32, 34, 38, 42, 216, 33, 34, 35, 216, 16738, 216, 164, 114, 164, 112],
            id="every digit of every script is a token of its own",
        ),
        pytest.param(
            "don't  I'VE\n\n\t x ",
            [12420, 982, 216, 339, 23, 18525, 14436, 1792, 216],
            id="contractions and white space",
        ),
        pytest.param(
            "<|im_start|>user\nhi <|im_end|>\n<repo_name>",
            [1, 4093, 198, 6004, 216, 2, 198, 3],
            id="special tokens",
        ),
        pytest.param(
            "東京 🙂 e\u0301\u00a0y",
            [30679, 126, 16736, 122, 47526, 297, 151, 219, 15442, 105],
            id="other scripts, without normalisation",
        ),
        pytest.param(
            "  two leading, two trailing  ",
            [216, 827, 2899, 28, 827, 35079, 256],
            id="spaces at both ends",
        ),
    ],
)
def test_text_has_the_tokens_that_llama_cpp_gives_it(
    text: str, ids: list[int], tokenizer: Tokenizer
) -> None:
    assert tokenizer.encode(text).ids == ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.model
@pytest.mark.parametrize("chat", CONVERSATIONS, ids=lambda chat: chat.name)
def test_a_chat_becomes_the_recorded_prompt(
    chat: golden.Conversation, directory: Path, tokenizer: Tokenizer
) -> None:
    settings = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = ImmutableSandboxedEnvironment().from_string(settings["chat_template"])
    assert template.render(messages=chat.messages, add_generation_prompt=True) == chat.prompt
    assert tokenizer.encode(chat.prompt).ids == chat.prompt_ids
    assert tokenizer.decode(chat.output_ids) == chat.text


class Forward:
    """A Llama in numpy, float32, all positions at once: enough to check the converted weights."""

    def __init__(self, directory: Path) -> None:
        self.config = json.loads((directory / "config.json").read_text())
        with safe_open(directory / "model.safetensors", "numpy") as file:
            self.weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def weight(self, name: str) -> Array:
        weight: Array = self.weights[f"model.{name}.weight"].astype(np.float32)
        return weight

    def norm(self, x: Array, name: str) -> Array:
        square = (x * x).mean(-1, keepdims=True)
        normed: Array = x / np.sqrt(square + np.float32(self.config["rms_norm_eps"]))
        return normed * self.weight(name)

    def attend(self, x: Array, layer: str) -> Array:
        """[length, hidden] -> the same."""
        length, heads = len(x), self.config["num_attention_heads"]
        width = self.config["hidden_size"] // heads
        q, k, v = (
            (x @ self.weight(f"{layer}.self_attn.{name}_proj").T)
            .reshape(length, -1, width)
            .swapaxes(0, 1)
            for name in "qkv"
        )
        powers = np.arange(0, width, 2) / width
        angles = np.arange(length)[:, None] / self.config["rope_theta"] ** powers
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

        def rotate(rows: Array) -> Array:
            low, high = np.split(rows, 2, axis=-1)
            rotated: Array = np.concatenate([low * cos - high * sin, high * cos + low * sin], -1)
            return rotated

        group = heads // self.config["num_key_value_heads"]
        keys, values = np.repeat(rotate(k), group, axis=0), np.repeat(v, group, axis=0)
        scores = rotate(q) @ keys.swapaxes(1, 2) / np.float32(width**0.5)
        scores = np.where(np.tri(length, dtype=bool), scores, np.float32(-np.inf))
        chances = np.exp(scores - scores.max(-1, keepdims=True))
        chances /= chances.sum(-1, keepdims=True)
        mixed: Array = (chances @ values).swapaxes(0, 1).reshape(length, -1)
        return mixed @ self.weight(f"{layer}.self_attn.o_proj").T

    def logits(self, token_ids: list[int], start: int) -> Array:
        """[positions from `start`, vocabulary]."""
        x = self.weight("embed_tokens")[token_ids]
        for i in range(self.config["num_hidden_layers"]):
            layer = f"layers.{i}"
            x = x + self.attend(self.norm(x, f"{layer}.input_layernorm"), layer)
            y = self.norm(x, f"{layer}.post_attention_layernorm")
            gate = y @ self.weight(f"{layer}.mlp.gate_proj").T
            wide = gate / (1 + np.exp(-gate)) * (y @ self.weight(f"{layer}.mlp.up_proj").T)
            x = x + wide @ self.weight(f"{layer}.mlp.down_proj").T
        return self.norm(x[start:], "norm") @ self.weight("embed_tokens").T


@pytest.fixture(scope="module")
def forward(directory: Path) -> Iterator[Forward]:
    yield Forward(directory)


@pytest.mark.model
@pytest.mark.parametrize("chat", CONVERSATIONS, ids=lambda chat: chat.name)
def test_a_plain_forward_gives_the_recorded_answer(
    chat: golden.Conversation, forward: Forward
) -> None:
    first = len(chat.prompt_ids) - 1
    logits = forward.logits(chat.prompt_ids + chat.output_ids, start=first)
    assert logits[:-1].argmax(axis=1).tolist() == chat.output_ids
    for sample in chat.logits:
        found = logits[sample.position - first][sample.ids]
        error = np.linalg.norm(found - sample.values) / np.linalg.norm(sample.values)
        assert error < 1e-5


@pytest.mark.model
def test_two_at_once_convert_once(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "llmengine" / "models"
    cache.mkdir(parents=True)
    (cache / smollm2.WHEEL).symlink_to(directory.parent / smollm2.WHEEL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    conversions: list[Path] = []
    convert = smollm2.convert

    def counted(wheel: Path, target: Path, dtype: Any) -> None:
        conversions.append(target)
        convert(wheel, target, dtype)

    monkeypatch.setattr(smollm2, "convert", counted)
    with ThreadPoolExecutor(2) as pool:
        made = [future.result() for future in [pool.submit(smollm2.directory) for _ in "ab"]]
    assert made[0] == made[1]
    assert conversions == [made[0]]
    for path in directory.iterdir():
        assert (made[0] / path.name).read_bytes() == path.read_bytes()
