"""What all layers share of one step's batch: its sizes, its tokens' places, and how these turn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from llmengine_builder.graph.decoder import Decoder
from llmengine_builder.graph.writer import Writer


@dataclass(frozen=True)
class Turns:
    """Cosine and sine of every new token's angles, `[batch, tokens, head_dim / 2]`, float32."""

    cosine: str
    sine: str


@dataclass(frozen=True)
class Step:
    """Sizes as `[1]`, int64; `steps`: 0, 1, ... of the new tokens, int32; `positions` `[batch,
    tokens]`, int32; `last` indexes `[batch * tokens]`: each row's last token that counts."""

    batch: str
    tokens: str
    steps: str
    positions: str
    last: str

    @classmethod
    def of(cls, w: Writer) -> Step:
        ids = w.node("Shape", "input_ids")
        batch, tokens = length_of(w, ids, 0), length_of(w, ids, 1)
        steps = int32_range(w, tokens)
        starts = w.node("Mul", int32_range(w, batch), w.node("Cast", tokens, to=TensorProto.INT32))
        return cls(
            batch=batch,
            tokens=tokens,
            steps=steps,
            positions=w.node("Add", w.node("Unsqueeze", "past_lens", w.constant([1])), steps),
            last=w.node("Sub", w.node("Add", starts, "new_lens"), w.constant(np.int32(1))),
        )

    def turns(self, w: Writer, d: Decoder, amplitude: float) -> Turns:
        """Cosine and sine, multiplied by `amplitude`."""
        frequencies = np.asarray(d.rope.frequencies, np.float32)
        places = w.node("Cast", self.positions, to=TensorProto.FLOAT)
        angles = w.node(
            "Mul", w.node("Unsqueeze", places, w.constant([2])), w.constant(frequencies)
        )
        scale = w.constant(np.float32(amplitude))
        return Turns(
            cosine=w.node("Mul", w.node("Cos", angles), scale),
            sine=w.node("Mul", w.node("Sin", angles), scale),
        )


def length_of(w: Writer, shape: str, axis: int) -> str:
    """One length of a shape, `[1]`, int64."""
    return w.node("Slice", shape, w.constant([axis]), w.constant([axis + 1]))


def int32_range(w: Writer, length: str) -> str:
    """0, 1, ... below `length` (`[1]`, int64), as int32."""
    end = w.node("Squeeze", length, w.constant([0]))
    count = w.node("Range", w.constant(0), end, w.constant(1))
    return w.node("Cast", count, to=TensorProto.INT32)
