"""What a user gets wrong, and the sentence that he reads in `kubectl get llmengine -o wide`."""

from __future__ import annotations

import pytest

from tests.demo.platform import Platform
from tests.e2e.conftest import Put
from tests.e2e.engines import Engines
from tests.models.tiny import TinyModel

pytestmark = pytest.mark.cluster


def test_a_runtime_that_does_not_exist(engines: Engines, tiny: str) -> None:
    engine = engines.apply("bad", tiny, runtime="onnxruntime-9.9")
    assert '"onnxruntime-9.9"' in engine.wait_stalled("RuntimeNotFound", 20)


def test_a_runtime_of_a_backend_that_this_release_lacks(
    engines: Engines, tiny: str, platform: Platform
) -> None:
    platform.cluster.apply(
        {
            "apiVersion": "llmengine.io/v1alpha1",
            "kind": "EngineRuntime",
            "metadata": {"name": "tensorrtllm-1.2.1"},
            "spec": {
                "backend": "tensorrtllm",
                "version": "1.2.1",
                "accelerator": "nvidia",
                "image": {"repository": "registry.test/x", "tag": "1"},
            },
        }
    )
    engine = engines.apply(
        "bad", tiny, runtime="tensorrtllm-1.2.1", architectures=["sm_90/NVIDIA-H100-80GB-HBM3"]
    )
    assert "no backend tensorrtllm" in engine.wait_stalled("Unsupported", 20)


def test_a_model_that_does_not_exist(engines: Engines) -> None:
    engine = engines.apply("bad", "s3://models/nothing-here")
    assert "s3://models/nothing-here" in engine.wait_stalled("ModelNotFound")


def test_a_bucket_that_its_secret_may_not_read(engines: Engines, platform: Platform) -> None:
    stranger = platform.s3.add_user(f"stranger-{engines.revision}")
    platform.cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "stranger", "namespace": "team-a"},
            "stringData": {
                "AWS_ACCESS_KEY_ID": stranger.access_key,
                "AWS_SECRET_ACCESS_KEY": stranger.secret_key,
            },
        }
    )
    engine = engines.apply("bad", "s3://models/tiny", model={"secretName": "stranger"})
    assert "s3://models/tiny" in engine.wait_stalled("ModelAccessDenied")


def test_a_secret_that_does_not_exist(engines: Engines, tiny: str) -> None:
    engine = engines.apply("bad", tiny, model={"secretName": "forgotten"})
    assert 'secret "forgotten" not found' in engine.wait_stalled("ContainerConfigInvalid", 60)


@pytest.mark.parametrize(
    ("name", "model", "reason", "words"),
    [
        pytest.param(
            "pickle",
            TinyModel(family="llama", weights="pickle"),
            "WeightsArePickled",
            "safetensors",
            id="weights that are a program",
        ),
        pytest.param(
            "truncated",
            TinyModel(family="llama", weights="truncated"),
            "ModelInvalid",
            "model.safetensors",
            id="weights that were cut off",
        ),
        pytest.param(
            "family",
            TinyModel(family="llama", config={"architectures": ["GPT2LMHeadModel"]}),
            "ModelUnsupported",
            "GPT2LMHeadModel",
            id="a family that is not supported",
        ),
        pytest.param(
            "activation",
            TinyModel(family="llama", config={"hidden_act": "gelu"}),
            "ModelUnsupported",
            "gelu",
            id="an activation that is not supported",
        ),
        pytest.param(
            "longrope",
            TinyModel(family="llama", rope={"rope_type": "longrope", "factor": 2.0}),
            "ModelUnsupported",
            "longrope",
            id="a rope that is not supported",
        ),
    ],
)
def test_a_model_that_cannot_be_built(
    engines: Engines, put: Put, *, name: str, model: TinyModel, reason: str, words: str
) -> None:
    engine = engines.apply("bad", put(f"{name}-{engines.revision}", model))
    assert words in engine.wait_stalled(reason)


def test_sequences_longer_than_the_model_takes(engines: Engines, tiny: str) -> None:
    engine = engines.apply("bad", tiny, engine={"maxSequenceLength": 100000})
    sentence = engine.wait_stalled("SequenceTooLong")
    assert "100000" in sentence
    assert "max_position_embeddings" in sentence


def test_a_failure_is_left_by_an_edit(engines: Engines, tiny: str) -> None:
    engine = engines.apply("mended", tiny, engine={"maxSequenceLength": 100000})
    engine.wait_stalled("SequenceTooLong")
    engine.edit({"engine": {"maxSequenceLength": 128}})
    engine.wait_ready()


def test_a_failure_of_the_environment_is_left_by_a_request(
    engines: Engines, put: Put, platform: Platform
) -> None:
    uri = f"s3://models/late-{engines.revision}"
    engine = engines.apply("late", uri)
    engine.wait_stalled("ModelNotFound")
    put(f"late-{engines.revision}", TinyModel(family="qwen2"))
    engine.annotate(requested_at="now")
    engine.wait_ready()
    assert engine.status()["lastHandledRequest"] == "now"
