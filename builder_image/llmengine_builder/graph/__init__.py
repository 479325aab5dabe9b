"""From a model's folder to its graph: read, refuse what is not understood, write ONNX.

A graph is architecture-independent and holds no weights; the same folder gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmengine.api.v1alpha1 import DType
from llmengine_builder.graph.config import Config
from llmengine_builder.graph.decoder import Decoder
from llmengine_builder.graph.families import read_decoder_of
from llmengine_builder.graph.network import CacheForm, write_graph
from llmengine_builder.safetensors import Checkpoint, read_checkpoint

__all__ = ["CacheForm", "Decoder", "Model", "read_model"]


@dataclass(frozen=True)
class Model:
    """A model that was understood, with its tensors still on disk."""

    decoder: Decoder
    checkpoint: Checkpoint

    def graph(self, dtype: DType, cache: CacheForm) -> bytes:
        """The model as ONNX, for engines of `dtype`; see `graph.network` for its contract."""
        return write_graph(self.checkpoint, self.decoder, dtype, cache)


def read_model(folder: Path) -> Model:
    """Read config.json and the safetensors headers of `folder`, and nothing else.

    Raises BadInputError and UnsupportedError.
    """
    return Model(decoder=read_decoder_of(Config.load(folder)), checkpoint=read_checkpoint(folder))
