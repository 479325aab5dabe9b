"""A backend says before any work what it cannot do, and afterwards what it made."""

from __future__ import annotations

import platform
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmengine.api.v1alpha1 import CacheQuantization, DType, Quantization, WeightQuantization
from llmengine.architecture import Architecture
from llmengine.artifact import Cache, Limits
from llmengine.requests import BuildReason
from llmengine_builder.backends import Backend, CompileOptions, find_backend
from llmengine_builder.backends.onnxruntime import cache_buckets
from llmengine_builder.errors import BadInputError, UnsupportedError, WrongDeviceError
from llmengine_builder.graph import read_model
from llmengine_server.session.onnxruntime import VERSION
from tests.models.tiny import TinyModel
from tests.unit.graph.engines import LIMITS, compile_engine

MIB = 1024 * 1024


@pytest.fixture
def backend() -> Backend:
    return find_backend("onnxruntime", VERSION)


def options(
    dtype: DType = DType.FLOAT32, quantization: Quantization | None = None, limits: Limits = LIMITS
) -> CompileOptions:
    return CompileOptions(dtype, quantization or Quantization(), limits)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrtllm", "llama.cpp"])
def test_a_backend_that_this_image_lacks_is_refused(name: str) -> None:
    with pytest.raises(
        BadInputError,
        match=rf"this image lacks the backend {name} \(it has onnxruntime\): give the"
        " EngineRuntime the image of its backend",
    ) as caught:
        find_backend(name, "1.0")
    assert caught.value.reason == BuildReason.BACKEND_MISMATCH


def test_another_version_than_the_runtimes_is_refused() -> None:
    with pytest.raises(
        BadInputError, match=f"asks for onnxruntime 1.0.0, but its image has {VERSION}: correct"
    ) as caught:
        find_backend("onnxruntime", "1.0.0")
    assert caught.value.reason == BuildReason.BACKEND_MISMATCH


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        pytest.param(
            options(DType.BFLOAT16),
            "computes in float32, not in bfloat16: set spec.engine.dtype to auto or float32",
            id="bfloat16",
        ),
        pytest.param(options(DType.FLOAT16), "not in float16", id="float16"),
        pytest.param(
            options(quantization=Quantization(weights=WeightQuantization.INT4)),
            "does not quantize to int4: set spec.engine.quantization.weights to none",
            id="quantized weights",
        ),
        pytest.param(
            options(quantization=Quantization(kv_cache=CacheQuantization.FP8)),
            "does not quantize to fp8: set spec.engine.quantization.kvCache to none",
            id="a quantized cache",
        ),
    ],
)
def test_options_that_a_cpu_does_not_have_are_refused(
    backend: Backend, asked: CompileOptions, sentence: str
) -> None:
    with pytest.raises(UnsupportedError, match=sentence) as caught:
        backend.check(asked)
    assert caught.value.reason == BuildReason.OPTION_UNSUPPORTED


def test_plain_float32_is_accepted(backend: Backend) -> None:
    backend.check(options())


@pytest.mark.parametrize(("machine", "name"), [("x86_64", "amd64"), ("aarch64", "arm64")])
def test_the_device_is_the_cpu_that_the_build_runs_on(
    backend: Backend, machine: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert backend.device(Architecture(cpu=name)).name
    other = "arm64" if name == "amd64" else "amd64"
    with pytest.raises(
        WrongDeviceError, match=f"the build is for {other}, but its node is a {machine}: correct"
    ):
        backend.device(Architecture(cpu=other))


def test_a_gpu_is_no_architecture_of_this_backend(backend: Backend) -> None:
    with pytest.raises(UnsupportedError, match="builds for amd64 and arm64, not for sm_90"):
        backend.device(Architecture.parse("sm_90/NVIDIA-H100-80GB-HBM3"))


def test_an_engine_is_the_graph_and_the_models_own_files(tmp_path: Path) -> None:
    model = TinyModel(family="qwen2", shards=2).write(tmp_path / "model")
    engine = compile_engine(model, tmp_path / "engine")
    assert engine.files == {
        "graph.onnx": tmp_path / "engine" / "graph.onnx",
        "model/model-00001-of-00002.safetensors": model / "model-00001-of-00002.safetensors",
        "model/model-00002-of-00002.safetensors": model / "model-00002-of-00002.safetensors",
    }
    assert [path.name for path in (tmp_path / "engine").iterdir()] == ["graph.onnx"]
    assert (engine.model_type, engine.vocabulary, engine.limits) == ("qwen2", 293, LIMITS)
    assert engine.cache == Cache(
        layout="plain", dtype="float32", layers=2, kv_heads=2, head_dim=16, buckets=(128, 192, 256)
    )


def test_a_sequence_longer_than_the_models_is_refused_by_the_compiler_too(
    backend: Backend, tmp_path: Path
) -> None:
    model = read_model(TinyModel(max_position_embeddings=128).write(tmp_path / "model"))
    with pytest.raises(BadInputError, match=r"maxSequenceLength is 256, but .* is 128"):
        backend.compile(model, options(), tmp_path, lambda _: None)


def test_memory_is_asked_for_all_that_stands_beside_the_weights(
    backend: Backend, tmp_path: Path
) -> None:
    small = read_model(TinyModel(dtype="BF16").write(tmp_path / "small"))
    large = read_model(TinyModel(dtype="BF16", hidden_size=512).write(tmp_path / "large"))
    needs = [backend.host_bytes(model, options()) for model in (small, large)]
    more = 4 * (large.checkpoint.elements - small.checkpoint.elements)
    assert needs[0] > 256 * MIB
    assert more <= needs[1] - needs[0] <= 2 * more


@given(longest=st.integers(16, 200_000))
def test_buckets_grow_to_the_longest_sequence_and_not_by_more_than_they_should(
    longest: int,
) -> None:
    buckets = cache_buckets(longest)
    assert buckets[-1] == longest
    assert buckets[0] == min(128, longest)
    for short, long in pairwise(buckets):
        assert short < long <= 1.5 * short + 64
