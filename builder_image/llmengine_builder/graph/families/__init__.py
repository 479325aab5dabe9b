"""The model families that this release can build, by the class that config.json names.

A family is a module: what is its own, over the blocks that all share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llmengine.requests import BuildReason
from llmengine_builder.errors import UnsupportedError
from llmengine_builder.graph.config import Config
from llmengine_builder.graph.decoder import Decoder
from llmengine_builder.graph.families import llama, mistral, qwen2, qwen3

_READERS: Mapping[str, Callable[[Config], Decoder]] = {
    family.ARCHITECTURE: family.read for family in (llama, mistral, qwen2, qwen3)
}
_MODEL_TYPES: Mapping[str, str] = {
    family.ARCHITECTURE: family.MODEL_TYPE for family in (llama, mistral, qwen2, qwen3)
}


def read_decoder_of(config: Config) -> Decoder:
    """Find the family that config.json names and read the model with it.

    Raises UnsupportedError for any other family, for custom code, quantized weights and every
    key that may change the model and that its family does not read; BadInputError for values
    that cannot be.
    """
    architecture = _architecture(config)
    model_type = config.raw("model_type", _MODEL_TYPES[architecture])
    if model_type != _MODEL_TYPES[architecture]:
        raise UnsupportedError(
            BuildReason.MODEL_UNSUPPORTED,
            f"config.json names {architecture} but has model_type {model_type!r}; supported is"
            f" {_MODEL_TYPES[architecture]}",
        )
    if (code := config.mapping("auto_map")) is not None:
        raise UnsupportedError(
            BuildReason.MODEL_UNSUPPORTED,
            f"config.json has an auto_map ({', '.join(sorted(code))}): the model brings code of"
            " its own, which is never run; take a checkpoint without it",
        )
    if (quantization := config.mapping("quantization_config")) is not None:
        method = quantization.get("quant_method", "unknown")
        raise UnsupportedError(
            BuildReason.MODEL_UNSUPPORTED,
            f"the model's weights are quantized ({method}): give the checkpoint before"
            " quantization",
        )
    decoder = _READERS[architecture](config)
    config.refuse_unread()
    return decoder


def _architecture(config: Config) -> str:
    known = ", ".join(_READERS)
    found: Any = config.raw("architectures", None)
    if not isinstance(found, list) or len(found) != 1:
        raise UnsupportedError(
            BuildReason.MODEL_UNSUPPORTED,
            f"config.json must name one architecture (it has {found!r}); supported are {known}",
        )
    if found[0] not in _READERS:
        raise UnsupportedError(
            BuildReason.MODEL_UNSUPPORTED,
            f"the model's architecture is {found[0]}; supported are {known}",
        )
    return str(found[0])
