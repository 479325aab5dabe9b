"""Qwen3, dense: Llama's shape with a norm on each head of query and key."""

from __future__ import annotations

from llmengine_builder.graph.config import Config
from llmengine_builder.graph.decoder import Decoder, read_decoder
from llmengine_builder.graph.families.qwen2 import read_window

ARCHITECTURE = "Qwen3ForCausalLM"
MODEL_TYPE = "qwen3"


def read(config: Config) -> Decoder:
    """The length of a head is 128 where config.json has no `head_dim`, whatever hidden_size is."""
    attention_bias = config.flag("attention_bias", False)
    return read_decoder(
        config,
        model_type=MODEL_TYPE,
        kv_heads=32,
        head_dim=128,
        max_positions=32768,
        window=read_window(config),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        qk_norm=True,
    )
