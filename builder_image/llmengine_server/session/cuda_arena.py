"""The KV cache on a device: one block of memory for its whole life, each slot at its full length.

So addresses stay what they were when graphs were captured. No value that is not finite is ever in
it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from ctypes import c_int32, c_uint64, c_void_p

from llmengine.artifact import Cache
from llmengine_server.session.cuda import THREADS, Driver

ELEMENT_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
_UNIT = 16


def arena_bytes(cache: Cache, slots: int) -> int:
    """Bytes of a cache of `slots` sequences."""
    row = cache.kv_heads * cache.head_dim * ELEMENT_BYTES[cache.dtype]
    return 2 * cache.layers * slots * row * cache.buckets[-1]


class Arena:
    """Keys and values of each layer, `[slots, kv_heads, length, head_dim]` each.

    Raises OutOfMemoryError.
    """

    def __init__(self, driver: Driver, cache: Cache, slots: int) -> None:
        self._driver = driver
        self._cache = cache
        self.slots = slots
        self._half = arena_bytes(cache, slots) // (2 * cache.layers)
        self._element = ELEMENT_BYTES[cache.dtype]
        self._address = driver.allocate(arena_bytes(cache, slots))

    @property
    def length(self) -> int:
        """Rows of a slot."""
        return self._cache.buckets[-1]

    @property
    def address(self) -> int:
        return self._address

    @property
    def layer_stride(self) -> int:
        """Elements from one layer's keys to the next one's."""
        return 2 * self._half // self._element

    @property
    def value_offset(self) -> int:
        """Elements from a layer's keys to its values."""
        return self._half // self._element

    @property
    def slot_bytes(self) -> int:
        """Of one slot's keys, or values, of one layer."""
        cache = self._cache
        return cache.kv_heads * cache.head_dim * self.length * self._element

    def move(self, source: int, target: int, rows: int) -> None:
        """Copy the first `rows` rows of a slot to another one."""
        cache = self._cache
        row = cache.head_dim * self._element
        self._driver.launch(
            "move_rows",
            (2 * cache.layers, cache.kv_heads, 1),
            THREADS,
            c_void_p(self._address),
            c_uint64(self._half // _UNIT),
            c_uint64(self.length * row // _UNIT),
            # Whole units: a few numbers more than asked for, finite ones as all are.
            c_uint64(math.ceil(rows * row / _UNIT)),
            c_int32(source),
            c_int32(target),
        )

    def zero(self, slot: int) -> None:
        """Clear a slot."""
        for half in range(2 * self._cache.layers):
            address = self._address + half * self._half + slot * self.slot_bytes
            self._driver.fill(address, 0, self.slot_bytes // 4)
