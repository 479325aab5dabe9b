"""TensorRT on an NVIDIA GPU: the engine is a plan that holds the weights.

The GPU itself says whether it is the one that the build is for, and computes what is verified.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from llmengine.api.v1alpha1 import CacheQuantization, DType, WeightQuantization
from llmengine.architecture import Architecture
from llmengine.artifact import Cache, Device, Footprint, Limits
from llmengine.quantity import GIB, MIB, readable
from llmengine.requests import BuildReason
from llmengine_builder.backends import Backend, CompiledEngine, CompileOptions, Report
from llmengine_builder.backends.tensorrt_compiler import Order
from llmengine_builder.backends.tensorrt_process import run_compiler
from llmengine_builder.backends.tensorrt_shapes import (
    activation_bytes,
    cache_length,
    decode_batches,
    profiles,
)
from llmengine_builder.backends.tensorrt_weights import STORED, prepared, prepared_bytes
from llmengine_builder.errors import (
    BadInputError,
    UnsupportedError,
    VerificationError,
    WrongDeviceError,
)
from llmengine_builder.graph import Model
from llmengine_server.session import EngineError, Session, device
from llmengine_server.session.cuda_arena import ELEMENT_BYTES
from llmengine_server.session.opening import PLAN, open_plan
from llmengine_server.session.tensorrt_library import installed_version, load_tensorrt
from llmengine_server.session.tensorrt_memory import Needs, check_memory

# A plan that is larger holds weights more than once: some profile wanted them laid out anew.
_LARGEST_PLAN = 1.15
# Kernels, which even the smallest plan has; and weights laid out twice of models so small that it
# does not matter: SmolLM2-135M's are on an H200 (481 MiB of plan for 311), and not on an H100.
_PLAN_CODE = 256 * MIB
# Numbers of 16 bits that one instruction reads.
_HEAD_STEP = 8
# Of memory, in multiples of the weights, and beside them. Measured by tests/gpu on an H100 with
# TensorRT 10.6, models of 0.27, 2.5 and 16 GB: host 2.0 x + 6.7 GiB, GPU 1.0 x + 2.0 GiB.
_HOST_WEIGHTS = 2.5
_HOST_BYTES = 7 * GIB
_DEVICE_WEIGHTS = 1.5
_DEVICE_BYTES = 2 * GIB


class _TensorRt:
    def __init__(self, gpus: device.Gpus) -> None:
        self._gpus = gpus

    @property
    def version(self) -> str:
        return installed_version() or "none"

    @property
    def measures(self) -> bool:
        return True

    def check(self, options: CompileOptions) -> None:
        if options.portable and not _compiles_for_capability():
            raise UnsupportedError(
                BuildReason.OPTION_UNSUPPORTED,
                f"TensorRT {self.version} compiles for one model of GPU only; engines for all of a"
                " compute capability take 10.9: set spec.engine.portability to Device, or use a"
                " newer runtime",
            )
        quantization = options.quantization
        for field, value, none in (
            ("weights", quantization.weights, WeightQuantization.NONE),
            ("kvCache", quantization.kv_cache, CacheQuantization.NONE),
        ):
            if value is not none:
                raise UnsupportedError(
                    BuildReason.OPTION_UNSUPPORTED,
                    f"tensorrt does not quantize to {value.value} in this release: set"
                    f" spec.engine.quantization.{field} to none",
                )

    def device(self, architecture: Architecture) -> Device:
        if architecture.is_cpu:
            raise UnsupportedError(
                BuildReason.OPTION_UNSUPPORTED,
                f"tensorrt builds for NVIDIA GPUs, not for {architecture}: use a runtime whose"
                " backend builds for CPUs",
            )
        try:
            return device.find_gpu(self._gpus, architecture).record()
        except device.WrongDeviceError as error:
            raise WrongDeviceError(BuildReason.WRONG_DEVICE, str(error)) from error

    def host_bytes(self, model: Model, options: CompileOptions) -> int:
        return int(_HOST_WEIGHTS * _Size.of(model, options).weights) + _HOST_BYTES

    def disk_bytes(self, model: Model, options: CompileOptions) -> int:
        size = _Size.of(model, options)
        return int(_LARGEST_PLAN * size.plan) + _PLAN_CODE + prepared_bytes(model, options.dtype)

    def check_model(self, model: Model, options: CompileOptions, device: Device) -> None:
        if options.dtype is DType.BFLOAT16 and _capability(device) < (8, 0):
            raise UnsupportedError(
                BuildReason.OPTION_UNSUPPORTED,
                f"{device.name} does not compute in bfloat16, which takes compute capability 8.0:"
                " set spec.engine.dtype to float16, or to auto",
            )
        if model.decoder.head_dim % _HEAD_STEP:
            raise UnsupportedError(
                BuildReason.MODEL_UNSUPPORTED,
                f"the model has heads of {model.decoder.head_dim} numbers, and tensorrt takes"
                f" multiples of {_HEAD_STEP} in this release",
            )
        size = _Size.of(model, options)
        memory = device.memory_bytes or 0
        try:
            check_memory(_needs(model, options, size.plan), device.name, memory)
        except EngineError as error:
            raise BadInputError(BuildReason.GPU_TOO_SMALL, str(error)) from error
        building = int(_DEVICE_WEIGHTS * size.weights) + _DEVICE_BYTES
        if building > memory:
            raise BadInputError(
                BuildReason.GPU_TOO_SMALL,
                f"the build needs {readable(building)} of GPU memory, but {device.name} has"
                f" {readable(memory)}: build for a GPU with more memory",
            )

    def compile(
        self,
        model: Model,
        options: CompileOptions,
        folder: Path,
        report: Report,
        timing: bytes = b"",
    ) -> CompiledEngine:
        self.check(options)
        decoder = model.decoder
        decoder.check_length(options.limits.max_sequence_length)
        limits, cache = _limits(options), _cache(model, options)
        stored = prepared(model, options.dtype, folder / "weights")
        order = Order(
            graph=str(folder / "graph.onnx"),
            weights=str(stored.checkpoint.folder),
            plan=str(folder / PLAN),
            timing=str(folder / "timing"),
            profiles=tuple(profiles(cache, limits)),
            portable=options.portable,
        )
        Path(order.graph).write_bytes(stored.graph(options.dtype, "address"))
        Path(order.timing).write_bytes(timing)
        result = run_compiler(order, self.version, report)
        shutil.rmtree(folder / "weights", ignore_errors=True)
        plan_bytes = Path(order.plan).stat().st_size
        _check_plan(plan_bytes, _Size.of(model, options))
        # The needs are reckoned; that the GPU here is large enough the verification shows.
        serving = min(_needs(model, options, plan_bytes).gpu, self._gpus.list()[0].memory_bytes)
        return CompiledEngine(
            files={PLAN: Path(order.plan)},
            cache=cache,
            limits=limits,
            model_type=decoder.model_type,
            vocabulary=decoder.vocabulary,
            footprint=Footprint(
                host_bytes=result.host_bytes,
                device_bytes=result.device_bytes,
                serving_device_bytes=serving,
            ),
            warnings=_warnings(model, options),
            timing=Path(order.timing).read_bytes(),
        )

    def open(self, engine: CompiledEngine, slots: int) -> Session:
        gpu = self._gpus.list()[0]
        limits = engine.limits.model_copy(update={"max_batch_size": slots})
        try:
            return open_plan(engine.files[PLAN], engine.cache, limits, engine.vocabulary, gpu)
        except EngineError as error:
            raise VerificationError(BuildReason.VERIFICATION_FAILED, str(error)) from error


BACKEND: Backend = _TensorRt(device.NvmlGpus())


@dataclass(frozen=True)
class _Size:
    """Bytes of the weights as the engine has them, and of a plan that holds them once.

    An embedding that is the head too is laid out twice, for rows and for products.
    """

    weights: int
    plan: int

    @classmethod
    def of(cls, model: Model, options: CompileOptions) -> _Size:
        element = ELEMENT_BYTES[options.dtype.value]
        weights = model.checkpoint.elements * element
        decoder = model.decoder
        copy = decoder.vocabulary * decoder.hidden * element if decoder.tied else 0
        return cls(weights=weights, plan=weights + copy)


def _check_plan(found: int, size: _Size) -> None:
    allowed = int(_LARGEST_PLAN * size.plan) + _PLAN_CODE
    if found > allowed:
        raise UnsupportedError(
            BuildReason.COMPILE_FAILED,
            f"the plan has {readable(found)}, but weights of {readable(size.plan)} should make one"
            f" of at most {readable(allowed)}: this version of TensorRT keeps them more than once;"
            " set spec.engine.maxBatchSize to 1 or 8, or use a runtime of another version",
        )


def _needs(model: Model, options: CompileOptions, plan: int) -> Needs:
    """What a server takes for a plan of so many bytes; its scratch is estimated."""
    limits = _limits(options)
    rows = max(limits.max_batch_tokens, limits.max_batch_size)
    return Needs(
        engine=plan,
        scratch=activation_bytes(model.decoder, rows, ELEMENT_BYTES[options.dtype.value]),
        cache=_cache(model, options),
        limits=limits,
        vocabulary=model.decoder.vocabulary,
    )


def _limits(options: CompileOptions) -> Limits:
    """Those that were asked for; no chunk is longer than a sequence."""
    limits = options.limits
    chunk = min(limits.max_batch_tokens, limits.max_sequence_length)
    return limits.model_copy(update={"max_batch_tokens": chunk})


def _cache(model: Model, options: CompileOptions) -> Cache:
    decoder = model.decoder
    return Cache(
        layout="plain",
        dtype=options.dtype.value,
        layers=decoder.layers,
        kv_heads=decoder.kv_heads,
        head_dim=decoder.head_dim,
        buckets=(cache_length(options.limits.max_sequence_length),),
        batches=decode_batches(options.limits.max_batch_size),
        query_heads=decoder.heads,
    )


def _warnings(model: Model, options: CompileOptions) -> tuple[str, ...]:
    found = []
    # Mostly one type; norms of some models are stored in a wider one.
    numbers = dict.fromkeys(STORED.values(), 0)
    for tensor in model.checkpoint.tensors.values():
        numbers[tensor.dtype] = numbers.get(tensor.dtype, 0) + math.prod(tensor.shape)
    if options.dtype is DType.FLOAT16 and max(numbers, key=numbers.__getitem__) == "BF16":
        found.append(
            "the model's weights are bfloat16 and the engine computes in float16, whose largest"
            " number is 65504: some models overflow then (Qwen2 does); set spec.engine.dtype to"
            " bfloat16 where the GPU has it"
        )
    return tuple(found)


def _compiles_for_capability() -> bool:
    """Whether this TensorRT can make engines for all GPUs of a compute capability."""
    try:
        levels = load_tensorrt().HardwareCompatibilityLevel
    except EngineError as error:
        raise UnsupportedError(BuildReason.BACKEND_INCOMPLETE, str(error)) from error
    return hasattr(levels, "SAME_COMPUTE_CAPABILITY")


def _capability(device: Device) -> tuple[int, int]:
    major, minor = (device.compute_capability or "0.0").split(".")
    return int(major), int(minor)
