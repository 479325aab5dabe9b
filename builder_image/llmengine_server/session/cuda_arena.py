"""The KV cache on a device: one block of memory for its whole life, rows laid out as steps want.

Each layer has a fixed base, so that graphs that were captured stay valid. A layer's rows lie at
the beginning of its part, at the cache's present length, and are laid out anew in place when that
changes. No value that is not finite is ever in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from ctypes import c_int32, c_uint64, c_void_p
from dataclasses import dataclass

from llmengine.artifact import Cache
from llmengine_server.session.cuda import THREADS, Driver

ELEMENT_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
# All bits of a number's exponent: such a number is not finite.
EXPONENTS: Mapping[str, int] = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}
# Lengths are multiples of this, so that rows of any of them begin where 16 bytes may be read.
LENGTH_STEP = 64
_UNIT = 16


@dataclass(frozen=True)
class ArenaSizes:
    """Bytes of a cache of `slots` sequences: of one half of a layer (keys, or values) at its
    longest, of the whole, and of what laying it out anew needs beside it."""

    half: int
    whole: int
    staging: int

    @classmethod
    def of(cls, cache: Cache, slots: int) -> ArenaSizes:
        row = slots * cache.kv_heads * cache.head_dim * ELEMENT_BYTES[cache.dtype]
        half = row * cache.buckets[-1]
        # Between two lengths only what fits the shorter one is kept.
        staging = row * (cache.buckets[-2] if len(cache.buckets) > 1 else 0)
        return cls(half=half, whole=2 * cache.layers * half, staging=staging)


class Arena:
    """Keys `[slots, kv_heads, head_dim, length]`, values `[slots, kv_heads, length, head_dim]`.

    Raises OutOfMemoryError.
    """

    def __init__(self, driver: Driver, cache: Cache, slots: int) -> None:
        self._driver = driver
        self._cache = cache
        self._slots = slots
        self._element = ELEMENT_BYTES[cache.dtype]
        self._sizes = ArenaSizes.of(cache, slots)
        self._address = driver.allocate(self._sizes.whole)
        self._staging = driver.allocate(self._sizes.staging) if self._sizes.staging else 0
        self.length = cache.buckets[0]

    @property
    def address(self) -> int:
        return self._address

    @property
    def layer_stride(self) -> int:
        """Elements from one layer's keys to the next one's."""
        return 2 * self._sizes.half // self._element

    @property
    def value_offset(self) -> int:
        """Elements from a layer's keys to its values."""
        return self._sizes.half // self._element

    @property
    def slot_bytes(self) -> int:
        """Of one slot's keys, or values, of one layer at the present length."""
        cache = self._cache
        return cache.kv_heads * cache.head_dim * self.length * self._element

    def keys(self, layer: int, slot: int = 0) -> int:
        """Address of a slot's keys, which all slots after it follow."""
        return self._address + layer * 2 * self._sizes.half + slot * self.slot_bytes

    def values(self, layer: int, slot: int = 0) -> int:
        return self.keys(layer, slot) + self._sizes.half

    def resize(self, length: int) -> None:
        """Lay all rows out for `length`, one of the cache's buckets: what is new is zero."""
        if length == self.length:
            return
        cache = self._cache
        kept = min(length, self.length)
        for layer in range(cache.layers):
            # A row of keys has one number a token, a row of values a whole head.
            for base, rows, width in (
                (self.keys(layer), self._slots * cache.kv_heads * cache.head_dim, 1),
                (self.values(layer), self._slots * cache.kv_heads, cache.head_dim),
            ):
                unit = width * self._element
                held = _Rows(base, self.length * unit)
                aside = _Rows(self._staging, kept * unit)
                self._lay(aside, held, aside.bytes, rows)
                self._lay(_Rows(base, length * unit), aside, aside.bytes, rows)
        self.length = length

    def move(self, source: int, target: int, rows: int) -> None:
        """Copy the first `rows` rows of a slot to another one."""
        cache = self._cache
        row = self.length * self._element
        # Whole units: a few numbers more than asked for, finite ones as all are.
        kept = math.ceil(rows * self._element / _UNIT)
        kept_slab = math.ceil(rows * cache.head_dim * self._element / _UNIT)
        self._driver.launch(
            "move_rows",
            (2 * cache.layers, cache.kv_heads, 1),
            THREADS,
            c_void_p(self._address),
            c_uint64(2 * self._sizes.half // _UNIT),
            c_uint64(self._sizes.half // _UNIT),
            c_int32(cache.head_dim),
            c_uint64(row // _UNIT),
            c_uint64(kept),
            c_uint64(row * cache.head_dim // _UNIT),
            c_uint64(kept_slab),
            c_int32(source),
            c_int32(target),
        )

    def zero(self, slot: int) -> None:
        """Clear a slot."""
        for layer in range(self._cache.layers):
            for address in (self.keys(layer, slot), self.values(layer, slot)):
                self._driver.fill(address, 0, self.slot_bytes // 4)

    def close(self) -> None:
        self._driver.free(self._address)
        if self._staging:
            self._driver.free(self._staging)

    def _lay(self, to: _Rows, source: _Rows, kept: int, rows: int) -> None:
        self._driver.launch(
            "lay",
            (rows, 1, 1),
            THREADS,
            c_void_p(to.address),
            c_uint64(to.bytes // _UNIT),
            c_void_p(source.address),
            c_uint64(source.bytes // _UNIT),
            c_uint64(kept // _UNIT),
        )


@dataclass(frozen=True)
class _Rows:
    """Rows of `bytes` each, one behind the other."""

    address: int
    bytes: int
