"""Steps a graph of contract 1 with ONNX Runtime on the CPU, its KV cache in numpy arrays.

ONNX Runtime reads the cache where it lies and writes new rows and logits into arrays that are kept
from step to step: nothing is copied but the new rows into their slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from llmengine.artifact import Cache, Limits
from llmengine_server.session import Choice, Done, EngineError, Pending, RowLogits
from llmengine_server.session.bounds import check_chunk, check_length, check_step, token_ids
from llmengine_server.session.cache import KvCache
from llmengine_server.session.threads import usable_cpus

# A server tells nobody of what it serves.
ort.disable_telemetry_events()

VERSION: str = ort.__version__
_OUTPUTS = ["logits", "k_new", "v_new"]


def start_runtime(graph: bytes, weights: Path, threads: int | None = None) -> ort.InferenceSession:
    """Load a graph whose weights are files of the folder `weights`.

    `threads` of a step; None takes as many as the container may use. Raises EngineError when
    ONNX Runtime cannot load it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cpus()
    options.inter_op_num_threads = 1
    # A plan of memory for each shape: prompts have hundreds of shapes, and their plans add up.
    options.enable_mem_pattern = False
    for key, value in (
        ("session.model_external_initializers_file_folder_path", str(weights)),
        # Threads that wait in a loop make a step up to a fifth faster on idle CPUs, and half
        # as fast where other processes want them too: containers share their CPUs.
        ("session.intra_op.allow_spinning", "0"),
        # Weights are cast once, at load. The default leaves casts over 1 GiB to every step.
        ("optimization.constant_folding_max_output_size_in_bytes", "0"),
    ):
        options.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises classes that it does not export
        raise EngineError(f"ONNX Runtime {VERSION} cannot load the engine: {error}") from error


class OnnxRuntimeSession:
    """A `Session` of `limits.max_batch_size` slots over a loaded runtime; see `start_runtime`.

    Raises EngineError for a cache of another layout or dtype than plain float32.
    """

    def __init__(
        self, runtime: ort.InferenceSession, *, cache: Cache, limits: Limits, vocabulary: int
    ) -> None:
        if (cache.layout, cache.dtype) != ("plain", "float32"):
            raise EngineError(
                f"the engine's cache is {cache.layout} {cache.dtype}; ONNX Runtime on a CPU takes"
                " plain float32"
            )
        self._runtime = runtime
        self._limits = limits
        self._vocabulary = vocabulary
        self._layers = cache.layers
        self._row = (cache.kv_heads, 1, cache.head_dim)
        self._steps: dict[int, _Step] = {}
        self._cache = KvCache(cache, limits.max_batch_size, let_go=self._steps.clear)

    @property
    def slots(self) -> int:
        return self._limits.max_batch_size

    @property
    def vocabulary(self) -> int:
        return self._vocabulary

    @property
    def max_sequence_length(self) -> int:
        return self._limits.max_sequence_length

    @property
    def max_batch_tokens(self) -> int:
        return self._limits.max_batch_tokens

    @property
    def ahead(self) -> int:
        return 0

    @property
    def cache(self) -> KvCache:
        """The rows of all slots, for whoever wants to look at them."""
        return self._cache

    def start_prefill(
        self, slot: int, tokens: Sequence[int], past: int, choice: Choice | None = None
    ) -> Pending:
        return Done([self.prefill(slot, tokens, past)])

    def start_decode(self, tokens: Sequence[int] | None, pasts: Sequence[int]) -> Pending:
        if tokens is None:
            raise ValueError("this session chooses no tokens: give those that enter the slots")
        return Done(self.decode(tokens, pasts))

    def prefill(self, slot: int, tokens: Sequence[int], past: int) -> RowLogits:
        """See `Session.prefill`. The logits stay valid for ever."""
        ids = token_ids(tokens, self.vocabulary)
        check_chunk(len(ids), self.max_batch_tokens)
        check_length(past + len(ids), self.max_sequence_length)
        self._cache.begin_prefill(slot, past, len(ids))
        keys, values = self._cache.past_of(slot, past, len(ids))
        feeds = {
            "input_ids": ids[np.newaxis],
            "past_lens": np.array([past], np.int32),
            "new_lens": np.array([len(ids)], np.int32),
        } | _past_inputs(keys, values)
        logits, new_keys, new_values = self._runtime.run(_OUTPUTS, feeds)
        self._cache.put(slot, past, new_keys[:, 0], new_values[:, 0])
        return Row(logits[0])

    def decode(self, tokens: Sequence[int], pasts: Sequence[int]) -> Sequence[RowLogits]:
        """See `Session.decode`. The logits stay valid until the next decode."""
        check_step(len(tokens), len(pasts), self.slots)
        check_length(max(pasts) + 1, self.max_sequence_length)
        ids = token_ids(tokens, self.vocabulary)
        self._cache.begin_decode(pasts)
        step = self._step(len(ids))
        step.ids[:, 0] = ids
        step.pasts[:] = pasts
        self._runtime.run_with_iobinding(step.binding)
        self._cache.append(pasts, step.keys, step.values)
        return [Row(row) for row in step.logits]

    def move(self, source: int, target: int, length: int) -> None:
        self._cache.move(source, target, length)

    def zero(self, slot: int) -> None:
        self._cache.zero(slot)

    def close(self) -> None:
        """Nothing to do: memory goes with the session."""

    def _step(self, batch: int) -> _Step:
        if batch not in self._steps:
            keys = [key[:batch] for key in self._cache.keys]
            values = [value[:batch] for value in self._cache.values]
            self._steps[batch] = _Step(
                self._runtime.io_binding(),
                _past_inputs(keys, values),
                np.empty((batch, self._vocabulary), np.float32),
                (self._layers, batch, *self._row),
            )
        return self._steps[batch]


class _Step:
    """The memory of a decode step of one batch size, bound once."""

    def __init__(
        self,
        binding: Any,
        past: dict[str, NDArray[np.float32]],
        logits: NDArray[np.float32],
        rows: tuple[int, ...],
    ) -> None:
        batch = len(logits)
        self.binding = binding
        self.ids = np.zeros((batch, 1), np.int32)
        self.pasts = np.zeros(batch, np.int32)
        self.logits = logits
        self.keys = np.zeros(rows, np.float32)
        self.values = np.zeros(rows, np.float32)
        inputs: dict[str, NDArray[Any]] = {
            "input_ids": self.ids,
            "past_lens": self.pasts,
            "new_lens": np.ones(batch, np.int32),
            **past,
        }
        outputs = dict(zip(_OUTPUTS, (self.logits, self.keys, self.values), strict=True))
        # An OrtValue borrows the array's memory.
        self._borrowed = [*inputs.values(), *outputs.values()]
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))


class Row:
    """Logits of one sequence in host memory."""

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self._logits = logits

    def chosen(self) -> int | None:
        return None

    def argmax(self) -> int:
        return int(self._logits.argmax())

    def finite(self) -> bool:
        return bool(np.isfinite(self._logits).all())

    def full(self) -> NDArray[np.float32]:
        return self._logits.copy()


def _past_inputs(
    keys: Sequence[NDArray[np.float32]], values: Sequence[NDArray[np.float32]]
) -> dict[str, NDArray[Any]]:
    inputs: dict[str, NDArray[Any]] = {}
    for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
        inputs[f"k_past_{layer}"] = key
        inputs[f"v_past_{layer}"] = value
    return inputs
