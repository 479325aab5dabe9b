"""Attention of new tokens over the KV cache and themselves, written out in standard operators.

The cache is an input that is only read, for any runtime: keys and values `[batch, kv_heads,
length, head_dim]` a layer. Rotary and softmax run in float32 whatever the graph's dtype is. Heads
are `[batch, tokens, heads, head_dim]`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import ValueInfoProto, helper

from llmengine_builder.graph.blocks import linear, rms_norm
from llmengine_builder.graph.decoder import Decoder
from llmengine_builder.graph.step import Step, Turns, int32_range, length_of
from llmengine_builder.graph.writer import ONNX_TYPES, Writer

# Far below every score, and far from the end of float32: differences stay finite.
_MASKED = np.float32(-1e30)


@dataclass(frozen=True)
class _Shapes:
    """The query with its heads in groups that share a key, `[batch, tokens, kv_heads, group,
    head_dim]`; of one product a group, `[batch, kv_heads, group * tokens, head_dim]`; of its
    result taken apart, `[batch, kv_heads, group, tokens, head_dim]`; and heads as they are."""

    query: str
    grouped: str
    ungrouped: str
    merged: str
    query_heads: str
    key_heads: str


@dataclass(frozen=True)
class _Rotation:
    """Cosine and signed sine for every new token, `[batch, tokens, 1, head_dim]`, float32.

    The first half of `sine` is negative: `x * cosine + swap_halves(x) * sine` turns x.
    """

    cosine: str
    sine: str


@dataclass
class CacheInputs:
    """See the module. `visible`: bool `[batch, 1, group * tokens, past + tokens]`, which cached and
    new positions a query row sees; `past`: `[1]`, the length of the cache."""

    decoder: Decoder
    visible: str
    past: str
    shapes: _Shapes
    turn_query: _Rotation
    turn_key: _Rotation
    _keys: list[str] = field(default_factory=list)
    _values: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, w: Writer, d: Decoder, step: Step) -> CacheInputs:
        past = length_of(w, w.node("Shape", "v_past_0"), 2)
        group = d.heads // d.kv_heads
        rows = w.node("Mul", step.tokens, w.constant([group]))
        visible = w.node("Concat", *_visible(w, step, past, group), axis=3)
        return cls(
            decoder=d,
            visible=w.node(
                "Reshape",
                visible,
                _shape(w, step.batch, 1, rows, w.node("Add", past, step.tokens)),
            ),
            past=past,
            shapes=_Shapes(
                query=_shape(w, step.batch, step.tokens, d.kv_heads, group, d.head_dim),
                grouped=_shape(w, step.batch, d.kv_heads, rows, d.head_dim),
                ungrouped=_shape(w, step.batch, d.kv_heads, group, step.tokens, d.head_dim),
                merged=w.constant([-1, d.heads * d.head_dim]),
                query_heads=_shape(w, step.batch, step.tokens, d.heads, d.head_dim),
                key_heads=_shape(w, step.batch, step.tokens, d.kv_heads, d.head_dim),
            ),
            # The scores' scale rides on the query's rotation: both are linear.
            turn_query=_rotation(w, step.turns(w, d, d.rope.amplitude * d.head_dim**-0.5)),
            turn_key=_rotation(w, step.turns(w, d, d.rope.amplitude)),
        )

    def attend(self, w: Writer, layer: int, x: str) -> str:
        """`[batch * tokens, hidden]` to `[batch * tokens, heads * head_dim]`.

        One softmax runs over both parts. A masked score is replaced, never added to: what stands
        in an unused cache row must not matter.
        """
        shapes, half = self.shapes, self.decoder.head_dim // 2
        query, key, value = self._heads(w, layer, x)
        query = _turn(w, w.node("Reshape", query, shapes.query_heads), self.turn_query, half)
        key = _turn(w, w.node("Reshape", key, shapes.key_heads), self.turn_key, half)
        value = w.node("Reshape", value, shapes.key_heads)
        # [B, T, kv, group, D] -> [B, kv, group * T, D]: one product for all heads that share a key.
        grouped = w.node("Transpose", w.node("Reshape", query, shapes.query), perm=[0, 2, 3, 1, 4])
        grouped = w.node("Reshape", grouped, shapes.grouped)
        key_columns = w.node("Transpose", key, perm=[0, 2, 3, 1])
        value_rows = w.node("Transpose", value, perm=[0, 2, 1, 3])
        self._keys.append(w.node("Transpose", key, perm=[0, 2, 1, 3]))
        self._values.append(value_rows)
        past_columns = w.node("Transpose", f"k_past_{layer}", perm=[0, 1, 3, 2])
        scores = w.node(
            "Concat",
            w.node("MatMul", grouped, past_columns),
            w.node("MatMul", grouped, key_columns),
            axis=3,
        )
        masked = w.node("Where", self.visible, w.to_float32(scores), w.constant(_MASKED))
        share = w.from_float32(w.node("Softmax", masked, axis=-1))
        end = w.constant([np.iinfo(np.int64).max])
        on_past = w.node("Slice", share, w.constant([0]), self.past, w.constant([3]))
        on_new = w.node("Slice", share, self.past, end, w.constant([3]))
        mixed = w.node(
            "Add",
            w.node("MatMul", on_past, f"v_past_{layer}"),
            w.node("MatMul", on_new, value_rows),
        )
        ungrouped = w.node("Reshape", mixed, shapes.ungrouped)
        ungrouped = w.node("Transpose", ungrouped, perm=[0, 3, 1, 2, 4])
        return w.node("Reshape", ungrouped, shapes.merged)

    def _heads(self, w: Writer, layer: int, x: str) -> list[str]:
        d = self.decoder
        name = f"model.layers.{layer}.self_attn"
        found = []
        for kind, count in d.projections:
            rows = count * d.head_dim
            flat = linear(w, x, f"{name}.{kind}_proj", rows, d.hidden, bias=d.qkv_bias)
            if d.qk_norm and kind != "v":
                split = w.node("Reshape", flat, w.constant([-1, count, d.head_dim]))
                normed = rms_norm(w, split, f"{name}.{kind}_norm", d.head_dim, d.eps)
                flat = w.node("Reshape", normed, w.constant([-1, rows]))
            found.append(flat)
        return found

    def finish(self, w: Writer) -> None:
        """Write the outputs: the rows of all layers."""
        for name, rows in (("k_new", self._keys), ("v_new", self._values)):
            stacked = [w.node("Unsqueeze", row, w.constant([0])) for row in rows]
            w.node("Concat", *stacked, axis=0, output=name)

    def inputs(self, w: Writer) -> list[ValueInfoProto]:
        d = self.decoder
        axes: list[str | int] = ["batch", d.kv_heads, "past", d.head_dim]
        return [
            helper.make_tensor_value_info(f"{kind}_past_{layer}", ONNX_TYPES[w.dtype], axes)
            for layer in range(d.layers)
            for kind in "kv"
        ]

    def outputs(self, w: Writer) -> list[ValueInfoProto]:
        d = self.decoder
        axes: list[str | int] = [d.layers, "batch", d.kv_heads, "tokens", d.head_dim]
        return [
            helper.make_tensor_value_info(name, ONNX_TYPES[w.dtype], axes)
            for name in ("k_new", "v_new")
        ]


def _shape(w: Writer, *lengths: str | int) -> str:
    """A shape of lengths that are known, and of those of this step."""
    parts = [part if isinstance(part, str) else w.constant([part]) for part in lengths]
    return w.node("Concat", *parts, axis=0)


def _visible(w: Writer, step: Step, past: str, group: int) -> tuple[str, str]:
    """Which positions a query row sees, `[batch, group, tokens, ...]`: cached ones, new ones."""
    groups, steps = w.constant([group]), step.steps
    counts = w.node("Less", int32_range(w, past), w.node("Unsqueeze", "past_lens", w.constant([1])))
    counts = w.node("Unsqueeze", counts, w.constant([1, 2]))
    causal = w.node("LessOrEqual", steps, w.node("Unsqueeze", steps, w.constant([1])))
    causal = w.node("Unsqueeze", causal, w.constant([0, 1]))
    return (
        w.node("Expand", counts, w.node("Concat", step.batch, groups, step.tokens, past, axis=0)),
        w.node(
            "Expand", causal, w.node("Concat", step.batch, groups, step.tokens, step.tokens, axis=0)
        ),
    )


def _rotation(w: Writer, turns: Turns) -> _Rotation:
    heads = w.constant([2])
    cosine = w.node("Unsqueeze", turns.cosine, heads)
    sine = w.node("Unsqueeze", turns.sine, heads)
    return _Rotation(
        cosine=w.node("Concat", cosine, cosine, axis=3),
        sine=w.node("Concat", w.node("Neg", sine), sine, axis=3),
    )


def _turn(w: Writer, heads: str, rotation: _Rotation, half: int) -> str:
    """Turn `[batch, tokens, heads, head_dim]` by the position of each token."""
    wide = w.to_float32(heads)
    low = w.node("Slice", wide, w.constant([0]), w.constant([half]), w.constant([3]))
    high = w.node("Slice", wide, w.constant([half]), w.constant([2 * half]), w.constant([3]))
    swapped = w.node("Concat", high, low, axis=3)
    turned = w.node(
        "Add",
        w.node("Mul", wide, rotation.cosine),
        w.node("Mul", swapped, rotation.sine),
    )
    return w.from_float32(turned)
