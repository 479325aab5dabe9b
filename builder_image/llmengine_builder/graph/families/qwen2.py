"""Qwen2 and Qwen2.5: Llama's shape with biases on query, key and value."""

from __future__ import annotations

from llmengine.requests import BuildReason
from llmengine_builder.errors import UnsupportedError
from llmengine_builder.graph.config import Config
from llmengine_builder.graph.decoder import Decoder, read_decoder

ARCHITECTURE = "Qwen2ForCausalLM"
MODEL_TYPE = "qwen2"


def read(config: Config) -> Decoder:
    return read_decoder(
        config,
        model_type=MODEL_TYPE,
        kv_heads=32,
        head_dim=None,
        max_positions=32768,
        window=read_window(config),
        qkv_bias=True,
    )


def read_window(config: Config) -> int | None:
    """The sliding window that at least one layer has, in tokens.

    `sliding_window` counts only with `use_sliding_window`; the first `max_window_layers` layers
    have none, unless `layer_types` says which have one. Raises UnsupportedError for layers of
    any other type.
    """
    window = config.count_or_none("sliding_window", 4096)
    in_use = config.flag("use_sliding_window", False)
    first = config.count("max_window_layers", 28, least=0)
    types = config.texts("layer_types", ())
    if other := sorted(set(types) - {"full_attention", "sliding_attention"}):
        raise UnsupportedError(
            BuildReason.MODEL_UNSUPPORTED,
            f"config.json has layers of type {other[0]}; supported are full_attention and"
            " sliding_attention",
        )
    if not in_use:
        return None
    windowed = "sliding_attention" in types if types else config.count("num_hidden_layers") > first
    return window if windowed else None
