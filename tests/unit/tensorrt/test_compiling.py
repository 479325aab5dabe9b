"""A build in a process of its own ends in an engine, or in a sentence; never in a silent crash."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from llmengine.api.v1alpha1 import CacheQuantization, DType, Quantization, WeightQuantization
from llmengine.architecture import Architecture
from llmengine.artifact import Device, Limits
from llmengine.requests import BuildReason, ExitCode
from llmengine_builder.backends import Backend, CompiledEngine, CompileOptions, find_backend
from llmengine_builder.backends import tensorrt as backend_module
from llmengine_builder.backends.tensorrt_compiler import Percent
from llmengine_builder.backends.tensorrt_failures import CompilerCrashError, explain
from llmengine_builder.backends.tensorrt_shapes import cache_length, decode_batches
from llmengine_builder.backends.tensorrt_weights import PREPARED, prepared
from llmengine_builder.errors import (
    BadInputError,
    BuildError,
    UnsupportedError,
    WrongDeviceError,
)
from llmengine_builder.graph import read_model
from llmengine_server.session.device import Gpu
from tests.models.tiny import Family, TinyModel

LIBRARY = Path(__file__).with_name("fake_library")
GIB = 1 << 30
H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), "580.1", 80 * GIB)
LIMITS = Limits(max_batch_size=32, max_sequence_length=1000, max_batch_tokens=512)


@dataclass
class FakeGpus:
    found: list[Gpu]

    def list(self) -> Sequence[Gpu]:
        return self.found


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake TensorRT, for this process and for those that it starts."""
    monkeypatch.syspath_prepend(str(LIBRARY))
    monkeypatch.setenv("PYTHONPATH", str(LIBRARY))


@pytest.fixture
def backend() -> Backend:
    return backend_module._TensorRt(FakeGpus([H100]))


def options(dtype: DType = DType.BFLOAT16, limits: Limits = LIMITS) -> CompileOptions:
    return CompileOptions(dtype, Quantization(), limits)


def compile_tiny(
    backend: Backend, folder: Path, asked: CompileOptions | None = None, **model: Any
) -> tuple[CompiledEngine, list[int]]:
    tiny = TinyModel(**{"dtype": "BF16", "max_position_embeddings": 65536, **model})
    percents: list[int] = []
    (folder / "engine").mkdir()
    engine = backend.compile(
        read_model(tiny.write(folder / "model")),
        asked or options(),
        folder / "engine",
        percents.append,
        b"earlier",
    )
    return engine, percents


def told(engine: CompiledEngine) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(engine.files["engine.plan"].read_bytes())
    return answer


def test_an_engine_is_a_plan_with_a_profile_for_prompts_and_one_for_each_size_of_step(
    backend: Backend, tmp_path: Path
) -> None:
    engine, percents = compile_tiny(backend, tmp_path)
    profiles = told(engine)["profiles"]
    assert [profile["input_ids"] for profile in profiles] == [
        [[1, 1], [1, 512], [1, 512]],
        [[1, 1]] * 3,
        [[8, 1]] * 3,
        [[32, 1]] * 3,
    ]
    assert profiles[2]["past_lens"] == profiles[2]["new_lens"] == [[8]] * 3
    assert told(engine)["off"] == ["TF32"]
    assert told(engine)["plugins"] == ["llmengine/CachedAttention/1"]
    assert (engine.cache.buckets, engine.cache.batches) == ((1024,), (1, 8, 32))
    assert (engine.cache.query_heads, engine.cache.dtype) == (4, "bfloat16")
    assert percents == [50, 99, 100]
    assert engine.footprint.host_bytes > 0
    assert engine.footprint.device_bytes >= 1 << 20
    # A plan of nothing, 1 GiB that every server takes, 12 MiB of cache; of 92 % of the GPU.
    assert 1.1 * GIB < engine.footprint.serving_device_bytes < 1.2 * GIB
    assert engine.warnings == ()


def test_timings_of_an_earlier_build_go_in_and_come_out(backend: Backend, tmp_path: Path) -> None:
    engine, _ = compile_tiny(backend, tmp_path)
    assert engine.timing == b"earlier+"


