"""How many rows each slot of a cache holds, and how long the cache has to be for them.

Knows no memory: whoever owns the rows lays them out anew when the length changes.
"""

from __future__ import annotations

from collections.abc import Sequence


class SlotLengths:
    """Rows of `slots` sequences in a cache that may be held at any of the lengths `buckets`.

    `length` is the shortest bucket that fits; ascending buckets, in tokens.
    """

    def __init__(self, buckets: Sequence[int], slots: int) -> None:
        self._buckets = tuple(buckets)
        self._rows = [0] * slots
        self._decoded = [False] * slots
        self.length = self._buckets[0]

    @property
    def rows(self) -> Sequence[int]:
        """Rows of each slot."""
        return self._rows

    def begin_prefill(self, slot: int, past: int, new: int) -> None:
        """Make room for `new` rows after the first `past` ones of `slot`.

        Raises ValueError when the slot has fewer than `past` rows.
        """
        self._require(slot, past)
        self._decoded[slot] = False
        self._rows[slot] = past + new
        self._fit(may_shrink=False)

    def begin_decode(self, pasts: Sequence[int]) -> None:
        """Make room for one row after the first `pasts[i]` of each slot i.

        A slot beyond these that was decoded before is free now: its rows may go. Raises
        ValueError when a slot has fewer rows than its past.
        """
        for slot, past in enumerate(pasts):
            self._require(slot, past)
        freed = False
        for slot in range(len(self._rows)):
            if slot < len(pasts):
                self._decoded[slot] = True
                self._rows[slot] = pasts[slot] + 1
            elif self._decoded[slot]:
                self.release(slot)
                freed = True
        self._fit(may_shrink=freed)

    def move(self, source: int, target: int, rows: int) -> None:
        """The first `rows` rows of `source` are those of `target` now; `source` is free."""
        self._require(source, rows)
        if source == target:
            return
        self._rows[target] = rows
        self._decoded[target] = self._decoded[source]
        self.release(source)

    def release(self, slot: int) -> None:
        self._rows[slot] = 0
        self._decoded[slot] = False

    def _require(self, slot: int, rows: int) -> None:
        if not 0 <= slot < len(self._rows):
            raise ValueError(f"there is no slot {slot}: the session has {len(self._rows)}")
        if not 0 <= rows <= self._rows[slot]:
            raise ValueError(f"slot {slot} has {self._rows[slot]} rows, not {rows}")

    def _fit(self, *, may_shrink: bool) -> None:
        longest = max(self._rows)
        if longest > self.length:
            self.length = self._bucket(longest)
        elif may_shrink:
            # A quarter to spare, or the next tokens would make it grow back at once.
            self.length = min(self._bucket(min(longest + longest // 4, self.length)), self.length)

    def _bucket(self, rows: int) -> int:
        for bucket in self._buckets:
            if bucket >= rows:
                return bucket
        raise ValueError(f"{rows} rows are more than the cache's longest bucket holds")
