"""What a device keeps of every slot beside its cache rows, and the buffers that steps run on.

The layouts of `Recipe` and `Control` are those of cuda_kernels.cu.
"""

from __future__ import annotations

from ctypes import c_int32, c_void_p
from functools import partial

import numpy as np
from numpy.typing import NDArray

from llmengine.artifact import Cache, Limits
from llmengine_server.session import Choice
from llmengine_server.session.cuda import THREADS, Driver, survey_parts
from llmengine_server.session.cuda_arena import Arena
from llmengine_server.session.cuda_attention import LIVE_WORD, TABLE_WORDS, cache_table, heads_of

RECIPE = np.dtype(
    [
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("repetition", np.float32),
        ("presence", np.float32),
        ("frequency", np.float32),
        ("top_k", np.int32),
        ("banned_until", np.int32),
        ("penalised", np.int32),
    ]
)
CONTROL = np.dtype(
    [
        ("first_slot", np.int32),
        ("rows", np.int32),
        ("choose", np.int32),
        ("length", np.int32),
    ]
)
_ROWS_OFFSET = 4
# Of tensors within one buffer, in words of 32 bits: TensorRT wants 256 bytes.
_ALIGNED_WORDS = 64


class DeviceState:
    """Memory of the `rows` slots of an arena; addresses are those of device memory.

    `ids`, `pasts`, `ones` `[rows]` int32: what a decode step reads: each slot's newest token, its
    cache rows, and 1. `logits` `[rows, vocabulary]` float32; `prompt_logits` `[vocabulary]`.
    `cache_table`, `prompt_table`: what the engine is told of the cache. `results` `[rows, 2]`
    int32: the token that was chosen last, and whether its row was finite. Raises
    OutOfMemoryError.
    """

    def __init__(
        self,
        driver: Driver,
        cache: Cache,
        limits: Limits,
        vocabulary: int,
        arena: Arena,
    ) -> None:
        self._driver = driver
        self.vocabulary = vocabulary
        self.rows = rows = arena.slots
        take = driver.allocate
        self.ids, self.pasts, self.ones = take(4 * rows), take(4 * rows), take(4 * rows)
        self.spoiled = take(4 * rows)
        self.results = take(8 * rows)
        self.result_bytes = 8 * rows
        self.logits, self.prompt_logits = take(4 * rows * vocabulary), take(4 * vocabulary)
        self.seen = take(8 * rows * survey_parts(vocabulary))
        self.recipes = take(RECIPE.itemsize * rows)
        self.counts = take(4 * rows * vocabulary)
        self._ban_words = -(-vocabulary // 32)
        self.bans = take(4 * rows * self._ban_words)
        self.numbers = take(8 * rows)
        self._seen = take(4 * limits.max_sequence_length)
        self.control = take(CONTROL.itemsize)
        # A prompt's control, past, new, table and ids, which arrive in one copy.
        self._prompt = take(4 * (4 * _ALIGNED_WORDS + limits.max_batch_tokens))
        self.row = driver.pinned(4 * vocabulary)
        self._host_numbers = np.zeros(rows)
        driver.fill(self.ones, 1, rows)
        for slot in range(rows):
            self.set_choice(slot, Choice())
        self._live = 0
        driver.upload(self.control, np.array([(0, 0, 1, -1)], CONTROL))
        heads = heads_of(cache)
        self._table = partial(
            cache_table,
            rows=arena.address,
            layer_stride=arena.layer_stride,
            value_offset=arena.value_offset,
            length=arena.length,
            spoiled=self.spoiled,
            partial=take(heads.partial_bytes(rows)),
            arrived=take(heads.arrived_bytes(rows)),
        )
        self.cache_table = take(8 * TABLE_WORDS)
        driver.upload(self.cache_table, self._table(first_slot=0, live=0))

    @property
    def prompt_control(self) -> int:
        return self._prompt

    @property
    def prompt_past(self) -> int:
        return self._prompt + 4 * _ALIGNED_WORDS

    @property
    def prompt_new(self) -> int:
        return self._prompt + 8 * _ALIGNED_WORDS

    @property
    def prompt_table(self) -> int:
        return self._prompt + 12 * _ALIGNED_WORDS

    @property
    def prompt_ids(self) -> int:
        return self._prompt + 16 * _ALIGNED_WORDS

    def set_prompt(self, slot: int, ids: NDArray[np.int32], past: int) -> None:
        """A chunk of a prompt that is to run: `ids` after the first `past` tokens of a slot."""
        new = len(ids)
        words = np.zeros(4 * _ALIGNED_WORDS + new, np.int32)
        control = np.array([(slot, 1, 1, past + new)], CONTROL)
        words[: control.nbytes // 4] = control.view(np.int32)
        words[_ALIGNED_WORDS] = past
        words[2 * _ALIGNED_WORDS] = new
        table = self._table(first_slot=slot, live=1).view(np.int32)
        words[3 * _ALIGNED_WORDS :][: len(table)] = table
        words[4 * _ALIGNED_WORDS :] = ids
        self._driver.upload(self._prompt, words)

    def set_rows(self, count: int) -> None:
        """How many slots the next decode steps are of."""
        if count != self._live:
            self._driver.fill(self.control + _ROWS_OFFSET, count, 1)
            self._driver.fill(self.cache_table + 8 * LIVE_WORD, count, 1)
            self._live = count

    def set_tokens(self, ids: NDArray[np.int32], pasts: NDArray[np.int32]) -> None:
        """Other tokens for the next decode step than those that were chosen."""
        self._driver.upload(self.ids, ids)
        self._driver.upload(self.pasts, pasts)

    def set_choice(self, slot: int, choice: Choice) -> None:
        """How the tokens of a slot are chosen from now on."""
        recipe = np.array(
            [
                (
                    choice.temperature,
                    choice.top_p,
                    choice.repetition_penalty,
                    choice.presence_penalty,
                    choice.frequency_penalty,
                    choice.top_k,
                    choice.banned_until if choice.banned else 0,
                    choice.penalised,
                )
            ],
            RECIPE,
        )
        self._driver.upload(self.recipes + slot * RECIPE.itemsize, recipe)
        if choice.banned:
            bans = np.zeros(self._ban_words, np.uint32)
            for token in choice.banned:
                bans[token >> 5] |= np.uint32(1 << (token & 31))
            self._driver.upload(self.bans + 4 * slot * self._ban_words, bans)
        if choice.penalised:
            self._count(slot, np.asarray(choice.seen, np.int32))

    def set_numbers(self, numbers: dict[int, float]) -> None:
        """What decides the next draw of these slots."""
        for slot, number in numbers.items():
            self._host_numbers[slot] = number
        self._driver.upload(self.numbers, self._host_numbers)

    def move(self, source: int, target: int) -> None:
        """All that is kept of a slot, to another one."""
        self._driver.launch(
            "move_state",
            (1, 1, 1),
            THREADS,
            c_void_p(self.ids),
            c_void_p(self.pasts),
            c_void_p(self.spoiled),
            c_void_p(self.recipes),
            c_void_p(self.counts),
            c_void_p(self.bans),
            c_int32(self.vocabulary),
            c_int32(source),
            c_int32(target),
        )

    def _count(self, slot: int, tokens: NDArray[np.int32]) -> None:
        counts = self.counts + 4 * slot * self.vocabulary
        self._driver.fill(counts, 0, self.vocabulary)
        if not len(tokens):
            return
        self._driver.upload(self._seen, tokens)
        self._driver.launch(
            "count",
            (-(-len(tokens) // THREADS), 1, 1),
            THREADS,
            c_void_p(counts),
            c_void_p(self._seen),
            c_int32(len(tokens)),
        )
