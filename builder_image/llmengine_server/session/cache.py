"""The KV cache on the host: rows of all slots, held at the shortest bucket that fits them.

A step reads the cache at its whole length, so a short cache is a fast one. Rows beyond a slot's
length are zero or left over; nothing reads them, but a non-finite one would still spoil a product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from llmengine.artifact import Cache
from llmengine_server.session.lengths import SlotLengths

Rows = NDArray[np.float32]


class KvCache:
    """Keys and values of `slots` sequences, one array a layer, owned here.

    `keys[i]` and `values[i]` are `[slots, kv_heads, length, head_dim]`, float32. They are replaced
    when `length` changes, and `let_go` is called before: whoever bound their memory must give it
    back then, or the whole cache would exist twice.
    """

    def __init__(self, cache: Cache, slots: int, let_go: Callable[[], None] = lambda: None) -> None:
        self.slots = slots
        self._let_go = let_go
        self._shape = (cache.kv_heads, cache.head_dim)
        self._lengths = SlotLengths(cache.buckets, slots)
        self.length = self._lengths.length
        self.keys = [self._zeros(self.length) for _ in range(cache.layers)]
        self.values = [self._zeros(self.length) for _ in range(cache.layers)]

    def begin_prefill(self, slot: int, past: int, new: int) -> None:
        """See `SlotLengths.begin_prefill`."""
        self._lengths.begin_prefill(slot, past, new)
        self._fit()

    def begin_decode(self, pasts: Sequence[int]) -> None:
        """See `SlotLengths.begin_decode`."""
        self._lengths.begin_decode(pasts)
        self._fit()

    def past_of(self, slot: int, past: int, new: int) -> tuple[list[Rows], list[Rows]]:
        """The cache of one slot as a step of `new` tokens reads it, `[1, kv_heads, n, head_dim]`.

        `n` is `past` where attending to masked rows would cost more than copying the valid ones,
        else the cache's length.
        """
        rows = slice(slot, slot + 1)
        # Measured on SmolLM2 and 2 cores: a masked row costs a query 1.3 us, a copied one 20 us.
        if new * (self.length - past) > 16 * past:
            return (
                [np.ascontiguousarray(key[rows, :, :past]) for key in self.keys],
                [np.ascontiguousarray(value[rows, :, :past]) for value in self.values],
            )
        return [key[rows] for key in self.keys], [value[rows] for value in self.values]

    def put(self, slot: int, past: int, keys: Rows, values: Rows) -> None:
        """Store the rows of one prefill chunk, `[layers, kv_heads, new, head_dim]`, at `past`."""
        end = past + keys.shape[2]
        for layer, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            key[slot, :, past:end] = keys[layer]
            value[slot, :, past:end] = values[layer]

    def append(self, pasts: Sequence[int], keys: Rows, values: Rows) -> None:
        """Store one row a slot, `[layers, n, kv_heads, 1, head_dim]`, at `pasts[i]` of slot i."""
        slots, at = np.arange(len(pasts)), np.asarray(pasts)
        for layer, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            key[slots, :, at] = keys[layer, :, :, 0]
            value[slots, :, at] = values[layer, :, :, 0]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` rows of `source` to `target`; `source` is free afterwards."""
        self._lengths.move(source, target, length)
        if source == target:
            return
        for rows in (*self.keys, *self.values):
            rows[target, :, :length] = rows[source, :, :length]

    def zero(self, slot: int) -> None:
        """Clear every row of a slot, beyond its length too."""
        for rows in (*self.keys, *self.values):
            rows[slot] = 0
        self._lengths.release(slot)

    def _fit(self) -> None:
        if self.length == self._lengths.length:
            return
        length = self._lengths.length
        self._let_go()
        # Layer by layer, so that only one layer ever exists twice.
        for arrays in (self.keys, self.values):
            for layer, old in enumerate(arrays):
                new = self._zeros(length)
                for slot, rows in enumerate(self._lengths.rows):
                    kept = min(rows, self.length, length)
                    new[slot, :, :kept] = old[slot, :, :kept]
                arrays[layer] = new
        self.length = length

    def _zeros(self, length: int) -> Rows:
        kv_heads, head_dim = self._shape
        return np.zeros((self.slots, kv_heads, length, head_dim), np.float32)
