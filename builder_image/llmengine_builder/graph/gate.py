"""Nothing of a model is ignored: a tensor that the graph does not use is a model misunderstood."""

from __future__ import annotations

import re

from llmengine.requests import BuildReason
from llmengine_builder.errors import UnsupportedError
from llmengine_builder.graph.decoder import Decoder
from llmengine_builder.safetensors import Checkpoint

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
# Old checkpoints store what follows from config.json, and what transformers never reads back.
_DERIVED = re.compile(
    r"^model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)$"
)


def refuse_unused(checkpoint: Checkpoint, decoder: Decoder, consumed: frozenset[str]) -> None:
    """Raise UnsupportedError, by name, for the first tensor that is neither used nor derived."""
    for name in sorted(set(checkpoint.tensors) - consumed):
        if _DERIVED.match(name):
            continue
        if name == HEAD and decoder.tied:
            _compare_head(checkpoint)
            continue
        raise UnsupportedError(
            BuildReason.MODEL_UNSUPPORTED,
            f"tensor {name} of {checkpoint.tensors[name].file} has no place in a"
            f" {decoder.model_type} model as this release computes it: it would be ignored",
        )


def _compare_head(checkpoint: Checkpoint) -> None:
    head, embedding = checkpoint.tensors[HEAD], checkpoint.tensors[EMBEDDING]
    same = (head.dtype, head.shape) == (embedding.dtype, embedding.shape)
    if not same or checkpoint.read(HEAD) != checkpoint.read(EMBEDDING):
        raise UnsupportedError(
            BuildReason.MODEL_UNSUPPORTED,
            f"config.json has tie_word_embeddings = true, but {HEAD} differs from {EMBEDDING}:"
            " correct config.json, or remove the tensor that was not trained",
        )
