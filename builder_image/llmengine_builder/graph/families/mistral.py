"""Mistral 7B and its kin: Llama's shape with a sliding window that its later models turn off."""

from __future__ import annotations

from llmengine_builder.graph.config import Config
from llmengine_builder.graph.decoder import Decoder, read_decoder

ARCHITECTURE = "MistralForCausalLM"
MODEL_TYPE = "mistral"


def read(config: Config) -> Decoder:
    """A config.json without `sliding_window` means 4096; null means none."""
    return read_decoder(
        config,
        model_type=MODEL_TYPE,
        kv_heads=8,
        head_dim=None,
        max_positions=4096 * 32,
        window=config.count_or_none("sliding_window", 4096),
    )
