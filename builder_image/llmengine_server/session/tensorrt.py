"""Steps a TensorRT engine of graph contract 2; the device chooses tokens, and feeds them itself.

A decode step is one captured graph: the engine, which puts its new rows into the cache, and the
next token of every slot; so is a chunk of a prompt. The host only starts it, and hears of the
tokens one step later. All memory is taken before the first step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmengine.artifact import Cache, Limits
from llmengine_server.session import Choice, EngineError, Pending, RowLogits
from llmengine_server.session.bounds import check_chunk, check_length, check_step, token_ids
from llmengine_server.session.cuda import Bytes, Driver, Mark
from llmengine_server.session.cuda_arena import ELEMENT_BYTES, Arena
from llmengine_server.session.lengths import SlotLengths
from llmengine_server.session.tensorrt_engine import Engine
from llmengine_server.session.tensorrt_programs import Programs
from llmengine_server.session.tensorrt_state import DeviceState

# One step under way, one that was started after it, one whose tokens are being read.
_RING = 3
_SHORTEST_CHUNK = 16
_GREEDY = Choice()


def chunk_sizes(max_batch_tokens: int) -> tuple[int, ...]:
    """Lengths that prompts' chunks are padded to: powers of 2 from 16 on, and the longest."""
    sizes = []
    size = _SHORTEST_CHUNK
    while size < max_batch_tokens:
        sizes.append(size)
        size *= 2
    return (*sizes, max_batch_tokens)


def step_sizes(cache: Cache, slots: int) -> tuple[int, ...]:
    """The sizes of decode steps that up to `slots` slots need, ascending."""
    enough = next(size for size in cache.batches if size >= slots)
    return tuple(size for size in cache.batches if size <= enough)


class TensorRtSession:
    """A `Session` of `limits.max_batch_size` slots over a loaded engine. Owns engine and driver.

    Raises EngineError for a cache that it cannot serve, and OutOfMemoryError.
    """

    def __init__(
        self, driver: Driver, engine: Engine, *, cache: Cache, limits: Limits, vocabulary: int
    ) -> None:
        _check(cache, limits)
        self._driver = driver
        self._engine = engine
        self._limits = limits
        driver.attach()
        self._lengths = SlotLengths(cache.buckets, limits.max_batch_size)
        self._sizes = step_sizes(cache, limits.max_batch_size)
        self._arena = Arena(driver, cache, self._sizes[-1])
        self._state = DeviceState(driver, cache, limits, vocabulary, self._arena)
        self._programs = Programs(driver, engine, self._state, cache)
        self._steps = {size: self._programs.decode(size) for size in self._sizes}
        self._chunks = {
            size: self._programs.chunk(size) for size in chunk_sizes(limits.max_batch_tokens)
        }
        self._choices = [_GREEDY] * limits.max_batch_size
        self._has_token = [False] * limits.max_batch_size
        self._ring = [_Answers.of(driver, self._state.result_bytes) for _ in range(_RING)]
        self._started = 0
        driver.synchronize()

    @property
    def slots(self) -> int:
        return self._limits.max_batch_size

    @property
    def vocabulary(self) -> int:
        return self._state.vocabulary

    @property
    def max_sequence_length(self) -> int:
        return self._limits.max_sequence_length

    @property
    def max_batch_tokens(self) -> int:
        return self._limits.max_batch_tokens

    @property
    def ahead(self) -> int:
        return 1

    @property
    def arena(self) -> Arena:
        """The rows of all slots, for whoever wants to look at them."""
        return self._arena

    def start_prefill(
        self, slot: int, tokens: Sequence[int], past: int, choice: Choice | None = None
    ) -> Pending:
        """See `Session.start_prefill`."""
        ids = token_ids(tokens, self.vocabulary)
        new = len(ids)
        check_chunk(new, self.max_batch_tokens)
        check_length(past + new, self.max_sequence_length)
        answers = self._free_answers()
        self._driver.attach()
        self._lengths.begin_prefill(slot, past, new)
        self._set_choice(slot, choice or _GREEDY)
        self._send_numbers([(slot, past + new)])
        self._state.set_prompt(slot, ids, past)
        self._chunks[next(size for size in self._chunks if size >= new)].launch()
        self._has_token[slot] = True
        return self._answer(answers, [slot], self._state.prompt_logits, chosen=choice is not None)

    def start_decode(self, tokens: Sequence[int] | None, pasts: Sequence[int]) -> Pending:
        """See `Session.start_decode`."""
        count = len(pasts)
        given = count if tokens is None else len(tokens)
        check_step(given, count, self.slots)
        if tokens is None and not all(self._has_token[:count]):
            raise ValueError("a slot has no token of its own yet: it needs a prompt first")
        check_length(max(pasts) + 1, self.max_sequence_length)
        ids = None if tokens is None else token_ids(tokens, self.vocabulary)
        answers = self._free_answers()
        self._driver.attach()
        self._lengths.begin_decode(pasts)
        self._state.set_rows(count)
        if ids is not None:
            self._state.set_tokens(ids, np.asarray(pasts, np.int32))
        self._send_numbers((slot, past + 1) for slot, past in enumerate(pasts))
        self._steps[next(size for size in self._sizes if size >= count)].launch()
        self._has_token[:count] = [True] * count
        return self._answer(answers, range(count), self._state.logits, chosen=tokens is None)

    def prefill(self, slot: int, tokens: Sequence[int], past: int) -> RowLogits:
        return self.start_prefill(slot, tokens, past).collect()[0]

    def decode(self, tokens: Sequence[int], pasts: Sequence[int]) -> Sequence[RowLogits]:
        return self.start_decode(tokens, pasts).collect()

    def move(self, source: int, target: int, length: int) -> None:
        self._lengths.move(source, target, length)
        if source == target:
            return
        self._driver.attach()
        self._arena.move(source, target, length)
        self._state.move(source, target)
        self._choices[target] = self._choices[source]
        self._has_token[target] = self._has_token[source]

    def zero(self, slot: int) -> None:
        self._driver.attach()
        self._arena.zero(slot)
        self._lengths.release(slot)

    def close(self) -> None:
        self._driver.attach()
        self._driver.synchronize()
        for graph in (*self._steps.values(), *self._chunks.values()):
            graph.close()
        self._programs.close()
        self._engine.close()
        self._driver.close()

    def read_logits(self, step: int, address: int) -> NDArray[np.float32]:
        """The row of logits at `address`, which belongs to the newest step."""
        if step != self._started:
            raise RuntimeError("these logits are gone: another step was started since")
        self._driver.attach()
        self._driver.download(self._state.row, address)
        self._driver.synchronize()
        return self._state.row.view(np.float32).copy()

    def _set_choice(self, slot: int, choice: Choice) -> None:
        if choice is not self._choices[slot]:
            self._choices[slot] = choice
            self._state.set_choice(slot, choice)

    def _send_numbers(self, lengths: Iterable[tuple[int, int]]) -> None:
        """What decides the draws of these slots, by the lengths of their sequences."""
        numbers = {
            slot: self._choices[slot].number(length)
            for slot, length in lengths
            if self._choices[slot].temperature > 0
        }
        if numbers:
            self._state.set_numbers(numbers)

    def _free_answers(self) -> _Answers:
        answers = self._ring[self._started % _RING]
        if answers.awaited:
            raise RuntimeError("too many steps are under way: collect the oldest first")
        return answers

    def _answer(
        self, answers: _Answers, slots: Sequence[int], logits: int, *, chosen: bool
    ) -> Pending:
        self._driver.download(answers.words, self._state.results)
        answers.mark.record()
        answers.awaited = True
        self._started += 1
        places = [
            _Place(
                session=self,
                step=self._started,
                logits=logits + 4 * row * self.vocabulary,
                slot=slot,
                chosen=chosen,
                is_largest=_is_largest(self._choices[slot]),
            )
            for row, slot in enumerate(slots)
        ]
        return _Step(answers, places)