@pytest.mark.parametrize(
    ("stored", "weights"),
    [("F32", [PREPARED]), ("BF16", ["model.safetensors", PREPARED])],
)
def test_only_weights_that_are_not_as_the_engine_wants_them_are_written(
    backend: Backend, stored: str, weights: list[str], tmp_path: Path
) -> None:
    engine, _ = compile_tiny(backend, tmp_path, dtype=stored)
    assert told(engine)["weights"] == weights
    assert sorted(path.name for path in (tmp_path / "engine").iterdir()) == [
        "engine.plan",
        "graph.onnx",
        "timing",
    ]


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16])
def test_converted_weights_are_rounded_to_the_nearest(dtype: DType, tmp_path: Path) -> None:
    model = read_model(TinyModel(dtype="F32").write(tmp_path / "model"))
    made = prepared(model, dtype, tmp_path / "made")
    kind = ml_dtypes.bfloat16 if dtype is DType.BFLOAT16 else np.float16
    for name in model.checkpoint.tensors:
        wanted = np.frombuffer(model.checkpoint.read(name), np.float32).astype(kind)
        assert made.checkpoint.read(name) == wanted.tobytes(), name


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_projections_of_a_layer_are_one_weight_of_the_graph(family: Family, tmp_path: Path) -> None:
    tiny = TinyModel(family=family, dtype="BF16")
    made = prepared(read_model(tiny.write(tmp_path / "model")), DType.BFLOAT16, tmp_path / "made")
    graph = onnx.load_model_from_string(made.graph(DType.BFLOAT16, "address"))
    found = {tensor.name: tensor for tensor in graph.graph.initializer}
    d = made.decoder
    whole = found["layers.1/weight"]
    assert list(whole.dims) == [(d.heads + 2 * d.kv_heads) * d.head_dim, d.hidden]
    place = {entry.key: entry.value for entry in whole.external_data}
    parts = b"".join(
        made.checkpoint.read(f"model.layers.1.self_attn.{letter}_proj.weight") for letter in "qkv"
    )
    with (tmp_path / "made" / place["location"]).open("rb") as file:
        file.seek(int(place["offset"]))
        assert file.read(int(place["length"])) == parts
    assert not [name for name in found if "q_proj" in name]
    assert ("layers.1/bias" in found) == (family == "qwen2")
    joined = [node for node in graph.graph.node if node.op_type == "Concat"]
    # Only norms of query and key take the projections apart.
    assert len(joined) == (d.layers if family == "qwen3" else 0)


def test_float16_of_a_bfloat16_model_is_a_warning(backend: Backend, tmp_path: Path) -> None:
    engine, _ = compile_tiny(backend, tmp_path, options(DType.FLOAT16))
    assert len(engine.warnings) == 1
    assert "65504: some models overflow then (Qwen2 does)" in engine.warnings[0]


def test_no_chunk_is_longer_than_a_sequence(backend: Backend, tmp_path: Path) -> None:
    short = Limits(max_batch_size=1, max_sequence_length=100, max_batch_tokens=4096)
    engine, _ = compile_tiny(backend, tmp_path, options(limits=short))
    assert engine.limits.max_batch_tokens == 100
    assert engine.cache.buckets == (128,)


def test_heads_that_the_kernels_do_not_take_are_refused(backend: Backend, tmp_path: Path) -> None:
    model = read_model(TinyModel(dtype="BF16", head_dim=12).write(tmp_path / "model"))
    with pytest.raises(UnsupportedError, match="heads of 12 numbers, and tensorrt takes multiples"):
        backend.check_model(model, options(), H100.record())


