"""ONNX Runtime on a CPU: the engine is the graph itself, beside the model's own weight files.

Nothing is compiled ahead: an optimised model that ONNX Runtime stores loads no faster, and holds
the weights twice.
"""

from __future__ import annotations

import math
import platform
from pathlib import Path

from llmengine.api.v1alpha1 import CacheQuantization, DType, WeightQuantization
from llmengine.architecture import Architecture
from llmengine.artifact import Cache, Device
from llmengine.requests import BuildReason
from llmengine_builder.backends import Backend, CompiledEngine, CompileOptions, Report
from llmengine_builder.errors import UnsupportedError, VerificationError, WrongDeviceError
from llmengine_builder.graph import Model
from llmengine_builder.speed import measured_rows
from llmengine_builder.verify import LONGEST_CHUNK, LONGEST_PROMPT, SLOTS
from llmengine_server.session import EngineError, Session
from llmengine_server.session.onnxruntime import VERSION, OnnxRuntimeSession, start_runtime
from llmengine_server.session.opening import GRAPH, WEIGHTS

_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
# Python, numpy, ONNX Runtime and its copies of small things.
_PROCESS_BYTES = 256 * 1024 * 1024
_SHORTEST_BUCKET = 128
# Measured by tests/bench/session.py: a step costs what the cache holds, growing costs little.
_GROWTH = 1.5


class _OnnxRuntime:
    @property
    def version(self) -> str:
        return VERSION

    @property
    def measures(self) -> bool:
        return False

    def check(self, options: CompileOptions) -> None:
        if options.dtype is not DType.FLOAT32:
            raise UnsupportedError(
                BuildReason.OPTION_UNSUPPORTED,
                f"onnxruntime on a CPU computes in float32, not in {options.dtype.value}: set"
                " spec.engine.dtype to auto or float32",
            )
        quantization = options.quantization
        for field, value, none in (
            ("weights", quantization.weights, WeightQuantization.NONE),
            ("kvCache", quantization.kv_cache, CacheQuantization.NONE),
        ):
            if value is not none:
                raise UnsupportedError(
                    BuildReason.OPTION_UNSUPPORTED,
                    f"onnxruntime on a CPU does not quantize to {value.value}: set"
                    f" spec.engine.quantization.{field} to none",
                )

    def device(self, architecture: Architecture) -> Device:
        if not architecture.is_cpu:
            raise UnsupportedError(
                BuildReason.OPTION_UNSUPPORTED,
                f"onnxruntime builds for amd64 and arm64, not for {architecture}: use a runtime"
                " whose backend builds for GPUs",
            )
        machine = platform.machine().lower()
        if _MACHINES.get(machine) != str(architecture):
            raise WrongDeviceError(
                BuildReason.WRONG_DEVICE,
                f"the build is for {architecture}, but its node is a {machine}: correct the"
                " node's label kubernetes.io/arch or the engine's nodeSelector",
            )
        return Device(name=_cpu_name() or machine)

    def host_bytes(self, model: Model, options: CompileOptions) -> int:
        """All weights in float32, and what stands beside them while they are loaded and verified.

        The largest tensor is there twice while it is rearranged for products. Measured by
        tests/bench/graph.py: this is a quarter more than a build of SmolLM2 takes.
        """
        decoder = model.decoder
        tokens = min(options.limits.max_batch_tokens, LONGEST_CHUNK)
        rows = min(options.limits.max_sequence_length, 2 * LONGEST_PROMPT)
        sizes = [4 * math.prod(t.shape) for t in model.checkpoint.tensors.values()]
        measuring = measured_rows(
            cache_buckets(options.limits.max_sequence_length), options.limits.max_batch_size
        )
        held = max(SLOTS * rows, measuring)
        cache = 2 * held * decoder.layers * decoder.kv_heads * decoder.head_dim * 4
        scores = 4 * decoder.heads * tokens * (tokens + rows) * 4
        activations = 8 * tokens * (decoder.hidden + decoder.intermediate) * 4
        return _PROCESS_BYTES + sum(sizes) + max(sizes) + cache + scores + activations

    def disk_bytes(self, model: Model, options: CompileOptions) -> int:
        """The graph is small, and the weights stay where they are."""
        return 0

    def check_model(self, model: Model, options: CompileOptions, device: Device) -> None:
        """Memory of the host is all that a CPU needs."""

    def compile(
        self,
        model: Model,
        options: CompileOptions,
        folder: Path,
        report: Report,
        timing: bytes = b"",
    ) -> CompiledEngine:
        self.check(options)
        decoder, checkpoint = model.decoder, model.checkpoint
        decoder.check_length(options.limits.max_sequence_length)
        graph = folder / GRAPH
        graph.write_bytes(model.graph(options.dtype, "inputs"))
        report(100)
        return CompiledEngine(
            files={GRAPH: graph}
            | {f"{WEIGHTS}/{name}": checkpoint.folder / name for name in checkpoint.files},
            cache=Cache(
                layout="plain",
                dtype=options.dtype.value,
                layers=decoder.layers,
                kv_heads=decoder.kv_heads,
                head_dim=decoder.head_dim,
                buckets=cache_buckets(options.limits.max_sequence_length),
            ),
            limits=options.limits,
            model_type=decoder.model_type,
            vocabulary=decoder.vocabulary,
        )

    def open(self, engine: CompiledEngine, slots: int) -> Session:
        graph = engine.files[GRAPH]
        weights = next(path for name, path in engine.files.items() if name != GRAPH).parent
        try:
            runtime = start_runtime(graph.read_bytes(), weights)
        except EngineError as error:
            raise VerificationError(BuildReason.VERIFICATION_FAILED, str(error)) from error
        return OnnxRuntimeSession(
            runtime,
            cache=engine.cache,
            limits=engine.limits.model_copy(update={"max_batch_size": slots}),
            vocabulary=engine.vocabulary,
        )


BACKEND: Backend = _OnnxRuntime()


def cache_buckets(max_sequence_length: int, growth: float = _GROWTH) -> tuple[int, ...]:
    """Lengths that grow by `growth` from 128 on, in multiples of 64; the last is the longest."""
    buckets = []
    bucket = _SHORTEST_BUCKET
    while bucket < max_sequence_length:
        buckets.append(bucket)
        bucket = math.ceil(bucket * growth / 64) * 64
    return (*buckets, max_sequence_length)


def _cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The model name of the first CPU; empty where the kernel gives none, as on most arm64."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return ""
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "")
