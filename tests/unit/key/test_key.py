"""The engine key: known factors give known keys, and every difference has a name."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmengine.api.v1alpha1 import (
    CacheQuantization,
    DType,
    EngineOptions,
    Portability,
    Quantization,
    WeightQuantization,
)
from llmengine.architecture import Architecture
from llmengine.key import (
    CLUSTER,
    FORMAT,
    READABLE_FORMATS,
    Factor,
    Scope,
    canonical_json,
    difference,
    engine_factors,
    engine_key,
    readable_keys,
    resolve_dtype,
)
from tests.unit.key.vectors import Vector, read_vectors

CPU = Architecture.parse("amd64")
H100 = Architecture.parse("sm_90/NVIDIA-H100-80GB-HBM3")


every_vector = pytest.mark.parametrize(
    "vector", [pytest.param(v, id=f"{v.name} in {v.release}") for v in read_vectors()]
)


@every_vector
def test_golden_engines_of_every_release_still_hit(vector: Vector) -> None:
    assert vector.key in readable_keys(vector.factors())


@every_vector
def test_a_golden_key_is_the_hash_of_its_canonical_text(vector: Vector) -> None:
    assert hashlib.sha256(vector.canonical.encode()).hexdigest() == vector.key


def test_the_newest_golden_engines_are_spelled_as_we_spell_them() -> None:
    newest = read_vectors()[-1].release
    for vector in read_vectors():
        if vector.release == newest:
            assert canonical_json(vector.factors()).decode() == vector.canonical, vector.name


def test_the_golden_file_covers_every_factor() -> None:
    seen = {name for vector in read_vectors() for name in json.loads(vector.canonical)}
    assert seen == {
        "architecture.computeCapability",
        "architecture.cpu",
        "architecture.device",
        "backend",
        "backendVersion",
        "engine.dtype",
        "engine.maxBatchSize",
        "engine.maxBatchTokens",
        "engine.maxSequenceLength",
        "engine.portability",
        "engine.quantization.kvCache",
        "engine.quantization.weights",
        "format",
        "model.endpoint",
        "model.revision",
        "model.uri",
        "scope",
    }


def test_a_raised_format_builds_anew_and_still_finds_the_old() -> None:
    old = factors()
    new = {**old, "format": FORMAT + 1}
    keys = readable_keys(new, formats=(FORMAT + 1, FORMAT))
    assert keys == [engine_key(new), engine_key(old)]


def test_the_newest_format_is_looked_for_first() -> None:
    assert READABLE_FORMATS[0] == FORMAT
    assert list(READABLE_FORMATS) == sorted(READABLE_FORMATS, reverse=True)
    assert readable_keys(factors())[0] == engine_key(factors())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        pytest.param(
            {"backend_version": "1.33.0"}, "backendVersion: 1.32.0 -> 1.33.0", id="another version"
        ),
        pytest.param(
            {"revision": "b" * 40}, f"model.revision: {'a' * 40} -> {'b' * 40}", id="new weights"
        ),
        pytest.param(
            {"options": EngineOptions(max_batch_size=16)},
            "engine.maxBatchSize: 8 -> 16",
            id="more slots",
        ),
        pytest.param(
            {"options": EngineOptions(quantization=Quantization(weights=WeightQuantization.INT8))},
            "engine.quantization.weights: unset -> int8",
            id="quantized weights",
        ),
        pytest.param(
            {"options": EngineOptions(quantization=Quantization(kv_cache=CacheQuantization.INT8))},
            "engine.quantization.kvCache: unset -> int8",
            id="quantized cache",
        ),
        pytest.param({"scope": Scope("team-a")}, "scope: unset -> team-a", id="a secret model"),
        pytest.param(
            {"scope": Scope("team-a", "1234")},
            "scope: unset -> team-a/1234",
            id="a claim's model",
        ),
        pytest.param(
            {"endpoint": "minio"}, "model.endpoint: unset -> minio", id="another S3 service"
        ),
        pytest.param(
            {"architecture": Architecture.parse("arm64")},
            "architecture.cpu: amd64 -> arm64",
            id="another CPU",
        ),
    ],
)
def test_a_difference_is_told_by_name_and_makes_another_key(
    change: dict[str, Any], line: str
) -> None:
    old, new = factors(), factors(**change)
    assert difference(old, new) == [line]
    assert engine_key(old) != engine_key(new)


def test_several_differences_are_told_in_order() -> None:
    told = difference(factors(), factors(architecture=H100))
    assert told == [
        "architecture.computeCapability: unset -> 9.0",
        "architecture.cpu: amd64 -> unset",
        "architecture.device: unset -> NVIDIA-H100-80GB-HBM3",
        "engine.dtype: float32 -> bfloat16",
    ]


def test_equal_engines_differ_in_nothing() -> None:
    assert difference(factors(), factors()) == []


def test_a_neutral_value_leaves_no_trace_in_the_key() -> None:
    assert engine_key(factors(options=EngineOptions(quantization=Quantization()))) == engine_key(
        factors()
    )


def test_auto_has_the_key_of_what_it_means() -> None:
    explicit = EngineOptions(dtype=DType.FLOAT32)
    assert engine_key(factors(options=explicit)) == engine_key(factors())


def test_a_portable_engine_is_one_for_all_devices_of_a_compute_capability() -> None:
    portable = EngineOptions(portability=Portability.COMPUTE_CAPABILITY)
    one, other = (
        engine_key(factors(options=portable, architecture=Architecture.parse(text)))
        for text in ("sm_90/NVIDIA-H100-80GB-HBM3", "sm_90/NVIDIA-H200")
    )
    assert one == other
    assert one != engine_key(factors(architecture=H100))


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        pytest.param("amd64", DType.FLOAT32, id="a CPU computes in float32"),
        pytest.param("sm_75", DType.FLOAT16, id="before 8.0 there is no bfloat16"),
        pytest.param("sm_80", DType.BFLOAT16, id="from 8.0 on it is bfloat16"),
        pytest.param("sm_120", DType.BFLOAT16, id="two digits of major version"),
    ],
)
def test_auto_is_resolved_per_architecture(architecture: str, dtype: DType) -> None:
    assert resolve_dtype(DType.AUTO, Architecture.parse(architecture)) is dtype
    assert resolve_dtype(DType.FLOAT16, Architecture.parse(architecture)) is DType.FLOAT16


@pytest.mark.parametrize("value", [1.0, True, None, ["a"]])
def test_a_factor_without_one_spelling_is_refused_by_name(value: Any) -> None:
    with pytest.raises(TypeError, match=r"factor engine\.dtype is"):
        engine_key({"engine.dtype": value})


def test_text_outside_ascii_is_spelled_as_itself() -> None:
    assert canonical_json({"model.uri": "s3://b/größe"}) == '{"model.uri":"s3://b/größe"}'.encode()


@given(
    st.dictionaries(st.text(max_size=8), st.one_of(st.integers(), st.text(max_size=8)), max_size=6)
)
def test_canonical_text_depends_on_the_factors_alone(factors: dict[str, Factor]) -> None:
    try:
        text = canonical_json(factors)
    except UnicodeEncodeError:
        return  # half a surrogate pair is no text that a user can write
    assert json.loads(text) == factors
    assert canonical_json(dict(reversed(factors.items()))) == text


def test_a_claim_without_a_namespace_is_no_scope() -> None:
    with pytest.raises(ValueError, match="claim 1234 has no namespace"):
        Scope(claim="1234")


def factors(**change: Any) -> dict[str, Factor]:
    inputs: dict[str, Any] = {
        "backend": "onnxruntime",
        "backend_version": "1.32.0",
        "uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct",
        "revision": "a" * 40,
        "endpoint": None,
        "scope": CLUSTER,
        "options": EngineOptions(),
        "architecture": CPU,
    }
    return engine_factors(**{**inputs, **change})
