"""What runs on the device as a whole, captured: decode steps of one size, prompts' chunks of one.

Each has an execution context of its own, for a captured graph is only good as long as its context
is left as it was. They share one scratch, since no two of them ever run at once.
"""

from __future__ import annotations

from ctypes import c_int32, c_void_p

from llmengine.artifact import Cache
from llmengine_server.session.cuda import CHOOSING_THREADS, THREADS, Driver, Graph, survey_parts
from llmengine_server.session.cuda_attention import TABLE_WORDS
from llmengine_server.session.tensorrt_engine import Context, Engine
from llmengine_server.session.tensorrt_state import DeviceState

# Optimization profile of prompts; those of decode steps follow, one for each of `cache.batches`.
PREFILL = 0


class Programs:
    """Makes the programs of one session, over memory that is there already."""

    def __init__(self, driver: Driver, engine: Engine, state: DeviceState, cache: Cache) -> None:
        self._driver = driver
        self._engine = engine
        self._state = state
        self._cache = cache
        self._scratch_bytes = max(engine.scratch_bytes, 256)
        self._scratch = driver.allocate(self._scratch_bytes)
        self._contexts: list[Context] = []

    def decode(self, size: int) -> Graph:
        """A step of `size` slots."""
        state = self._state
        context = self._context(PREFILL + 1 + self._cache.batches.index(size))
        context.bind("input_ids", state.ids, (size, 1))
        context.bind("past_lens", state.pasts, (size,))
        context.bind("new_lens", state.ones, (size,))
        context.bind("cache", state.cache_table, (TABLE_WORDS,))
        context.bind("logits", state.logits)
        return self._capture(context, state.control, state.logits, size)

    def chunk(self, size: int) -> Graph:
        """Up to `size` tokens of one slot's prompt."""
        state = self._state
        context = self._context(PREFILL)
        context.bind("input_ids", state.prompt_ids, (1, size))
        context.bind("past_lens", state.prompt_past, (1,))
        context.bind("new_lens", state.prompt_new, (1,))
        context.bind("cache", state.prompt_table, (TABLE_WORDS,))
        context.bind("logits", state.prompt_logits)
        return self._capture(context, state.prompt_control, state.prompt_logits, 1)

    def close(self) -> None:
        """Contexts end before the engine does."""
        self._contexts.clear()

    def _context(self, profile: int) -> Context:
        context = self._engine.context(
            profile, self._scratch, self._scratch_bytes, self._driver.stream
        )
        self._contexts.append(context)
        return context

    def _capture(self, context: Context, control: int, logits: int, rows: int) -> Graph:
        def step() -> None:
            context.run(self._driver.stream)
            self._choose(control, logits, rows)

        # A first run settles what TensorRT puts off until then; no row counts yet.
        context.run(self._driver.stream)
        return self._driver.capture(step)

    def _choose(self, control: int, logits: int, rows: int) -> None:
        state = self._state
        parts = survey_parts(state.vocabulary)
        row = (c_void_p(logits), c_int32(state.vocabulary), c_void_p(control))
        self._driver.launch(
            "survey",
            (parts, rows, 1),
            THREADS,
            *row,
            c_void_p(state.pasts),
            c_void_p(state.recipes),
            c_void_p(state.counts),
            c_void_p(state.bans),
            c_void_p(state.seen),
        )
        self._driver.launch(
            "choose",
            (1, rows, 1),
            CHOOSING_THREADS,
            *row,
            c_void_p(state.ids),
            c_void_p(state.pasts),
            c_void_p(state.spoiled),
            c_void_p(state.recipes),
            c_void_p(state.counts),
            c_void_p(state.bans),
            c_void_p(state.numbers),
            c_void_p(state.seen),
            c_int32(parts),
            c_void_p(state.results),
        )