@dataclass
class _Answers:
    """Where a step's results arrive on the host, `[rows, 2]`, and when."""

    words: Bytes
    mark: Mark
    awaited: bool = False

    @classmethod
    def of(cls, driver: Driver, size: int) -> _Answers:
        return cls(driver.pinned(size), driver.mark())


@dataclass(frozen=True, slots=True)
class _Place:
    """A row of a step: its slot, and the address of its logits.

    `chosen`: whether the session was asked for a token; `is_largest`: the token that the device
    chose is that of the largest logit.
    """

    session: TensorRtSession
    step: int
    logits: int
    slot: int
    chosen: bool
    is_largest: bool


class _Step:
    """See `Pending`."""

    def __init__(self, answers: _Answers, places: Sequence[_Place]) -> None:
        self._answers = answers
        self._places = places

    def collect(self) -> Sequence[RowLogits]:
        self._answers.mark.wait()
        results = self._answers.words.view(np.int32).tolist()
        self._answers.awaited = False
        return [
            _Row(place, results[2 * place.slot], bool(results[2 * place.slot + 1]))
            for place in self._places
        ]


class _Row:
    """See `RowLogits`."""

    def __init__(self, place: _Place, token: int, finite: bool) -> None:
        self._place = place
        self._token = token
        self._finite = finite

    def chosen(self) -> int | None:
        return self._token if self._place.chosen else None

    def argmax(self) -> int:
        return self._token if self._place.is_largest else int(self.full().argmax())

    def finite(self) -> bool:
        return self._finite

    def full(self) -> NDArray[np.float32]:
        return self._place.session.read_logits(self._place.step, self._place.logits)


def _is_largest(choice: Choice) -> bool:
    return choice.temperature == 0 and not choice.penalised and not choice.banned


def _check(cache: Cache, limits: Limits) -> None:
    if cache.dtype not in ELEMENT_BYTES:
        raise EngineError(
            f"the engine's cache is of {cache.dtype}; TensorRT takes {', '.join(ELEMENT_BYTES)}"
        )
    if not cache.batches or cache.batches[-1] < limits.max_batch_size:
        raise EngineError(
            f"the engine has decode steps of {list(cache.batches)} slots, and is to serve"
            f" {limits.max_batch_size}: build it anew"
        )
