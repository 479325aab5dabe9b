"""The pieces of a decoder beside attention: norm, linear, SwiGLU.

Norm runs in float32 whatever the graph's dtype is. Activations are `[batch * tokens, hidden]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmengine_builder.graph.writer import Writer


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


def merged_linear(
    w: Writer, x: str, parts: Sequence[tuple[str, int]], columns: int, *, bias: bool
) -> str:
    """`linear` of several weights, one below the other: names, and rows of each."""
    names = [name for name, _ in parts]
    rows = [count for _, count in parts]
    inputs = [x, w.merged([f"{name}.weight" for name in names], [(n, columns) for n in rows])]
    if bias:
        inputs.append(w.merged([f"{name}.bias" for name in names], [(n,) for n in rows]))
    return w.node("Gemm", *inputs, transB=1)


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


def swiglu(w: Writer, x: str, name: str, hidden: int, wide: int, *, bias: bool) -> str:
    """`down(silu(gate(x)) * up(x))`."""
    gate = linear(w, x, f"{name}.gate_proj", wide, hidden, bias=bias)
    up = linear(w, x, f"{name}.up_proj", wide, hidden, bias=bias)
    active = w.node("Mul", gate, w.node("Sigmoid", gate))
    return linear(w, w.node("Mul", active, up), f"{name}.down_proj", hidden, wide, bias=bias)
