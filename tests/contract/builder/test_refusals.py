"""Everything that a user can get wrong in a build, with the sentence that the user reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmengine.api.v1alpha1 import DType, Quantization, WeightQuantization
from llmengine.requests import BUILD_REQUEST_VARIABLE, S3Endpoint
from tests.contract.builder.given import (
    Given,
    busy,
    configure,
    damaged,
    linked_out,
    location,
    nowhere,
    on_claim,
    only,
    with_factors,
    with_options,
    without_sizes,
)
from tests.contract.builder.hub import BAD_TOKEN, TOKEN, WEAK_TOKEN, Hub, Repository
from tests.contract.builder.run import Bench, Run
from tests.models.tiny import TinyModel


@pytest.fixture
def given(bench: Bench, hub: Hub, tiny: Path) -> Given:
    return Given(bench, hub, tiny)


Case = Callable[[Given], Run]


def case(act: Case, code: int, reason: str, sentence: str, *, id: str) -> Any:
    return pytest.param(act, code, reason, sentence, id=id)


REQUESTS = [
    case(
        lambda g: g.bench.build(g.on_hub(), **{BUILD_REQUEST_VARIABLE: "{}"}),
        *(10, "RequestInvalid", "the build's request cannot be read"),
        id="an empty request",
    ),
    case(
        lambda g: g.bench.build(g.on_hub(key="0" * 64)),
        *(10, "RequestInvalid", f"key {'0' * 64} is not that of the build's factors"),
        id="another engine's key",
    ),
    case(
        lambda g: g.bench.build(with_factors(g.on_hub(), {"format": 99})),
        *(10, "RequestInvalid", "than this image builds (format: 99 -> 2): give the EngineRuntime"),
        id="a format of another release",
    ),
    case(
        lambda g: g.bench.build(with_factors(g.on_hub(), {"engine.sparsity": "2:4"})),
        *(10, "RequestInvalid", "(engine.sparsity: 2:4 -> unset)"),
        id="an option that this image does not know",
    ),
    case(
        lambda g: g.bench.build(g.on_hub(max_sequence_length=64)),
        *(10, "RequestInvalid", "(engine.maxSequenceLength: 128 -> 64)"),
        id="an option that is not in the key",
    ),
    case(
        lambda g: g.bench.build(g.on_hub(scope_namespace="team-b")),
        *(10, "RequestInvalid", 'scope "" is to be published as "team-b"'),
        id="a scope that is not in the key",
    ),
    case(
        lambda g: g.bench.build(g.bench.request("ftp://host/model")),
        *(10, "RequestInvalid", '"ftp://host/model" names no model: write hf://OWNER/NAME'),
        id="an unknown scheme",
    ),
]

STORES = [
    case(
        lambda g: g.bench.build(g.on_hub(), STORE_AWS_SECRET_ACCESS_KEY="wrong-secret-key"),
        *(10, "StoreDenied", "the secret key does not belong to it"),
        id="wrong credentials",
    ),
    case(
        lambda g: g.bench.build(g.on_hub(), STORE_AWS_SECRET_ACCESS_KEY=""),
        *(10, "StoreDenied", "has AWS_ACCESS_KEY_ID but no AWS_SECRET_ACCESS_KEY: it needs both"),
        id="half of the credentials",
    ),
    case(
        lambda g: g.bench.build(g.on_hub(store=location(g, bucket="no-such-bucket"))),
        *(10, "BucketMissing", "the bucket s3://no-such-bucket does not exist on http://127.0.0.1"),
        id="a missing bucket",
    ),
    case(
        lambda g: g.bench.build(g.on_hub(store=location(g, endpoint=nowhere()))),
        *(20, "StoreUnreachable", "(no connection): check the endpoint, the network policies"),
        id="a store that does not run",
    ),
]

HUB = [
    case(
        lambda g: g.bench.build(g.on_hub("acme/missing")),
        *(10, "ModelNotFound", "or may not be read without a token: correct spec.model.uri"),
        id="a model that does not exist",
    ),
    case(
        lambda g: g.bench.build(g.on_hub("acme/private"), MODEL_HF_TOKEN=WEAK_TOKEN),
        *(10, "ModelNotFound", "or may not be read with the HF_TOKEN that was given"),
        id="a private model with another's token",
    ),
    case(
        lambda g: g.bench.build(g.on_hub("acme/gated")),
        *(10, "ModelAccessDenied", "is gated on http"),
        id="a gated model without a token",
    ),
    case(
        lambda g: g.bench.build(g.on_hub("acme/gated"), MODEL_HF_TOKEN=WEAK_TOKEN),
        *(10, "ModelAccessDenied", "ask for access on the model's page"),
        id="a gated model with a token that has no access",
    ),
    case(
        lambda g: g.bench.build(g.on_hub(), MODEL_HF_TOKEN=BAD_TOKEN),
        *(
            10,
            "ModelAccessDenied",
            "(401): renew HF_TOKEN in the Secret that spec.model.secretName",
        ),
        id="a token that is none",
    ),
    case(
        lambda g: g.bench.build(g.on_hub(revision="b" * 40)),
        *(10, "ModelNotFound", f"has no commit {'b' * 40} on http"),
        id="a revision that does not exist",
    ),
    case(
        lambda g: busy(g, 503),
        *(20, "ModelUnreachable", "is in trouble: it answered 503 for hf://acme/tiny; try again"),
        id="a hub that is down",
    ),
    case(
        lambda g: busy(g, 429),
        *(20, "ModelUnreachable", "is in trouble: it answered 429"),
        id="a hub that counts requests",
    ),
    case(
        lambda g: g.bench.build(g.bench.request("hf://acme/tiny", hf_endpoint=nowhere())),
        *(20, "ModelUnreachable", "hf://acme/tiny cannot be fetched from http"),
        id="a hub that cannot be reached",
    ),
    case(
        damaged,
        *(20, "ModelUnreachable", "arrived damaged: its SHA-256 is not the one that the hub tells"),
        id="weights that are damaged on their way",
    ),
    case(
        without_sizes,
        *(10, "ModelUnreachable", "does not tell the sizes of the files of hf://acme/tiny"),
        id="a mirror that does not tell sizes",
    ),
]

BUCKETS = [
    case(
        lambda g: g.bench.build(g.bench.request(f"s3://{g.bench.place.location.bucket}/nothing")),
        *(10, "ModelNotFound", "correct spec.model.uri, or upload the model there"),
        id="a path without a model",
    ),
    case(
        lambda g: g.bench.build(g.bench.request("s3://no-such-bucket/model")),
        *(10, "ModelNotFound", "the bucket s3://no-such-bucket does not exist"),
        id="a missing bucket",
    ),
    case(
        lambda g: g.bench.build(g.on_s3(), MODEL_AWS_SECRET_ACCESS_KEY="wrong-secret-key"),
        *(10, "ModelAccessDenied", "the secret key does not belong to it"),
        id="wrong credentials",
    ),
    case(
        lambda g: g.bench.build(
            g.on_s3(), MODEL_AWS_ACCESS_KEY_ID="", MODEL_AWS_SECRET_ACCESS_KEY=""
        ),
        *(10, "ModelAccessDenied", "there are no credentials for s3://"),
        id="no credentials of the model, whatever the store has",
    ),
    case(
        lambda g: g.bench.build(g.on_s3(model_endpoint=S3Endpoint(endpoint=nowhere()))),
        *(20, "ModelUnreachable", "cannot be reached for s3://"),
        id="a service that does not run",
    ),
]

CLAIMS = [
    case(
        lambda g: g.bench.build(on_claim(g, "models/tinny")),
        *(10, "ModelNotFound", "pvc://weights/models/tinny is no folder of its claim"),
        id="a folder that does not exist",
    ),
    case(
        lambda g: g.bench.build(linked_out(g)),
        *(10, "ModelInvalid", "is a link that leaves the claim: put the file itself there"),
        id="a link out of the claim",
    ),
]

MODELS = [
    case(
        lambda g: g.altered(lambda folder: None, TinyModel(weights="pickle")),
        *(11, "WeightsArePickled", "are pickle files only (pytorch_model.bin), which can run code"),
        id="pickled weights only",
    ),
    case(
        lambda g: g.altered(lambda folder: only(folder, "model.gguf")),
        *(11, "ModelUnsupported", "has weights of another format only (model.gguf)"),
        id="a GGUF only",
    ),
    case(
        lambda g: g.altered(only),
        *(10, "ModelInvalid", "has no model.safetensors and no model.safetensors.index.json"),
        id="no weights",
    ),
    case(
        lambda g: g.altered(lambda folder: (folder / "tokenizer.json").unlink()),
        *(10, "ModelInvalid", "has no tokenizer.json: add it (transformers writes it"),
        id="no tokenizer",
    ),
    case(
        lambda g: g.altered(lambda folder: (folder / "config.json").unlink()),
        *(10, "ModelInvalid", "has no config.json: add it"),
        id="no config",
    ),
    case(
        lambda g: g.altered(lambda folder: (folder / "model-00002-of-00002.safetensors").unlink()),
        *(10, "ModelInvalid", "lacks model-00002-of-00002.safetensors, which model.safetensors.in"),
        id="a missing shard",
    ),
    case(
        lambda g: g.altered(
            lambda folder: (folder / "model.safetensors.index.json").write_text("{}")
        ),
        *(10, "ModelInvalid", "has no readable weight_map"),
        id="an index without a map",
    ),
    case(
        lambda g: g.altered(
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": {"lm_head.weight": "../other/model.safetensors"}}'
            )
        ),
        *(10, "ModelInvalid", "names ../other/model.safetensors, which is no safetensors file of"),
        id="an index that leaves the folder",
    ),
    case(
        lambda g: g.altered(lambda folder: None, TinyModel(weights="truncated")),
        *(10, "", "is truncated"),
        id="truncated weights",
    ),
    case(
        lambda g: g.altered(
            lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 100), TinyModel()
        ),
        *(10, "ModelInvalid", "is no safetensors file: its header would have"),
        id="weights that are something else",
    ),
    case(
        lambda g: g.altered(lambda folder: configure(folder, architectures=["MambaForCausalLM"])),
        *(11, "", "MambaForCausalLM"),
        id="another family",
    ),
]

OPTIONS_TO_REFUSE = [
    case(
        lambda g: g.bench.build(g.on_hub(options=with_options(max_sequence_length=4096))),
        *(10, "", "4096"),
        id="longer than the model",
    ),
    case(
        lambda g: g.bench.build(g.on_hub(options=with_options(dtype=DType.BFLOAT16))),
        *(11, "", "computes in float32, not in bfloat16"),
        id="another dtype",
    ),
    case(
        lambda g: g.bench.build(
            g.on_hub(
                options=with_options(quantization=Quantization(weights=WeightQuantization.INT8))
            )
        ),
        *(11, "", "does not quantize to int8"),
        id="quantized",
    ),
    case(
        lambda g: g.bench.build(g.on_hub(scratch_bytes=1 << 20)),
        *(10, "ScratchTooSmall", "but spec.build.scratch.size is 1.00 MiB: set it to 257Mi"),
        id="a scratch disk that is too small",
    ),
]


@pytest.mark.parametrize(
    ("act", "code", "reason", "sentence"),
    [*REQUESTS, *STORES, *HUB, *BUCKETS, *CLAIMS, *MODELS, *OPTIONS_TO_REFUSE],
)
def test_a_build_is_refused_in_words(
    given: Given, act: Case, code: int, reason: str, sentence: str
) -> None:
    run = act(given)
    assert run.code == code, run
    assert sentence in run.last["message"], run.last
    assert reason in ("", run.last["reason"]), run.last
    assert run.last == run.lines[-1]
    assert "Traceback" not in run.errors
    assert not any("/manifest.json" in key for key in given.bench.place.objects())


@pytest.mark.parametrize("model", ["unsupported", "truncated"])
def test_a_model_that_cannot_be_built_is_not_downloaded(
    given: Given, tmp_path: Path, model: str
) -> None:
    folder = TinyModel(weights="truncated" if model == "truncated" else "safetensors").write(
        tmp_path / "model"
    )
    if model == "unsupported":
        configure(folder, architectures=["MambaForCausalLM"])
    given.hub.repositories = {"acme/tiny": Repository(folder)}
    run = given.bench.build(given.on_hub())
    assert run.phases == ["Resolve"]
    whole = [path for _, path, _ in given.hub.asked if path.startswith("/cdn/")]
    assert len(whole) <= 2  # the length of the header, and the header


def test_a_download_that_breaks_off_goes_on(given: Given) -> None:
    given.hub.cut = 1
    run = given.bench.build(given.on_hub())
    assert run.code == 0, run


def test_the_token_is_not_sent_to_another_host(given: Given) -> None:
    run = given.bench.build(given.on_hub("acme/gated"), MODEL_HF_TOKEN=TOKEN)
    assert run.code == 0, run
    sent = {path.startswith("/cdn/"): authorization for _, path, authorization in given.hub.asked}
    assert sent == {False: f"Bearer {TOKEN}", True: None}
