"""Llama 1 to 3.3 and everything of its shape: SmolLM2, TinyLlama, Yi, ..."""

from __future__ import annotations

from llmengine_builder.graph.config import Config
from llmengine_builder.graph.decoder import Decoder, read_decoder

ARCHITECTURE = "LlamaForCausalLM"
MODEL_TYPE = "llama"


def read(config: Config) -> Decoder:
    """Biases are options; `attention_bias` covers all four projections."""
    # How a training run split its matrices; the product is the same.
    config.raw("pretraining_tp", 1)
    attention_bias = config.flag("attention_bias", False)
    return read_decoder(
        config,
        model_type=MODEL_TYPE,
        kv_heads=None,
        head_dim=None,
        max_positions=2048,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=config.flag("mlp_bias", False),
    )
