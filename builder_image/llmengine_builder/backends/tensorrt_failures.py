"""What TensorRT's last words mean: a reason, a sentence that says what to do, an exit code.

TensorRT says why it fails in its log only. What nobody knows here is told as it was said.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from llmengine.requests import BuildReason
from llmengine_builder.errors import (
    BadInputError,
    BuildError,
    TransientError,
    UnsupportedError,
    WrongDeviceError,
)

_SHOWN = 500


class CompilerCrashError(Exception):
    """The compiler ended without a word that is known: a bug of it, or of this release."""


@dataclass(frozen=True)
class _Known:
    """The first of these that is found in the log decides."""

    pattern: re.Pattern[str]
    error: type[BuildError]
    reason: BuildReason
    advice: str


def _known(pattern: str, error: type[BuildError], reason: BuildReason, advice: str) -> _Known:
    return _Known(re.compile(pattern, re.IGNORECASE), error, reason, advice)


# Strings of TensorRT 10.6 to 11.2 and of NVIDIA's containers, the most telling ones first.
_FAILURES = (
    _known(
        r"unable to load library: libnvinfer_builder_resource|validateCaskKLib",
        UnsupportedError,
        BuildReason.BACKEND_INCOMPLETE,
        "the image's TensorRT lacks the kernels to build for this GPU: give the EngineRuntime an"
        " image with libnvinfer_builder_resource for its compute capability",
    ),
    _known(
        r"driver version is insufficient|forward compatibility was attempted|error code 804"
        r"|compatibility mode is unavailable|unsupported display driver"
        r"|CUDA_ERROR_(SYSTEM_DRIVER_MISMATCH|COMPAT_NOT_SUPPORTED|UNSUPPORTED_PTX_VERSION)"
        r"|unsupported toolchain",
        WrongDeviceError,
        BuildReason.DRIVER_TOO_OLD,
        "the node's NVIDIA driver is older than the image's CUDA: update it, or set"
        " spec.minimumDriver of the EngineRuntime so that such nodes are left out",
    ),
    _known(
        r"require hardware with FP8 support|FP8 FMHA cannot be enabled|Unsupported SM version for"
        r"|quantization is not supported on SM|requires GPUs with CUDA capability"
        r"|does not support (bf16|bfloat16|fp8|int4|fp4)",
        UnsupportedError,
        BuildReason.OPTION_UNSUPPORTED,
        "this GPU does not compute in what spec.engine asks for: set dtype to auto and"
        " quantization to none",
    ),
    _known(
        r"no CUDA-capable device|CUDA_ERROR_NO_DEVICE|CUDA initialization failure"
        r"|target GPU SM \d+ is not supported|SM \d+ is not supported by this TensorRT",
        WrongDeviceError,
        BuildReason.WRONG_DEVICE,
        "TensorRT cannot use this node's GPU: the pod needs one nvidia.com/gpu, and a GPU that"
        " this version of TensorRT supports",
    ),
    _known(
        r"uncorrectable ECC|CUDA_ERROR_ECC|GPU has fallen off the bus|CUDA_ERROR_(HARDWARE"
        r"|LAUNCH_TIMEOUT|NOT_PERMITTED)|error code 999",
        TransientError,
        BuildReason.COMPILE_FAILED,
        "the GPU failed; another try may find another one",
    ),
    _known(
        r"std::bad_alloc|cannot allocate memory|host memory allocation",
        BadInputError,
        BuildReason.MEMORY_TOO_SMALL,
        "the host's memory ran out: raise spec.build.resources.limits.memory",
    ),
    _known(
        r"out ?of ?memory|GPU memory \(\d+ bytes\) could not be allocated|insufficient memory"
        r"|could not find any supported formats consistent with input/output",
        BadInputError,
        BuildReason.GPU_TOO_SMALL,
        "the GPU's memory ran out while building: set spec.engine.maxBatchSize,"
        " maxSequenceLength or maxBatchTokens lower, or build for a GPU with more memory",
    ),
    _known(
        r"no space left on device|disk quota exceeded",
        BadInputError,
        BuildReason.SCRATCH_TOO_SMALL,
        "the scratch disk is full: raise spec.build.scratch.size",
    ),
    _known(
        r"could not find any implementation for node|MyelinCheckException|no implementation"
        r"|failed to parse|unsupported (operator|node)|UNSUPPORTED_NODE|getPluginCreator could not",
        UnsupportedError,
        BuildReason.COMPILE_FAILED,
        "this version of TensorRT cannot compile this model for this GPU: use an EngineRuntime of"
        " another version",
    ),
)


def explain(messages: Sequence[str], version: str) -> Exception:
    """What made a build end that left these errors in its log, oldest first."""
    said = "\n".join(messages)
    shown = _shortened(messages)
    for known in _FAILURES:
        if known.pattern.search(said):
            return known.error(known.reason, f"{known.advice} (TensorRT {version}: {shown})")
    return CompilerCrashError(f"TensorRT {version} built no engine: {shown}")


def explain_end(status: int, messages: Sequence[str], version: str) -> Exception:
    """The same for a compiler that ended by itself with this status of a process."""
    if status == -signal.SIGKILL:
        return BadInputError(
            BuildReason.MEMORY_TOO_SMALL,
            "the compiler was killed, which is what happens when a container's memory is full:"
            " raise spec.build.resources.limits.memory",
        )
    known = explain(messages, version)
    if isinstance(known, BuildError):
        return known
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"
    return CompilerCrashError(f"TensorRT {version} {how}: {_shortened(messages)}")


def _shortened(messages: Sequence[str]) -> str:
    """The newest words, as much of them as a message has room for."""
    text = "; ".join(" ".join(message.split()) for message in messages[-4:])
    return text[:_SHOWN] or "it does not say why"
