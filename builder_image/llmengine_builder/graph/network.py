"""The whole graph of contract 1: new tokens and a read-only KV cache in, logits and new rows out.

Inputs, int32: `input_ids [batch, tokens]`, padded on the right; `past_lens [batch]`, the rows of
each sequence's cache that count; `new_lens [batch]`, the tokens of each row that count. Then per
layer `k_past_I` and `v_past_I`, `[batch, kv_heads, length, head_dim]`, keys
`[batch, kv_heads, head_dim, length]` in the transposed layout.

Outputs: `logits [batch, vocabulary]`, float32, after each row's last token that counts; `k_new`
and `v_new`, the rows to be put into the cache at past_lens, `[layers, batch, kv_heads, tokens,
head_dim]` (keys transposed as above). Padding produces rows too, which must not be kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from llmengine.api.v1alpha1 import DType
from llmengine_builder.graph.blocks import (
    Attention,
    Heads,
    KeyLayout,
    Rotation,
    attend,
    linear,
    rms_norm,
    rotate,
    swiglu,
)
from llmengine_builder.graph.decoder import Decoder
from llmengine_builder.graph.gate import EMBEDDING, HEAD, refuse_unused
from llmengine_builder.graph.writer import ONNX_TYPES, Writer
from llmengine_builder.safetensors import Checkpoint


def write_graph(
    checkpoint: Checkpoint, decoder: Decoder, dtype: DType, key_layout: KeyLayout
) -> bytes:
    """The model as ONNX; its weights are references into the checkpoint's own files.

    Raises BadInputError when a tensor is missing or has another shape than config.json makes it,
    and UnsupportedError when the checkpoint holds a tensor that the graph does not use.
    """
    w = Writer(checkpoint, dtype)
    batch = _batch(w, decoder, key_layout)
    x = _embed(w, decoder)
    keys, values = [], []
    for layer in range(decoder.layers):
        w.scope = f"layers.{layer}"
        x, key, value = _layer(w, decoder, batch, layer, x)
        keys.append(key)
        values.append(value)
    _head(w, decoder, batch, x)
    for name, rows in (("k_new", keys), ("v_new", values)):
        stacked = [w.node("Unsqueeze", row, w.constant([0])) for row in rows]
        w.node("Concat", *stacked, axis=0, output=name)
    refuse_unused(checkpoint, decoder, w.consumed)
    return w.serialize(_inputs(decoder, dtype, key_layout), _outputs(decoder, dtype, key_layout))


@dataclass(frozen=True)
class _Lengths:
    """Sizes of this step as `[1]`, int64: sequences, new tokens, cache rows."""

    batch: str
    tokens: str
    past: str

    @classmethod
    def of(cls, w: Writer) -> _Lengths:
        ids, cache = w.node("Shape", "input_ids"), w.node("Shape", "v_past_0")

        def length(shape: str, axis: int) -> str:
            return w.node("Slice", shape, w.constant([axis]), w.constant([axis + 1]))

        return cls(length(ids, 0), length(ids, 1), length(cache, 2))


@dataclass(frozen=True)
class _Batch:
    """What all layers share of this step's batch; `last` indexes `[batch * tokens]`."""

    attention: Attention
    turn_query: Rotation
    turn_key: Rotation
    query_heads: str
    key_heads: str
    last: str


def _batch(w: Writer, d: Decoder, layout: KeyLayout) -> _Batch:
    w.scope = "batch"
    n = _Lengths.of(w)
    group = d.heads // d.kv_heads

    def shape(*lengths: str | int) -> str:
        parts = [part if isinstance(part, str) else w.constant([part]) for part in lengths]
        return w.node("Concat", *parts, axis=0)

    rows = w.node("Mul", n.tokens, w.constant([group]))
    steps = _range(w, n.tokens)
    positions = w.node("Add", w.node("Unsqueeze", "past_lens", w.constant([1])), steps)
    visible = w.node("Concat", *_visible(w, n, steps, group), axis=3)
    return _Batch(
        attention=Attention(
            layout=layout,
            visible=w.node(
                "Reshape", visible, shape(n.batch, 1, rows, w.node("Add", n.past, n.tokens))
            ),
            past=n.past,
            query=shape(n.batch, n.tokens, d.kv_heads, group, d.head_dim),
            grouped=shape(n.batch, d.kv_heads, rows, d.head_dim),
            ungrouped=shape(n.batch, d.kv_heads, group, n.tokens, d.head_dim),
            merged=w.constant([-1, d.heads * d.head_dim]),
        ),
        # The scores' scale rides on the query's rotation: both are linear.
        turn_query=_rotation(w, d, positions, d.rope.amplitude * d.head_dim**-0.5),
        turn_key=_rotation(w, d, positions, d.rope.amplitude),
        query_heads=shape(n.batch, n.tokens, d.heads, d.head_dim),
        key_heads=shape(n.batch, n.tokens, d.kv_heads, d.head_dim),
        last=_last_rows(w, n),
    )


def _range(w: Writer, length: str) -> str:
    """0, 1, ... below `length` (`[1]`, int64), as int32."""
    end = w.node("Squeeze", length, w.constant([0]))
    count = w.node("Range", w.constant(0), end, w.constant(1))
    return w.node("Cast", count, to=TensorProto.INT32)


