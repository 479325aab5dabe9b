"""The whole graph of contract 2: new tokens in, logits out, attention over a KV cache between.

Inputs, int32: `input_ids [batch, tokens]`, padded on the right; `past_lens [batch]`, the rows of
each sequence's cache that count; `new_lens [batch]`, the tokens of each row that count. Output:
`logits [batch, vocabulary]`, float32, after each row's last token that counts.

The cache comes in one of two ways. `inputs`: per layer `k_past_I` and `v_past_I`, `[batch,
kv_heads, length, head_dim]`, which are only read; the rows to be put into it at past_lens come out
as `k_new` and `v_new`, `[layers, batch, kv_heads, tokens, head_dim]`, those of padding too, which
must not be kept. `address`: `cache [9]`, int64, says where it is and how it lies, and the graph
puts new rows into it.
"""

from __future__ import annotations

from typing import Literal, Protocol

from onnx import TensorProto, ValueInfoProto, helper

from llmengine.api.v1alpha1 import DType
from llmengine_builder.graph.attention import CacheInputs
from llmengine_builder.graph.blocks import linear, rms_norm, swiglu
from llmengine_builder.graph.cached_attention import CacheAddress
from llmengine_builder.graph.decoder import Decoder
from llmengine_builder.graph.gate import EMBEDDING, HEAD, refuse_unused
from llmengine_builder.graph.step import Step
from llmengine_builder.graph.writer import Writer
from llmengine_builder.safetensors import Checkpoint

CacheForm = Literal["inputs", "address"]


class _Attention(Protocol):
    def attend(self, w: Writer, layer: int, x: str) -> str: ...

    def finish(self, w: Writer) -> None: ...

    def inputs(self, w: Writer) -> list[ValueInfoProto]: ...

    def outputs(self, w: Writer) -> list[ValueInfoProto]: ...


def write_graph(checkpoint: Checkpoint, decoder: Decoder, dtype: DType, cache: CacheForm) -> bytes:
    """The model as ONNX; its weights are references into the checkpoint's own files.

    Raises BadInputError when a tensor is missing or has another shape than config.json makes it,
    and UnsupportedError when the checkpoint holds a tensor that the graph does not use.
    """
    w = Writer(checkpoint, dtype)
    w.scope = "batch"
    step = Step.of(w)
    attention: _Attention = (
        CacheInputs.of(w, decoder, step) if cache == "inputs" else CacheAddress.of(w, decoder, step)
    )
    x = _embed(w, decoder)
    for layer in range(decoder.layers):
        w.scope = f"layers.{layer}"
        x = _layer(w, decoder, attention, layer, x)
    _head(w, decoder, step, x)
    attention.finish(w)
    refuse_unused(checkpoint, decoder, w.consumed)
    logits = helper.make_tensor_value_info(
        "logits", TensorProto.FLOAT, ["batch", decoder.vocabulary]
    )
    return w.serialize([*_batch_inputs(), *attention.inputs(w)], [logits, *attention.outputs(w)])


def _embed(w: Writer, d: Decoder) -> str:
    w.scope = "embedding"
    # Rows are cast after they are gathered: the whole table would double in memory.
    table, stored = w.stored(EMBEDDING, (d.vocabulary, d.hidden))
    rows = w.cast(w.node("Gather", table, "input_ids", axis=0), stored, w.dtype)
    return w.node("Reshape", rows, w.constant([-1, d.hidden]))


def _layer(w: Writer, d: Decoder, attention: _Attention, layer: int, x: str) -> str:
    name = f"model.layers.{layer}"
    y = rms_norm(w, x, f"{name}.input_layernorm", d.hidden, d.eps)

    mixed = attention.attend(w, layer, y)
    projected = linear(
        w, mixed, f"{name}.self_attn.o_proj", d.hidden, d.heads * d.head_dim, bias=d.output_bias
    )
    x = w.node("Add", x, projected)
    y = rms_norm(w, x, f"{name}.post_attention_layernorm", d.hidden, d.eps)
    wide = swiglu(w, y, f"{name}.mlp", d.hidden, d.intermediate, bias=d.mlp_bias)
    return w.node("Add", x, wide)


def _head(w: Writer, d: Decoder, step: Step, x: str) -> None:
    w.scope = "head"
    x = rms_norm(w, w.node("Gather", x, step.last, axis=0), "model.norm", d.hidden, d.eps)
    name = (EMBEDDING if d.tied else HEAD).removesuffix(".weight")
    if w.dtype is DType.FLOAT32:
        linear(w, x, name, d.vocabulary, d.hidden, output="logits")
    else:
        logits = linear(w, x, name, d.vocabulary, d.hidden)
        w.node("Cast", logits, to=TensorProto.FLOAT, output="logits")


def _batch_inputs() -> list[ValueInfoProto]:
    return [
        helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["batch", "tokens"]),
        helper.make_tensor_value_info("past_lens", TensorProto.INT32, ["batch"]),
        helper.make_tensor_value_info("new_lens", TensorProto.INT32, ["batch"]),
    ]
