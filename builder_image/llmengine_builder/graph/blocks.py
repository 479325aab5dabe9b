"""The pieces of a decoder: norm, linear, rotary, attention over cache and new tokens, SwiGLU.

Norm, rotary and softmax run in float32 whatever the graph's dtype is. Activations between the
pieces are `[batch * tokens, hidden]`, heads are `[batch, tokens, heads, head_dim]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmengine_builder.graph.writer import Writer

KeyLayout = Literal["plain", "transposed"]
# Far below every score, and far from the end of float32: differences stay finite.
_MASKED = np.float32(-1e30)


@dataclass(frozen=True)
class Rotation:
    """Cosine and signed sine for every new token, `[batch, tokens, 1, head_dim]`, float32.

    The first half of `sine` is negative: `x * cosine + swap_halves(x) * sine` turns x.
    """

    cosine: str
    sine: str


@dataclass(frozen=True)
class Attention:
    """What every layer's attention shares of this step's batch.

    `visible`: bool `[batch, 1, group * tokens, past + tokens]`, which cached and new positions a
    query row sees. `past`: `[1]`, the length of the cache. The rest are shapes: of the query with
    its heads in groups that share a key, `[batch, tokens, kv_heads, group, head_dim]`; of one
    product a group, `[batch, kv_heads, group * tokens, head_dim]`; of its result taken apart,
    `[batch, kv_heads, group, tokens, head_dim]`; and `[batch * tokens, heads * head_dim]`.
    """

    layout: KeyLayout
    visible: str
    past: str
    query: str
    grouped: str
    ungrouped: str
    merged: str


@dataclass(frozen=True)
class Heads:
    """Query (scaled), key and value of one layer: `[batch, tokens, heads, head_dim]` each."""

    query: str
    key: str
    value: str


def linear(
    w: Writer,
    x: str,
    name: str,
    rows: int,
    columns: int,
    *,
    bias: bool = False,
    output: str = "",
) -> str:
    """`x @ weight.T + bias`: `[n, columns]` to `[n, rows]`. The only writer of a weight product."""
    inputs = [x, w.weight(f"{name}.weight", (rows, columns))]
    if bias:
        inputs.append(w.weight(f"{name}.bias", (rows,)))
    return w.node("Gemm", *inputs, output=output, transB=1)


def rms_norm(w: Writer, x: str, name: str, length: int, eps: float) -> str:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis.

    The chain Pow, ReduceMean, Add, Sqrt, Div, Mul is the one that runtimes know and fuse.
    """
    wide = w.to_float32(x)
    square = w.node("Pow", wide, w.constant(np.float32(2)))
    mean = w.node("ReduceMean", square, w.constant([-1]), keepdims=1)
    root = w.node("Sqrt", w.node("Add", mean, w.constant(np.float32(eps))))
    return w.node(
        "Mul",
        w.from_float32(w.node("Div", wide, root)),
        w.weight(f"{name}.weight", (length,)),
    )


def rotate(w: Writer, heads: str, rotation: Rotation, half: int) -> str:
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


def attend(
    w: Writer, heads: Heads, past_key: str, past_value: str, shared: Attention
) -> tuple[str, str, str]:
    """Attention of new tokens over the cache and themselves.

    Returns the output, `[batch * tokens, heads * head_dim]`, and the new cache rows of key and
    value: `[batch, kv_heads, tokens, head_dim]`, keys with the last two axes swapped in the
    transposed layout.

    One softmax runs over both parts. A masked score is replaced, never added to: what stands in
    an unused cache row must not matter.
    """
    # [B, T, kv, group, D] -> [B, kv, group * T, D]: one product for all heads that share a key.
    grouped = w.node(
        "Transpose", w.node("Reshape", heads.query, shared.query), perm=[0, 2, 3, 1, 4]
    )
    grouped = w.node("Reshape", grouped, shared.grouped)
    key_columns = w.node("Transpose", heads.key, perm=[0, 2, 3, 1])
    value_rows = w.node("Transpose", heads.value, perm=[0, 2, 1, 3])
    if shared.layout == "transposed":
        new_key, past_columns = key_columns, past_key
    else:
        new_key = w.node("Transpose", heads.key, perm=[0, 2, 1, 3])
        past_columns = w.node("Transpose", past_key, perm=[0, 1, 3, 2])
    scores = w.node(
        "Concat",
        w.node("MatMul", grouped, past_columns),
        w.node("MatMul", grouped, key_columns),
        axis=3,
    )
    masked = w.node("Where", shared.visible, w.to_float32(scores), w.constant(_MASKED))
    share = w.from_float32(w.node("Softmax", masked, axis=-1))
    end = w.constant([np.iinfo(np.int64).max])
    on_past = w.node("Slice", share, w.constant([0]), shared.past, w.constant([3]))
    on_new = w.node("Slice", share, shared.past, end, w.constant([3]))
    mixed = w.node(
        "Add",
        w.node("MatMul", on_past, past_value),
        w.node("MatMul", on_new, value_rows),
    )
    ungrouped = w.node("Reshape", mixed, shared.ungrouped)
    ungrouped = w.node("Transpose", ungrouped, perm=[0, 3, 1, 2, 4])
    return w.node("Reshape", ungrouped, shared.merged), new_key, value_rows


def swiglu(w: Writer, x: str, name: str, hidden: int, wide: int, *, bias: bool) -> str:
    """`down(silu(gate(x)) * up(x))`."""
    gate = linear(w, x, f"{name}.gate_proj", wide, hidden, bias=bias)
    up = linear(w, x, f"{name}.up_proj", wide, hidden, bias=bias)
    active = w.node("Mul", gate, w.node("Sigmoid", gate))
    return linear(w, w.node("Mul", active, up), f"{name}.down_proj", hidden, wide, bias=bias)