def _visible(w: Writer, n: _Lengths, steps: str, group: int) -> tuple[str, str]:
    """Which positions a query row sees, `[batch, group, tokens, ...]`: cached ones, new ones."""
    groups = w.constant([group])
    counts = w.node("Less", _range(w, n.past), w.node("Unsqueeze", "past_lens", w.constant([1])))
    counts = w.node("Unsqueeze", counts, w.constant([1, 2]))
    causal = w.node("LessOrEqual", steps, w.node("Unsqueeze", steps, w.constant([1])))
    causal = w.node("Unsqueeze", causal, w.constant([0, 1]))
    return (
        w.node("Expand", counts, w.node("Concat", n.batch, groups, n.tokens, n.past, axis=0)),
        w.node("Expand", causal, w.node("Concat", n.batch, groups, n.tokens, n.tokens, axis=0)),
    )


def _rotation(w: Writer, d: Decoder, positions: str, amplitude: float) -> Rotation:
    frequencies = np.asarray(d.rope.frequencies, np.float32)
    angles = w.node(
        "Mul",
        w.node(
            "Unsqueeze",
            w.node("Cast", positions, to=TensorProto.FLOAT),
            w.constant([2, 3]),
        ),
        w.constant(frequencies),
    )
    scale = w.constant(np.float32(amplitude))
    cosine = w.node("Mul", w.node("Cos", angles), scale)
    sine = w.node("Mul", w.node("Sin", angles), scale)
    return Rotation(
        cosine=w.node("Concat", cosine, cosine, axis=3),
        sine=w.node("Concat", w.node("Neg", sine), sine, axis=3),
    )


def _last_rows(w: Writer, n: _Lengths) -> str:
    tokens = w.node("Cast", n.tokens, to=TensorProto.INT32)
    starts = w.node("Mul", _range(w, n.batch), tokens)
    return w.node("Sub", w.node("Add", starts, "new_lens"), w.constant(np.int32(1)))


def _embed(w: Writer, d: Decoder) -> str:
    w.scope = "embedding"
    # Rows are cast after they are gathered: the whole table would double in memory.
    table, stored = w.stored(EMBEDDING, (d.vocabulary, d.hidden))
    rows = w.cast(w.node("Gather", table, "input_ids", axis=0), stored, w.dtype)
    return w.node("Reshape", rows, w.constant([-1, d.hidden]))


def _layer(w: Writer, d: Decoder, batch: _Batch, layer: int, x: str) -> tuple[str, str, str]:
    name = f"model.layers.{layer}"
    attention = f"{name}.self_attn"
    y = rms_norm(w, x, f"{name}.input_layernorm", d.hidden, d.eps)

    def heads(kind: str, count: int, shape: str) -> str:
        flat = linear(
            w, y, f"{attention}.{kind}_proj", count * d.head_dim, d.hidden, bias=d.qkv_bias
        )
        split = w.node("Reshape", flat, shape)
        if d.qk_norm and kind != "v":
            return rms_norm(w, split, f"{attention}.{kind}_norm", d.head_dim, d.eps)
        return split

    half = d.head_dim // 2
    mixed, new_key, new_value = attend(
        w,
        Heads(
            query=rotate(w, heads("q", d.heads, batch.query_heads), batch.turn_query, half),
            key=rotate(w, heads("k", d.kv_heads, batch.key_heads), batch.turn_key, half),
            value=heads("v", d.kv_heads, batch.key_heads),
        ),
        f"k_past_{layer}",
        f"v_past_{layer}",
        batch.attention,
    )
    projected = linear(
        w, mixed, f"{attention}.o_proj", d.hidden, d.heads * d.head_dim, bias=d.output_bias
    )
    x = w.node("Add", x, projected)
    y = rms_norm(w, x, f"{name}.post_attention_layernorm", d.hidden, d.eps)
    wide = swiglu(w, y, f"{name}.mlp", d.hidden, d.intermediate, bias=d.mlp_bias)
    return w.node("Add", x, wide), new_key, new_value


def _head(w: Writer, d: Decoder, batch: _Batch, x: str) -> None:
    w.scope = "head"
    x = rms_norm(w, w.node("Gather", x, batch.last, axis=0), "model.norm", d.hidden, d.eps)
    name = (EMBEDDING if d.tied else HEAD).removesuffix(".weight")
    if w.dtype is DType.FLOAT32:
        linear(w, x, name, d.vocabulary, d.hidden, output="logits")
    else:
        logits = linear(w, x, name, d.vocabulary, d.hidden)
        w.node("Cast", logits, to=TensorProto.FLOAT, output="logits")


def _inputs(d: Decoder, dtype: DType, layout: KeyLayout) -> list[ValueInfoProto]:
    infos = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["batch", "tokens"]),
        helper.make_tensor_value_info("past_lens", TensorProto.INT32, ["batch"]),
        helper.make_tensor_value_info("new_lens", TensorProto.INT32, ["batch"]),
    ]
    key, value = _row_axes(d, "past", layout)
    for layer in range(d.layers):
        for name, axes in ((f"k_past_{layer}", key), (f"v_past_{layer}", value)):
            infos.append(helper.make_tensor_value_info(name, ONNX_TYPES[dtype], ["batch", *axes]))
    return infos


def _outputs(d: Decoder, dtype: DType, layout: KeyLayout) -> list[ValueInfoProto]:
    key, value = _row_axes(d, "tokens", layout)
    rows = [
        helper.make_tensor_value_info(name, ONNX_TYPES[dtype], [d.layers, "batch", *axes])
        for name, axes in (("k_new", key), ("v_new", value))
    ]
    logits: list[str | int] = ["batch", d.vocabulary]
    return [helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits), *rows]


def _row_axes(
    d: Decoder, length: str, layout: KeyLayout
) -> tuple[list[str | int], list[str | int]]:
    """The last three axes of keys and of values."""
    value: list[str | int] = [d.kv_heads, length, d.head_dim]
    key: list[str | int] = [d.kv_heads, d.head_dim, length]
    return (key if layout == "transposed" else value), value
