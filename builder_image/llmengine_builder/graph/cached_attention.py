"""Attention as one node of our own, over a KV cache that the graph knows by its address only.

For runtimes that take operators of others. `CachedAttention` of domain `llmengine`, with `layer`,
`heads`, `kv_heads` and `head_dim`: a token's query, key and value heads, not yet turned, `[batch *
tokens, (heads + 2 * kv_heads) * head_dim]`; cosine and sine float32 `[batch, tokens, head_dim /
2]`; past_lens and new_lens int32 `[batch]`; `cache` int64 `[9]`. It puts the new rows into the
cache, and gives what the query comes to, `[batch * tokens, heads * head_dim]`.

Query, key and value are one product of one weight: of three, the smaller ones would not fill a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto, ValueInfoProto, helper

from llmengine_builder.graph.blocks import merged_linear, rms_norm
from llmengine_builder.graph.decoder import Decoder
from llmengine_builder.graph.step import Step, Turns
from llmengine_builder.graph.writer import Writer

# What the session, which owns the cache, says of it: llmengine_server.session.cuda_attention.
CACHE_WORDS = 9


@dataclass(frozen=True)
class CacheAddress:
    """See the module."""

    decoder: Decoder
    turns: Turns

    @classmethod
    def of(cls, w: Writer, d: Decoder, step: Step) -> CacheAddress:
        return cls(d, step.turns(w, d, d.rope.amplitude))

    def attend(self, w: Writer, layer: int, x: str) -> str:
        """`[batch * tokens, hidden]` to `[batch * tokens, heads * head_dim]`."""
        d = self.decoder
        return w.own_node(
            "CachedAttention",
            self._heads(w, layer, x),
            *(self.turns.cosine, self.turns.sine),
            *("past_lens", "new_lens", "cache"),
            layer=layer,
            heads=d.heads,
            kv_heads=d.kv_heads,
            head_dim=d.head_dim,
        )

    def _heads(self, w: Writer, layer: int, x: str) -> str:
        d = self.decoder
        name = f"model.layers.{layer}.self_attn"
        heads = d.heads + 2 * d.kv_heads
        parts = tuple((f"{name}.{kind}_proj", count * d.head_dim) for kind, count in d.projections)
        whole = merged_linear(w, x, parts, d.hidden, bias=d.qkv_bias)
        if not d.qk_norm:
            return whole
        split = w.node("Reshape", whole, w.constant([-1, heads, d.head_dim]))
        normed, first = [], 0
        for kind, count in d.projections:
            part = w.node(
                "Slice", split, w.constant([first]), w.constant([first + count]), w.constant([1])
            )
            if kind != "v":
                part = rms_norm(w, part, f"{name}.{kind}_norm", d.head_dim, d.eps)
            normed.append(part)
            first += count
        joined = w.node("Concat", *normed, axis=1)
        return w.node("Reshape", joined, w.constant([-1, heads * d.head_dim]))

    def finish(self, w: Writer) -> None:
        """The new rows are in the cache already."""

    def inputs(self, w: Writer) -> list[ValueInfoProto]:
        return [helper.make_tensor_value_info("cache", TensorProto.INT64, [CACHE_WORDS])]

    def outputs(self, w: Writer) -> list[ValueInfoProto]:
        return []
