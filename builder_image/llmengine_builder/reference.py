"""The model computed a second time, from its own files, in numpy and float32.

Knows nothing of the graph: it reads config.json itself and shares only the reader of safetensors
headers, so that one misunderstanding cannot agree with itself. At most one piece of one tensor is
in memory at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmengine_builder.safetensors import Checkpoint, read_checkpoint

Array = NDArray[np.float32]
# Weights are multiplied in pieces of about this many bytes, so that no model needs more memory.
_PIECE_BYTES = 64 * 1024 * 1024


class Reference:
    """A model of the families that `graph` supports, whose gate has passed it.

    Raises KeyError for a tensor or a key of config.json that is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._weights = _Weights(read_checkpoint(folder))
        config = json.loads((folder / "config.json").read_bytes())
        self._config = config
        self._heads = int(config["num_attention_heads"])
        self._head_dim = _head_dim(config)
        self._eps = np.float32(config.get("rms_norm_eps", 1e-6))
        self.frequencies, self.amplitude = _rope(config, self._head_dim)

    def logits(
        self, sequences: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]
    ) -> list[Array]:
        """Logits after the positions `wanted[i]` of sequence i: `[len(wanted[i]), vocabulary]`.

        Every sequence is computed as given, each token seeing those before it.
        """
        lengths = [len(tokens) for tokens in sequences]
        x = self._weights.rows("model.embed_tokens.weight", np.concatenate(sequences))
        for layer in range(int(self._config["num_hidden_layers"])):
            x = self._layer(f"model.layers.{layer}", x, lengths)
        starts = np.cumsum([0, *lengths[:-1]])
        rows = [start + np.asarray(at) for start, at in zip(starts, wanted, strict=True)]
        x = self._norm("model.norm", x[np.concatenate(rows)])
        tied = self._config.get("tie_word_embeddings", False)
        logits = self._project("model.embed_tokens" if tied else "lm_head", x)
        return np.split(logits, np.cumsum([len(at) for at in wanted])[:-1])

    def _layer(self, name: str, x: Array, lengths: Sequence[int]) -> Array:
        y = self._norm(f"{name}.input_layernorm", x)
        query, key, value = (
            self._project(f"{name}.self_attn.{part}_proj", y).reshape(len(y), -1, self._head_dim)
            for part in "qkv"
        )
        if f"{name}.self_attn.q_norm.weight" in self._weights:
            query = self._norm(f"{name}.self_attn.q_norm", query)
            key = self._norm(f"{name}.self_attn.k_norm", key)
        mixed = np.empty_like(query)
        start = 0
        for length in lengths:
            own = slice(start, start + length)
            mixed[own] = self._attend(query[own], key[own], value[own])
            start += length
        x = x + self._project(f"{name}.self_attn.o_proj", mixed.reshape(len(x), -1))
        y = self._norm(f"{name}.post_attention_layernorm", x)
        gate = self._project(f"{name}.mlp.gate_proj", y)
        wide = gate / (1 + np.exp(-gate)) * self._project(f"{name}.mlp.up_proj", y)
        return x + self._project(f"{name}.mlp.down_proj", wide)

    def _attend(self, query: Array, key: Array, value: Array) -> Array:
        """One whole sequence, `[tokens, heads, head_dim]`; later tokens are cut off, not masked."""
        angles = np.arange(len(query), dtype=np.float32)[:, None] * self.frequencies
        cosine, sine = np.cos(angles) * self.amplitude, np.sin(angles) * self.amplitude
        query, key = _turn(query, cosine, sine), _turn(key, cosine, sine)
        mixed = np.empty_like(query)
        share = self._heads // key.shape[1]
        later = np.triu(np.ones((len(query), len(query)), bool), 1)
        for head in range(self._heads):
            scores = query[:, head] @ key[:, head // share].T / np.float32(self._head_dim**0.5)
            scores[later] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            mixed[:, head] = weights @ value[:, head // share]
        return mixed

    def _norm(self, name: str, x: Array) -> Array:
        root = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + self._eps)
        normal: Array = x / root * self._weights.whole(f"{name}.weight")
        return normal

    def _project(self, name: str, x: Array) -> Array:
        pieces = [x @ piece.T for piece in self._weights.pieces(f"{name}.weight")]
        result: Array = np.concatenate(pieces, axis=1)
        if f"{name}.bias" in self._weights:
            result += self._weights.whole(f"{name}.bias")
        return result


class _Weights:
    """Tensors of a checkpoint as float32, read when asked for and not kept."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def __contains__(self, name: str) -> bool:
        return name in self._checkpoint.tensors

    def whole(self, name: str) -> Array:
        return np.concatenate(list(self.pieces(name)))

    def rows(self, name: str, wanted: NDArray[np.int64]) -> Array:
        """Some rows of a matrix, without reading the others."""
        return _float32(self._mapped(name)[wanted])

    def pieces(self, name: str) -> Iterator[Array]:
        """The tensor from its first row to its last, some rows at a time."""
        stored = self._mapped(name)
        step = max(1, _PIECE_BYTES * len(stored) // max(1, stored.size * 4))
        for start in range(0, len(stored), step):
            # A read, and not a look through the map: mapped pages would count as memory.
            yield _float32(self._read(name, stored, start, step))

    def _mapped(self, name: str) -> NDArray[Any]:
        tensor = self._checkpoint.tensors[name]
        return np.memmap(
            self._checkpoint.folder / tensor.file,
            dtype={"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[tensor.dtype],
            mode="r",
            offset=tensor.offset,
            shape=tensor.shape,
        )

    def _read(self, name: str, stored: NDArray[Any], start: int, count: int) -> NDArray[Any]:
        tensor = self._checkpoint.tensors[name]
        shape = (min(count, len(stored) - start), *stored.shape[1:])
        with (self._checkpoint.folder / tensor.file).open("rb") as file:
            row = tensor.length // len(stored)
            file.seek(tensor.offset + start * row)
            data = file.read(shape[0] * row)
        return np.frombuffer(data, stored.dtype).reshape(shape)


def _float32(stored: NDArray[Any]) -> Array:
    if stored.dtype == np.uint16:
        # bfloat16 is the upper half of float32.
        return np.left_shift(stored, 16, dtype=np.uint32).view(np.float32)
    return np.asarray(stored, np.float32)


def _turn(x: Array, cosine: Array, sine: Array) -> Array:
    """Rotate the pairs (i, i + half) of every head: `[tokens, heads, head_dim]`."""
    cosine, sine = cosine[:, None], sine[:, None]
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1, dtype=np.float32
    )


def _head_dim(config: dict[str, Any]) -> int:
    absent = 128 if config["architectures"] == ["Qwen3ForCausalLM"] else None
    stated = config.get("head_dim", absent)
    return int(stated or config["hidden_size"] // config["num_attention_heads"])


def _rope(config: dict[str, Any], head_dim: int) -> tuple[Array, np.float32]:
    """Radians a position for each pair, and the factor on cosine and sine.

    The formulas are those of the papers: linear (Chen et al., 2306.15595), yarn (Peng et al.,
    2309.00071), llama3 (Llama 3.1's reference code); dynamic starts as the plain one.
    """
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    pairs = np.arange(head_dim // 2)
    # float32 at each step: the model was trained with these roundings.
    power = (2 * pairs).astype(np.float32) / np.float32(head_dim)
    plain = np.float32(1) / (theta ** power.astype(np.float64)).astype(np.float32)
    factor = np.float32(rope.get("factor") or 1)
    longest = config.get("max_position_embeddings", 0)
    original = rope.get("original_max_position_embeddings") or config.get(
        "original_max_position_embeddings", longest
    )
    if kind == "linear":
        return plain / factor, np.float32(1)
    if kind == "llama3":
        turns = original * plain / np.float32(2 * math.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        keep = np.clip((turns - low) / (high - low), 0, 1).astype(np.float32)
        return ((1 - keep) * (plain / factor) + keep * plain).astype(np.float32), np.float32(1)
    if kind == "yarn":
        return _yarn(rope, plain, theta, original, longest)
    return plain, np.float32(1)


def _yarn(
    rope: dict[str, Any], plain: Array, theta: float, original: int, longest: int
) -> tuple[Array, np.float32]:
    factor = rope.get("factor") or longest / original
    head_dim = 2 * len(plain)
    fast, slow = rope.get("beta_fast") or 32, rope.get("beta_slow") or 1
    bounds = [
        head_dim / 2 * math.log(original / (2 * math.pi * turns)) / math.log(theta)
        for turns in (fast, slow)
    ]
    if rope.get("truncate", True):
        bounds = [math.floor(bounds[0]), math.ceil(bounds[1])]
    first, last = max(bounds[0], 0), min(bounds[1], head_dim - 1)
    last += 0.001 if first == last else 0
    stretch = np.clip((np.arange(len(plain)) - first) / (last - first), 0, 1)
    frequencies = plain / factor * stretch + plain * (1 - stretch)

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    amplitude = rope.get("attention_factor")
    if amplitude is None:
        mscale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
        amplitude = scale(mscale) / scale(all_dim) if mscale and all_dim else scale(1.0)
    return frequencies.astype(np.float32), np.float32(amplitude)
