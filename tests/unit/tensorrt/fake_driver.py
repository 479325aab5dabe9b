"""A CUDA device in numpy, at the lowest seam: memory by address, work that is done later.

Nothing happens before somebody waits for it, so a host that reads or overwrites too early is found
out. Kernels are written a second time here, from what their comments say; tests/contract/cuda holds
both against each other.
"""

# ruff: noqa: PLR0917 - a kernel's arguments have places, not names

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmengine_server.session import Choice, OutOfMemoryError
from llmengine_server.session.cuda import Argument, Bytes, Memory
from llmengine_server.session.tensorrt_state import CONTROL, RECIPE
from tests.unit.server.fake_session import choose as choose_token

Work = Callable[[], None]
_FIRST_ADDRESS = 1 << 40
_ALIGNMENT = 256


@dataclass
class FakeDriver:
    """`total`: bytes of the device; `full`: how many of the next graphs find no memory."""

    total: int = 1 << 30
    full: int = 0
    stream: int = 7
    launched: Counter[str] = field(default_factory=Counter)
    closed: bool = False

    def __post_init__(self) -> None:
        self._blocks: dict[int, Bytes] = {}
        self._next = _FIRST_ADDRESS
        self._queue: list[Work] = []
        self._done = 0
        self._capturing: list[Work] | None = None

    def attach(self) -> None: ...

    def memory(self) -> Memory:
        used = sum(block.size for block in self._blocks.values())
        return Memory(free=self.total - used, total=self.total)

    def allocate(self, size: int) -> int:
        assert size > 0
        if size > self.memory().free:
            raise OutOfMemoryError(f"{size} bytes")
        address = self._next
        self._next += -(-size // _ALIGNMENT) * _ALIGNMENT + _ALIGNMENT
        self._blocks[address] = np.zeros(size, np.uint8)
        return address

    def pinned(self, size: int) -> Bytes:
        return np.full(size, 0xEE, np.uint8)

    def upload(self, address: int, source: NDArray[Any]) -> None:
        data = np.frombuffer(source.tobytes(), np.uint8)
        self.enqueue(lambda: np.copyto(self.view(address, np.uint8, data.size), data))

    def download(self, target: Bytes, address: int) -> None:
        self.enqueue(lambda: np.copyto(target, self.view(address, np.uint8, target.size)))

    def fill(self, address: int, word: int, count: int) -> None:
        self.enqueue(lambda: self.view(address, np.int32, count).fill(word))

    def launch(
        self, kernel: str, grid: tuple[int, int, int], threads: int, *arguments: Argument
    ) -> None:
        assert threads % 32 == 0
        assert all(grid)
        values = [int(argument.value or 0) for argument in arguments]

        def run() -> None:
            self.launched[kernel] += 1
            KERNELS[kernel](self, grid, *values)

        self.enqueue(run)

    def capture(self, work: Work) -> FakeGraph:
        assert self._capturing is None
        captured: list[Work] = []
        self._capturing = captured
        try:
            work()
        finally:
            self._capturing = None
        return FakeGraph(self, captured)

    def mark(self) -> FakeMark:
        return FakeMark(self)

    def synchronize(self) -> None:
        self.run_until(self._done + len(self._queue))

    def close(self) -> None:
        self.closed = True
        self._blocks.clear()

    def enqueue(self, work: Work) -> None:
        assert not self.closed
        (self._queue if self._capturing is None else self._capturing).append(work)

    @property
    def asked(self) -> int:
        """Pieces of work that were asked for until now."""
        return self._done + len(self._queue)

    def run_until(self, count: int) -> None:
        while self._done < count:
            self._queue.pop(0)()
            self._done += 1

    def view(self, address: int, dtype: Any, count: int) -> NDArray[Any]:
        """Device memory as an array; it must lie within one allocation."""
        size = count * np.dtype(dtype).itemsize
        for base, block in self._blocks.items():
            if base <= address and address + size <= base + block.size:
                return block[address - base : address - base + size].view(dtype)
        raise AssertionError(f"{size} bytes at {address:#x} belong to no allocation")


@dataclass
class FakeMark:
    driver: FakeDriver
    at: int = 0

    def record(self) -> None:
        self.at = self.driver.asked

    def wait(self) -> None:
        self.driver.run_until(self.at)


@dataclass
class FakeGraph:
    driver: FakeDriver
    work: list[Work]
    closed: bool = False

    def launch(self) -> None:
        assert not self.closed
        if self.driver.full:
            self.driver.full -= 1
            raise OutOfMemoryError("0 bytes are free")
        for piece in self.work:
            self.driver.enqueue(piece)

    def close(self) -> None:
        self.closed = True


def _survey(
    d: FakeDriver,
    grid: tuple[int, int, int],
    logits: int,
    vocabulary: int,
    control_at: int,
    pasts: int,
    recipes: int,
    counts: int,
    bans: int,
    seen: int,
) -> None:
    """Here `choose` looks at everything itself."""


def _choose(
    d: FakeDriver,
    grid: tuple[int, int, int],
    logits: int,
    vocabulary: int,
    control_at: int,
    ids: int,
    pasts: int,
    spoiled: int,
    recipes: int,
    counts: int,
    bans: int,
    numbers: int,
    seen: int,
    parts: int,
    results: int,
) -> None:
    control = d.view(control_at, CONTROL, 1)[0]
    for row in range(min(grid[1], control["rows"])):
        slot = int(control["first_slot"]) + row
        past = d.view(pasts + 4 * slot, np.int32, 1)
        length = int(control["length"]) if control["length"] >= 0 else int(past[0]) + 1
        values = d.view(logits + 4 * row * vocabulary, np.float32, vocabulary)
        spoil = d.view(spoiled + 4 * slot, np.uint32, 1)
        finite = bool(np.isfinite(values).all()) and not spoil[0]
        recipe = d.view(recipes + RECIPE.itemsize * slot, RECIPE, 1)[0]
        times = d.view(counts + 4 * slot * vocabulary, np.uint32, vocabulary)
        token = 0
        if finite:
            token = choose_token(
                _choice_of(d, recipe, bans, numbers, slot, vocabulary),
                values,
                Counter({i: int(times[i]) for i in np.flatnonzero(times)}),
                length,
            )
        d.view(results + 8 * slot, np.int32, 2)[:] = (token, finite)
        past[0], spoil[0] = length, 0
        if control["choose"]:
            d.view(ids + 4 * slot, np.int32, 1)[0] = token
            if recipe["penalised"]:
                times[token] += 1


def _choice_of(
    d: FakeDriver, recipe: Any, bans: int, numbers: int, slot: int, vocabulary: int
) -> Choice:
    words = -(-vocabulary // 32)
    mask = d.view(bans + 4 * slot * words, np.uint32, words)
    number = float(d.view(numbers + 8 * slot, np.float64, 1)[0])
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return Choice(
        temperature=float(recipe["temperature"]),
        top_k=int(recipe["top_k"]),
        top_p=float(recipe["top_p"]),
        repetition_penalty=float(recipe["repetition"]) if recipe["penalised"] else 1.0,
        presence_penalty=float(recipe["presence"]),
        frequency_penalty=float(recipe["frequency"]),
        banned=tuple(np.flatnonzero(bits).tolist()),
        banned_until=int(recipe["banned_until"]),
        number=lambda _: number,
    )


def _move_rows(
    d: FakeDriver,
    grid: tuple[int, int, int],
    cache: int,
    half: int,
    slab: int,
    kept: int,
    source: int,
    target: int,
) -> None:
    halves, heads, _ = grid
    for part in range(halves):
        for head in range(heads):
            old, new = (
                d.view(
                    cache + 16 * (part * half + (slot * heads + head) * slab), np.uint8, 16 * kept
                )
                for slot in (source, target)
            )
            new[:] = old


def _move_state(
    d: FakeDriver,
    grid: tuple[int, int, int],
    ids: int,
    pasts: int,
    spoiled: int,
    recipes: int,
    counts: int,
    bans: int,
    vocabulary: int,
    source: int,
    target: int,
) -> None:
    for address, size in (
        (ids, 4),
        (pasts, 4),
        (spoiled, 4),
        (recipes, RECIPE.itemsize),
        (counts, 4 * vocabulary),
        (bans, 4 * -(-vocabulary // 32)),
    ):
        old = d.view(address + source * size, np.uint8, size)
        d.view(address + target * size, np.uint8, size)[:] = old


def _count(
    d: FakeDriver, grid: tuple[int, int, int], counts: int, tokens: int, length: int
) -> None:
    found = d.view(tokens, np.int32, length)
    row = d.view(counts, np.uint32, int(found.max()) + 1)
    np.add.at(row, found, 1)


KERNELS: dict[str, Callable[..., None]] = {
    "survey": _survey,
    "choose": _choose,
    "move_rows": _move_rows,
    "move_state": _move_state,
    "count": _count,
}
