"""Tiny random language models as Hugging Face directories: the same description, the same bytes.

Every weight that a graph could forget or misplace is large enough to move the logits: norms are
not ones, biases are not zeros, attention is neither flat nor a single spike.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tests.models import safetensors_file, tiny_tokenizer
from tests.models.safetensors_file import Dtype, Tensor

Family = Literal["llama", "mistral", "qwen2", "qwen3"]
ARCHITECTURES: Mapping[Family, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

# Rope settings for `TinyModel.rope`, without theta. Their original length is 64 positions.
LINEAR: Mapping[str, Any] = {"rope_type": "linear", "factor": 4.0}
LLAMA3: Mapping[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN: Mapping[str, Any] = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
DYNAMIC: Mapping[str, Any] = {"rope_type": "dynamic", "factor": 4.0}


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    """What a tiny model is like; `write` turns it into a directory.

    `head_dim` None: hidden_size / heads, and 24 for Qwen3, whose head_dim is not that quotient.
    `rope` holds the settings of a scaled rope, without theta (`LINEAR`, `LLAMA3`, ...), or is
    empty. `rope_spelling`: `rope_scaling` beside `rope_theta` (transformers 4),
    `rope_parameters` (transformers 5), both, or `type`: rope_scaling with the old key `type`.
    `sliding_window`, `use_sliding_window` (Qwen) and `max_window_layers` (Qwen) are written as
    given. `config` is merged into config.json last, `omit` names keys left out of it.
    `extra_tensors` (name -> shape) are stored too, where the family has no such tensor.
    `weights`: `pickle` writes pytorch_model.bin instead, which ends the process that loads it;
    `truncated` cuts the last file in the middle of its last tensor.
    """

    family: Family = "llama"
    seed: int = 0
    dtype: Dtype = "F32"
    tied: bool = False
    vocab_size: int = tiny_tokenizer.VOCABULARY_SIZE
    hidden_size: int = 64
    intermediate_size: int = 96
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 256
    rope_theta: float = 10000.0
    rope: Mapping[str, Any] = field(default_factory=dict)
    rope_spelling: Literal["rope_scaling", "rope_parameters", "both", "type"] = "both"
    sliding_window: int | None = None
    use_sliding_window: bool = False
    max_window_layers: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    omit: tuple[str, ...] = ()
    shards: int = 1
    unaligned: bool = False
    extra_tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    weights: Literal["safetensors", "pickle", "truncated"] = "safetensors"

    def __post_init__(self) -> None:
        if self.vocab_size < tiny_tokenizer.VOCABULARY_SIZE:
            raise ValueError(
                f"vocab_size {self.vocab_size} is below the tokenizer's "
                f"{tiny_tokenizer.VOCABULARY_SIZE}"
            )
        if self.family != "llama" and self.mlp_bias:
            raise ValueError(f"mlp_bias exists for llama only, not for {self.family}")
        if self.family not in ("llama", "qwen3") and self.attention_bias:
            raise ValueError(f"attention_bias exists for llama and qwen3, not for {self.family}")

    @property
    def width(self) -> int:
        """The length of one head."""
        if self.head_dim is not None:
            return self.head_dim
        return 24 if self.family == "qwen3" else self.hidden_size // self.heads

    def describe(self) -> dict[str, Any]:
        """JSON from which `TinyModel(**description)` makes an equal model's bytes again."""
        return asdict(self)

    def config_json(self) -> dict[str, Any]:
        """The content of config.json."""
        config: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.family]],
            "attention_dropout": 0.0,
            "bos_token_id": tiny_tokenizer.BOS_ID,
            "eos_token_id": tiny_tokenizer.EOS_ID,
            "head_dim": self.width,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": self.family,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tied,
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }
        config |= self._rope_config() | self._family_config() | dict(self.config)
        return {key: value for key, value in config.items() if key not in self.omit}

    def tensors(self) -> list[Tensor]:
        """The model's tensors in the order of the network, `extra_tensors` last."""
        hidden, width, wide = self.hidden_size, self.width, self.intermediate_size
        found = [self._matrix("model.embed_tokens.weight", self.vocab_size, hidden, gain=0.3)]
        for i in range(self.layers):
            layer = f"model.layers.{i}"
            found += [
                self._norm(f"{layer}.input_layernorm.weight", hidden),
                *self._linear(f"{layer}.self_attn.q_proj", self.heads * width, hidden, gain=1.6),
                *self._linear(f"{layer}.self_attn.k_proj", self.kv_heads * width, hidden, gain=1.6),
                *self._linear(f"{layer}.self_attn.v_proj", self.kv_heads * width, hidden),
                *self._linear(f"{layer}.self_attn.o_proj", hidden, self.heads * width),
            ]
            if self.family == "qwen3":
                found += [
                    self._norm(f"{layer}.self_attn.q_norm.weight", width),
                    self._norm(f"{layer}.self_attn.k_norm.weight", width),
                ]
            found += [
                self._norm(f"{layer}.post_attention_layernorm.weight", hidden),
                *self._linear(f"{layer}.mlp.gate_proj", wide, hidden),
                *self._linear(f"{layer}.mlp.up_proj", wide, hidden),
                *self._linear(f"{layer}.mlp.down_proj", hidden, wide),
            ]
        found.append(self._norm("model.norm.weight", hidden))
        if not self.tied:
            found += self._linear("lm_head", self.vocab_size, hidden, gain=3.0)
        found += [
            Tensor(name, tuple(shape), partial(self._uniform, name, tuple(shape), 1.0))
            for name, shape in self.extra_tensors.items()
        ]
        return found

    def digest(self) -> str:
        """SHA-256 over names, shapes and stored bytes of all tensors, however they are sharded."""
        digest = hashlib.sha256()
        for tensor in self.tensors():
            digest.update(f"{tensor.name} {tensor.shape} {self.dtype}\n".encode())
            digest.update(safetensors_file.encode(tensor.values(), self.dtype))
        return digest.hexdigest()

    def write(self, directory: Path) -> Path:
        """Write the model into `directory`, made if need be, and return it."""
        directory.mkdir(parents=True, exist_ok=True)
        adds_bos = self.family in ("llama", "mistral")
        documents: dict[str, Any] = {
            "config.json": self.config_json(),
            "generation_config.json": {
                "bos_token_id": tiny_tokenizer.BOS_ID,
                "eos_token_id": [tiny_tokenizer.EOS_ID, tiny_tokenizer.END_OF_TURN_ID],
                "pad_token_id": tiny_tokenizer.PAD_ID,
            },
            "tokenizer_config.json": tiny_tokenizer.tokenizer_config(
                adds_bos=adds_bos, model_max_length=self.max_position_embeddings
            ),
        }
        texts = {name: json.dumps(value, indent=2) for name, value in documents.items()}
        texts["tokenizer.json"] = tiny_tokenizer.tokenizer_json(adds_bos=adds_bos)
        for name, text in texts.items():
            (directory / name).write_text(text + "\n")
            (directory / name).chmod(0o644)
        if self.weights == "pickle":
            _write_pickle(directory / "pytorch_model.bin")
            return directory
        paths = safetensors_file.write_shards(
            directory, self.tensors(), self.dtype, self.shards, unaligned=self.unaligned
        )
        if self.weights == "truncated":
            with paths[-1].open("r+b") as file:
                file.truncate(paths[-1].stat().st_size - 10)
        return directory

    def _rope_config(self) -> dict[str, Any]:
        parameters = {"rope_type": "default", **self.rope}
        scaling: dict[str, Any] | None = dict(self.rope) or None
        new = {
            "dtype": safetensors_file.CONFIG_DTYPES[self.dtype],
            "rope_parameters": {"rope_theta": self.rope_theta, **parameters},
        }
        old: dict[str, Any] = {
            "torch_dtype": safetensors_file.CONFIG_DTYPES[self.dtype],
            "rope_theta": self.rope_theta,
        }
        if self.rope_spelling == "type" and scaling is not None:
            scaling = {"type": scaling.pop("rope_type"), **scaling}
        if self.rope_spelling == "rope_parameters":
            return new
        old |= {"rope_scaling": scaling}
        return new | old if self.rope_spelling == "both" else old

    def _family_config(self) -> dict[str, Any]:
        if self.family == "llama":
            return {
                "attention_bias": self.attention_bias,
                "mlp_bias": self.mlp_bias,
                "pretraining_tp": 1,
            }
        if self.family == "mistral":
            return {"sliding_window": self.sliding_window}
        window = {
            "sliding_window": self.sliding_window,
            "use_sliding_window": self.use_sliding_window,
            "max_window_layers": self.max_window_layers,
        }
        if self.family == "qwen3":
            window["attention_bias"] = self.attention_bias
        return window

    def _has_bias(self, module: str) -> bool:
        if self.family == "qwen2":
            return module in ("q_proj", "k_proj", "v_proj")
        if module in ("q_proj", "k_proj", "v_proj", "o_proj"):
            return self.attention_bias
        return self.mlp_bias and module != "lm_head"

    def _linear(self, name: str, rows: int, columns: int, gain: float = 1.0) -> list[Tensor]:
        matrix = self._matrix(f"{name}.weight", rows, columns, gain / columns**0.5)
        if not self._has_bias(name.rsplit(".", 1)[-1]):
            return [matrix]
        bias = f"{name}.bias"
        return [matrix, Tensor(bias, (rows,), partial(self._uniform, bias, (rows,), 0.5))]

    def _matrix(self, name: str, rows: int, columns: int, gain: float) -> Tensor:
        return Tensor(name, (rows, columns), partial(self._uniform, name, (rows, columns), gain))

    def _norm(self, name: str, length: int) -> Tensor:
        return Tensor(name, (length,), lambda: 1 + self._uniform(name, (length,), 0.3))

    def _uniform(self, name: str, shape: tuple[int, ...], deviation: float) -> NDArray[np.float32]:
        # Each tensor has a stream of its own, so that an option changes no other tensor; raw
        # PCG64 words are the part of numpy.random that is promised never to change.
        seed = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        words = np.random.PCG64(int.from_bytes(seed, "big")).random_raw(int(np.prod(shape)))
        unit = (words >> np.uint64(11)) * 2.0**-53 - 0.5
        values: NDArray[np.float32] = (unit * (12**0.5 * deviation)).astype(np.float32)
        return values.reshape(shape)


class _Trap:
    """Unpickling it ends the process: nothing of ours may load a pickle."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return sys.exit, ("pytorch_model.bin was unpickled",)


def _write_pickle(path: Path) -> None:
    entry = zipfile.ZipInfo("pytorch_model/data.pkl", date_time=(1980, 1, 1, 0, 0, 0))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry, pickle.dumps(_Trap(), protocol=2))
    path.chmod(0o644)