def test_a_plan_that_holds_weights_twice_is_refused(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", f"pad: {258 << 20}")
    with pytest.raises(UnsupportedError, match="keeps them more than once") as caught:
        compile_tiny(backend, tmp_path)
    assert caught.value.reason == BuildReason.COMPILE_FAILED


@pytest.mark.parametrize(
    ("how", "error", "reason", "sentence"),
    [
        pytest.param(
            "error: createInferBuilder: Error Code 6: API Usage Error (Unable to load library:"
            " libnvinfer_builder_resource_sm90.so.11.2.1)",
            UnsupportedError,
            BuildReason.BACKEND_INCOMPLETE,
            "an image with libnvinfer_builder_resource",
            id="a library without kernels for this GPU",
        ),
        pytest.param(
            "error: CUDA driver version is insufficient for CUDA runtime version",
            WrongDeviceError,
            BuildReason.DRIVER_TOO_OLD,
            "update it, or set spec.minimumDriver",
            id="a driver that is too old",
        ),
        pytest.param(
            "error: Error Code 2: OutOfMemory (Requested size was 17179869184 bytes.)",
            BadInputError,
            BuildReason.GPU_TOO_SMALL,
            "set spec.engine.maxBatchSize",
            id="a GPU without memory",
        ),
        pytest.param(
            "error: Networks with FP8 precision require hardware with FP8 support.",
            UnsupportedError,
            BuildReason.OPTION_UNSUPPORTED,
            "set dtype to auto and quantization to none",
            id="a type that the GPU lacks",
        ),
        pytest.param(
            "error: Could not find any implementation for node {ForeignNode[...]}",
            UnsupportedError,
            BuildReason.COMPILE_FAILED,
            "use an EngineRuntime of another version",
            id="a graph that it cannot compile",
        ),
        pytest.param(
            "parse: In node 17: UNSUPPORTED_NODE",
            UnsupportedError,
            BuildReason.COMPILE_FAILED,
            "In node 17",
            id="a graph that it cannot read",
        ),
        pytest.param(
            "kill",
            BadInputError,
            BuildReason.MEMORY_TOO_SMALL,
            "raise spec.build.resources.limits.memory",
            id="a container without memory",
        ),
    ],
)
def test_what_tensorrt_says_becomes_a_reason_and_a_sentence(  # noqa: PLR0917
    backend: Backend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    error: type[BuildError],
    reason: BuildReason,
    sentence: str,
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", how)
    with pytest.raises(error, match=sentence) as caught:
        compile_tiny(backend, tmp_path)
    assert caught.value.reason == reason


def test_a_compiler_that_aborts_leaves_its_last_words(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", "abort")
    with pytest.raises(CompilerCrashError, match="ended by SIGABRT: terminate called without"):
        compile_tiny(backend, tmp_path)


def test_a_tensorrt_that_makes_no_builder_is_explained_by_its_log(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT 11 raises TypeError, whose traceback would push the log out of memory."""
    said = "CUDA driver version is insufficient for CUDA runtime version"
    monkeypatch.setenv("FAKE_TENSORRT", f"no builder: {said}")
    with pytest.raises(WrongDeviceError, match="TensorRT makes no builder") as caught:
        compile_tiny(backend, tmp_path)
    assert caught.value.reason == BuildReason.DRIVER_TOO_OLD


def test_unknown_words_are_told_as_they_were_said() -> None:
    error = explain(["first", "the moon is full"], "10.6.0")
    assert str(error) == "TensorRT 10.6.0 built no engine: first; the moon is full"


def test_the_compiler_ends_with_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", "hang")
    order = tmp_path / "order.py"
    order.write_text(
        "import sys\n"
        "from llmengine_builder.backends.tensorrt_compiler import Order\n"
        "from llmengine_builder.backends.tensorrt_process import run_compiler\n"
        f"folder = {str(tmp_path)!r}\n"
        "open(folder + '/g', 'w').close(); open(folder + '/t', 'w').close()\n"
        "order = Order(folder + '/g', folder, folder + '/p', folder + '/t', ())\n"
        "run_compiler(order, '10.6.0', lambda percent: print(percent, flush=True))\n"
    )
    build = subprocess.Popen([sys.executable, str(order)], stdout=subprocess.PIPE, text=True)
    assert build.stdout is not None
    assert build.stdout.readline() == "50\n"
    (compiler,) = _children(build.pid)
    build.send_signal(signal.SIGKILL)
    build.wait()
    build.stdout.close()
    deadline = time.monotonic() + 10
    while _runs(compiler):
        assert time.monotonic() < deadline, "the compiler still runs"
        time.sleep(0.02)


def _children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in text.split()]


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_the_device_is_what_the_gpu_says(backend: Backend) -> None:
    device = backend.device(Architecture.parse("sm_90/NVIDIA-H100-80GB-HBM3"))
    assert device == Device(
        name="NVIDIA-H100-80GB-HBM3",
        compute_capability="9.0",
        driver="580.1",
        memory_bytes=80 * GIB,
    )


def test_another_gpu_than_the_jobs_is_exit_code_13(backend: Backend) -> None:
    with pytest.raises(WrongDeviceError, match="its GPU is a sm_90/NVIDIA-H100") as caught:
        backend.device(Architecture.parse("sm_80/NVIDIA-A100-SXM4-80GB"))
    assert caught.value.exit_code is ExitCode.WRONG_DEVICE


def test_a_cpu_is_no_architecture_of_this_backend(backend: Backend) -> None:
    with pytest.raises(UnsupportedError, match="builds for NVIDIA GPUs, not for amd64"):
        backend.device(Architecture(cpu="amd64"))


@pytest.mark.parametrize(
    ("quantization", "field"),
    [
        (Quantization(weights=WeightQuantization.INT4), "quantization.weights"),
        (Quantization(kv_cache=CacheQuantization.FP8), "quantization.kvCache"),
    ],
)
def test_quantization_is_refused_by_name(
    backend: Backend, quantization: Quantization, field: str
) -> None:
    with pytest.raises(UnsupportedError, match=f"set spec.engine.{field} to none"):
        backend.check(CompileOptions(DType.BFLOAT16, quantization, LIMITS))


PORTABLE = CompileOptions(DType.BFLOAT16, Quantization(), LIMITS, portable=True)


def test_an_engine_for_a_whole_compute_capability_takes_a_tensorrt_that_can_make_it(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = SimpleNamespace(HardwareCompatibilityLevel=SimpleNamespace(NONE=0, AMPERE_PLUS=1))
    monkeypatch.setattr(backend_module, "load_tensorrt", lambda: older)
    with pytest.raises(UnsupportedError, match=r"take 10\.9: set spec.engine.portability") as got:
        backend.check(PORTABLE)
    assert got.value.exit_code is ExitCode.UNSUPPORTED


def test_an_engine_for_a_whole_compute_capability_is_compiled_as_one(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = SimpleNamespace(HardwareCompatibilityLevel=SimpleNamespace(SAME_COMPUTE_CAPABILITY=2))
    monkeypatch.setattr(backend_module, "load_tensorrt", lambda: newer)
    engine, _ = compile_tiny(backend, tmp_path, PORTABLE)
    assert told(engine)["compatible"] == "SAME_COMPUTE_CAPABILITY"


def test_an_engine_is_for_its_own_model_of_gpu_unless_asked(
    backend: Backend, tmp_path: Path
) -> None:
    engine, _ = compile_tiny(backend, tmp_path)
    assert told(engine)["compatible"] == "NONE"


def test_bfloat16_is_refused_where_the_gpu_lacks_it(backend: Backend, tmp_path: Path) -> None:
    model = read_model(TinyModel(dtype="BF16").write(tmp_path / "model"))
    t4 = Gpu("Tesla T4", (7, 5), "580.1", 15 * GIB).record()
    with pytest.raises(UnsupportedError, match="Tesla-T4 does not compute in bfloat16"):
        backend.check_model(model, options(), t4)
    backend.check_model(model, options(DType.FLOAT16), t4)


def test_an_engine_that_is_larger_than_the_gpu_is_refused_with_what_would_fit(
    backend: Backend, tmp_path: Path
) -> None:
    model = read_model(TinyModel(dtype="BF16").write(tmp_path / "model"))
    small = Gpu("Tesla T4", (7, 5), "580.1", 3 * GIB).record()
    many = Limits(max_batch_size=256, max_sequence_length=65536, max_batch_tokens=64)
    with pytest.raises(BadInputError, match=r"set spec.engine.maxBatchSize to \d+ or less") as got:
        backend.check_model(model, options(DType.FLOAT16, many), small)
    assert got.value.reason == BuildReason.GPU_TOO_SMALL


def test_the_backend_is_found_where_its_library_is_and_must_have_the_runtimes_version() -> None:
    assert find_backend("tensorrt", "10.6.0").version == "10.6.0"
    with pytest.raises(BadInputError, match=r"asks for tensorrt 11.2.1, but its image has 10.6.0"):
        find_backend("tensorrt", "11.2.1")


@pytest.mark.parametrize(("length", "rows"), [(16, 64), (256, 256), (1000, 1024)])
def test_a_slot_has_rows_for_the_longest_sequence_in_whole_steps(length: int, rows: int) -> None:
    assert cache_length(length) == rows


@pytest.mark.parametrize(
    ("slots", "batches"), [(1, (1,)), (4, (1, 4)), (8, (1, 8)), (32, (1, 8, 32))]
)
def test_steps_are_of_one_a_few_and_all_slots(slots: int, batches: tuple[int, ...]) -> None:
    assert decode_batches(slots) == batches


def test_percent_counts_phases_within_phases_and_never_goes_back() -> None:
    said: list[int] = []
    percent = Percent(said.append)
    percent.start("all", None, 4)
    percent.step("all")
    percent.start("part", "all", 2)
    percent.step("part")
    percent.finish("part")
    percent.start("again", None, 10)
    percent.step("again")
    percent.step("all")
    assert said == [25, 37, 50]
