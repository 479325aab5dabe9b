"""Attention as one node of our own, over a KV cache that the graph knows by its address only.

For runtimes that take operators of others. `CachedAttention` of domain `llmengine`, with `layer`,
`heads`, `kv_heads` and `head_dim`: query `[batch * tokens, heads * head_dim]`, key and value
`[batch * tokens, kv_heads * head_dim]`, not yet turned; cosine and sine float32 `[batch, tokens,
head_dim / 2]`; past_lens and new_lens int32 `[batch]`; `cache` int64 `[9]`. It puts the new rows
into the cache, and gives what the query is mixed of, in the query's shape.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto, ValueInfoProto, helper

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

    def attend(self, w: Writer, layer: int, query: str, key: str, value: str) -> str:
        d = self.decoder
        return w.own_node(
            "CachedAttention",
            *(query, key, value),
            *(self.turns.cosine, self.turns.sine),
            *("past_lens", "new_lens", "cache"),
            layer=layer,
            heads=d.heads,
            kv_heads=d.kv_heads,
            head_dim=d.head_dim,
        )

    def finish(self, w: Writer) -> None:
        """The new rows are in the cache already."""

    def inputs(self, w: Writer) -> list[ValueInfoProto]:
        return [helper.make_tensor_value_info("cache", TensorProto.INT64, [CACHE_WORDS])]

    def outputs(self, w: Writer) -> list[ValueInfoProto]:
        return []
