"""What runs on the device as a whole: decode steps of one size and cache length, prompts' chunks.

Each has an execution context of its own, for a captured graph is only good as long as its context
is left as it was. They share one scratch, since no two of them ever run at once.
"""

from __future__ import annotations

from ctypes import c_int32, c_uint32, c_uint64, c_void_p

from llmengine.artifact import Cache
from llmengine_server.session.cuda import CHOOSING_THREADS, THREADS, Driver, Graph
from llmengine_server.session.cuda_arena import ELEMENT_BYTES, EXPONENTS, Arena
from llmengine_server.session.tensorrt_engine import Context, Engine
from llmengine_server.session.tensorrt_state import DeviceState

# Optimization profile of prompts; those of decode steps follow, one for each of `cache.batches`.
PREFILL = 0


class Programs:
    """Makes the programs of one session, over memory that is there already."""

    def __init__(
        self, driver: Driver, engine: Engine, state: DeviceState, arena: Arena, cache: Cache
    ) -> None:
        self._driver = driver
        self._engine = engine
        self._state = state
        self._arena = arena
        self._cache = cache
        self._scratch_bytes = max(engine.scratch_bytes, 256)
        self._scratch = driver.allocate(self._scratch_bytes)
        self._contexts: list[Context] = []

    def decode(self, size: int, length: int) -> Graph:
        """A step of `size` slots over a cache of `length` rows."""
        state, cache = self._state, self._cache
        context = self._context(PREFILL + 1 + cache.batches.index(size))
        context.bind("input_ids", state.ids, (size, 1))
        context.bind("past_lens", state.pasts, (size,))
        context.bind("new_lens", state.ones, (size,))
        for layer in range(cache.layers):
            keys, values = self._arena.keys(layer), self._arena.values(layer)
            self._bind_past(context, layer, keys, values, (size, length))
        self._bind_outputs(context, state.logits)

        def step() -> None:
            context.run(self._driver.stream)
            self._scatter(state.control, size, 1, length)
            self._choose(state.control, state.logits, size)

        # A first run settles what TensorRT puts off until then; its results go nowhere.
        context.run(self._driver.stream)
        return self._driver.capture(step)

    def first_chunk(self, size: int) -> FirstChunk:
        """A prompt's beginning of at most `size` tokens, for any slot."""
        context = self._context(PREFILL)
        self._bind_prompt(context, size)
        self._bind_no_past(context)
        context.run(self._driver.stream)
        graph = self._driver.capture(lambda: context.run(self._driver.stream))
        return FirstChunk(self, graph, size)

    def any_chunk(self) -> AnyChunk:
        """Whatever has no graph of its own."""
        return AnyChunk(self, self._context(PREFILL))

    def finish_chunk(self, size: int) -> None:
        """What follows the engine's run: rows into the cache, and a token."""
        state = self._state
        self._scatter(state.prompt_control, 1, size, self._arena.length)
        self._choose(state.prompt_control, state.prompt_logits, 1)

    def bind_chunk(self, context: Context, slot: int, size: int, *, fresh: bool) -> None:
        self._bind_prompt(context, size)
        if fresh:
            self._bind_no_past(context)
            return
        for layer in range(self._cache.layers):
            keys, values = self._arena.keys(layer, slot), self._arena.values(layer, slot)
            self._bind_past(context, layer, keys, values, (1, self._arena.length))

    def run(self, context: Context) -> None:
        context.run(self._driver.stream)

    def close(self) -> None:
        """Contexts end before the engine does."""
        self._contexts.clear()

    def _context(self, profile: int) -> Context:
        context = self._engine.context(
            profile, self._scratch, self._scratch_bytes, self._driver.stream
        )
        self._contexts.append(context)
        return context

    def _bind_prompt(self, context: Context, size: int) -> None:
        state = self._state
        context.bind("input_ids", state.prompt_ids, (1, size))
        context.bind("past_lens", state.prompt_past, (1,))
        context.bind("new_lens", state.prompt_new, (1,))
        self._bind_outputs(context, state.prompt_logits)

    def _bind_no_past(self, context: Context) -> None:
        nothing = self._state.no_past
        for layer in range(self._cache.layers):
            self._bind_past(context, layer, nothing, nothing, (1, self._cache.buckets[0]))

    def _bind_past(
        self, context: Context, layer: int, keys: int, values: int, shape: tuple[int, int]
    ) -> None:
        (rows, length), cache = shape, self._cache
        context.bind(f"k_past_{layer}", keys, (rows, cache.kv_heads, cache.head_dim, length))
        context.bind(f"v_past_{layer}", values, (rows, cache.kv_heads, length, cache.head_dim))

    def _bind_outputs(self, context: Context, logits: int) -> None:
        context.bind("logits", logits)
        context.bind("k_new", self._state.new_keys)
        context.bind("v_new", self._state.new_values)

    def _scatter(self, control: int, rows: int, tokens: int, length: int) -> None:
        state, cache, arena = self._state, self._cache, self._arena
        self._driver.launch(
            f"scatter_{ELEMENT_BYTES[cache.dtype]}",
            (rows, 2 * cache.layers, cache.kv_heads),
            THREADS,
            c_void_p(state.new_keys),
            c_void_p(state.new_values),
            c_void_p(arena.address),
            c_uint64(arena.layer_stride),
            c_uint64(arena.value_offset),
            c_int32(length),
            c_int32(tokens),
            c_int32(cache.head_dim),
            c_void_p(control),
            c_void_p(state.pasts),
            c_void_p(state.spoiled),
            c_uint32(EXPONENTS[cache.dtype]),
        )

    def _choose(self, control: int, logits: int, rows: int) -> None:
        state = self._state
        self._driver.launch(
            "choose",
            (rows, 1, 1),
            CHOOSING_THREADS,
            c_void_p(logits),
            c_int32(state.vocabulary),
            c_void_p(control),
            c_void_p(state.ids),
            c_void_p(state.pasts),
            c_void_p(state.spoiled),
            c_void_p(state.recipes),
            c_void_p(state.counts),
            c_void_p(state.bans),
            c_void_p(state.numbers),
            c_void_p(state.results),
        )


class FirstChunk:
    """A captured run; the cache's length, which a graph would hold on to, comes after it."""

    def __init__(self, programs: Programs, graph: Graph, size: int) -> None:
        self._programs = programs
        self._graph = graph
        self._size = size

    def launch(self) -> None:
        self._graph.launch()
        self._programs.finish_chunk(self._size)

    def close(self) -> None:
        self._graph.close()


class AnyChunk:
    """A run whose shapes and addresses are bound anew each time."""

    def __init__(self, programs: Programs, context: Context) -> None:
        self._programs = programs
        self._context = context

    def launch(self, slot: int, size: int, *, fresh: bool) -> None:
        self._programs.bind_chunk(self._context, slot, size, fresh=fresh)
        self._programs.run(self._context)
        self._programs.finish_chunk(size)
