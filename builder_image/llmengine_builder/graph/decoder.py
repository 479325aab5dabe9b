"""What all families here share: a decoder of equal layers, as the blocks can write it."""

from __future__ import annotations

from dataclasses import dataclass

from llmengine.requests import BuildReason
from llmengine_builder.errors import BadInputError, UnsupportedError
from llmengine_builder.graph.config import Config
from llmengine_builder.graph.rope import Rope, read_rope


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """The numbers and switches of a model; tensors are named as transformers names them.

    `window`: a token sees at most this many positions, itself included; None: all.
    `tied`: the head is the embedding.
    """

    model_type: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    max_positions: int
    rope: Rope
    tied: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    window: int | None = None

    @property
    def projections(self) -> tuple[tuple[str, int], ...]:
        """What a layer's input is projected to: a letter, and how many heads."""
        return (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads))

    def check_length(self, max_sequence_length: int) -> None:
        """Refuse sequences that are longer than the model was made for.

        Raises BadInputError over `max_position_embeddings`, and UnsupportedError where the model
        would start to compute differently: beyond its sliding window, or its dynamic rope.
        """
        asked = f"spec.engine.maxSequenceLength is {max_sequence_length}"
        if max_sequence_length > self.max_positions:
            raise BadInputError(
                BuildReason.SEQUENCE_TOO_LONG,
                f"{asked}, but the model's max_position_embeddings is {self.max_positions}: set"
                f" it to {self.max_positions} or less",
            )
        if self.window is not None and max_sequence_length > self.window:
            raise UnsupportedError(
                BuildReason.SEQUENCE_TOO_LONG,
                f"{asked}, but the model has a sliding window of {self.window} tokens, which is"
                f" not supported within a sequence: set it to {self.window} or less",
            )
        if self.rope.longest is not None and max_sequence_length > self.rope.longest:
            raise UnsupportedError(
                BuildReason.SEQUENCE_TOO_LONG,
                f"{asked}, but the model's dynamic rope changes beyond {self.rope.longest}"
                f" tokens, which is not supported: set it to {self.rope.longest} or less",
            )


def read_decoder(
    config: Config,
    *,
    model_type: str,
    kv_heads: int | None,
    head_dim: int | None,
    max_positions: int,
    window: int | None = None,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
) -> Decoder:
    """Read what all families spell alike.

    `kv_heads`, `head_dim` and `max_positions` are the family's defaults for keys that
    config.json lacks; None, like null in config.json, means the number of heads, and their equal
    share of the hidden size. Raises BadInputError and UnsupportedError.
    """
    activation = config.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedError(
            BuildReason.MODEL_UNSUPPORTED,
            f"the model's hidden_act is {activation}; supported is silu",
        )
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    kv = config.count_or_none("num_key_value_heads", kv_heads) or heads
    if heads % kv:
        raise BadInputError(
            BuildReason.MODEL_INVALID,
            f"config.json has {heads} attention heads, which {kv} key-value heads cannot share"
            " evenly",
        )
    length = config.count_or_none("head_dim", head_dim) or hidden // heads
    if length % 2:
        raise BadInputError(
            BuildReason.MODEL_INVALID,
            f"config.json makes heads of odd length {length}, which rope cannot turn",
        )
    positions = config.count("max_position_embeddings", max_positions)
    return Decoder(
        model_type=model_type,
        vocabulary=config.count("vocab_size"),
        hidden=hidden,
        intermediate=config.count("intermediate_size"),
        layers=config.count("num_hidden_layers"),
        heads=heads,
        kv_heads=kv,
        head_dim=length,
        eps=config.number("rms_norm_eps", 1e-6),
        max_positions=positions,
        rope=read_rope(config, length, positions),
        tied=config.flag("tie_word_embeddings", False),
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        window=window,
    )
