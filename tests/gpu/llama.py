"""Random Llamas of real shapes, as Hugging Face directories in bfloat16.

Only their speed and their arithmetic are of interest: tensors are cut from one block of numbers.
Embeddings are large beside what layers add, as in real models: else roundings would be amplified.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.models import smollm2

_BLOCK = (1 << 24) + 12345
# Llama-3.2-1B's and Llama-3.1-8B's config.json.
SHAPES: Mapping[str, Mapping[str, int | bool]] = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}
_VOCABULARY = 128256
_EMBEDDING = "model.embed_tokens.weight"


def write(shape: str, folder: Path, layers: int | None = None) -> Path:
    """The model of a shape, with SmolLM2's tokenizer, which knows fewer words; kept in `folder`."""
    target = folder / shape
    if target.exists():
        return target
    target.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": _VOCABULARY,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        **SHAPES[shape],
        **({"num_hidden_layers": layers} if layers else {}),
    }
    _write_weights(target / "model.safetensors", _tensors(config))
    (target / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (target / name).write_bytes((smollm2.directory() / name).read_bytes())
    return target


def read_bytes(model: Path) -> int:
    """Bytes of a model's weights that each step reads: of an embedding that is not the head only
    single rows are."""
    config = json.loads((model / "config.json").read_text())
    stored = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    table = 2 * int(config["vocab_size"]) * int(config["hidden_size"])
    return stored if config.get("tie_word_embeddings") else stored - table


def _tensors(config: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    hidden, wide = int(str(config["hidden_size"])), int(str(config["intermediate_size"]))
    head = int(str(config["head_dim"]))
    found: dict[str, tuple[int, ...]] = {
        _EMBEDDING: (_VOCABULARY, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (_VOCABULARY, hidden)
    for layer in range(int(str(config["num_hidden_layers"]))):
        name = f"model.layers.{layer}"
        found |= {
            f"{name}.input_layernorm.weight": (hidden,),
            f"{name}.post_attention_layernorm.weight": (hidden,),
            f"{name}.self_attn.q_proj.weight": (32 * head, hidden),
            f"{name}.self_attn.k_proj.weight": (8 * head, hidden),
            f"{name}.self_attn.v_proj.weight": (8 * head, hidden),
            f"{name}.self_attn.o_proj.weight": (hidden, 32 * head),
            f"{name}.mlp.gate_proj.weight": (wide, hidden),
            f"{name}.mlp.up_proj.weight": (wide, hidden),
            f"{name}.mlp.down_proj.weight": (hidden, wide),
        }
    return found


def _write_weights(path: Path, tensors: Mapping[str, tuple[int, ...]]) -> None:
    numbers = np.random.default_rng(0).standard_normal(_BLOCK, np.float32)
    blocks = {
        scale: ((numbers * np.float32(scale)).view(np.uint32) >> 16).astype(np.uint16)
        for scale in (0.002, 0.02, 1.0)
    }
    ones: NDArray[np.uint16] = np.full(1 << 16, 0x3F80, np.uint16)
    header, offset = {}, 0
    for name, shape in tensors.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = 0
        for name, shape in tensors.items():
            left = math.prod(shape)
            block = blocks[_scale(name)]
            if name.endswith("norm.weight"):
                file.write(ones[:left].tobytes())
                continue
            while left:
                count = min(left, _BLOCK - start)
                file.write(block[start : start + count].data)
                left -= count
                start = (start + count) % _BLOCK


def _scale(name: str) -> float:
    if name == _EMBEDDING:
        return 1.0
    return 0.002 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
