"""A real model on a real node: built, stored under its key, served by Triton, and right."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from llmengine.artifact import Manifest
from tests.cluster.cluster import Cluster
from tests.demo.ask import ask
from tests.demo.platform import BUILDS_NAMESPACE, Platform
from tests.e2e.engines import Engine, Engines
from tests.models import golden

pytestmark = [pytest.mark.cluster, pytest.mark.model]

SPEC: dict[str, Any] = {"engine": {"maxBatchSize": 8, "maxSequenceLength": 2048}}


@pytest.fixture(scope="module")
def chat(
    in_node_network: Cluster, platform: Platform, smollm: str, request: pytest.FixtureRequest
) -> Iterator[Engine]:
    """SmolLM2, served."""
    engines = Engines(platform, request.node.name)
    engine = engines.apply("smollm2", smollm, **SPEC)
    engine.wait_ready(timeout=180)
    yield engine
    engines.delete_all()


def test_it_says_what_transformers_says(chat: Engine) -> None:
    for conversation in golden.load_smollm2().conversations:
        messages = json.dumps(conversation.messages)
        said = ask(f"{chat.host}:8001", chat.name, messages, len(conversation.output_ids))
        assert "".join(said) == conversation.text


def test_the_store_holds_the_engine_under_its_key(chat: Engine, platform: Platform) -> None:
    stored = platform.stored()
    name = f"v1/engines/{chat.key}/manifest.json"
    assert name in stored
    client = platform.s3.client()
    manifest = Manifest.parse(client.get_object(Bucket="engines", Key=name)["Body"].read())
    for file in manifest.files:
        hex_digits = file.digest.removeprefix("sha256:")
        assert stored[f"v1/blobs/sha256/{hex_digits[:2]}/{hex_digits}"] == file.size
    assert manifest.verification.mean_relative_error <= 1e-5
    assert chat.row()["sizeBytes"] == manifest.size_bytes


def test_http_generate_answers_curl(chat: Engine, in_node_network: Cluster) -> None:
    body = json.dumps({"text_input": "The capital of France is", "max_tokens": 4})
    url = f"http://{chat.host}:8000/v2/models/{chat.name}/generate"
    done = in_node_network.exec("curl", "-sS", "-d", body, url, capture_output=True)
    assert "Paris" in json.loads(done.stdout)["text_output"]


def test_http_generate_stream_sends_piece_by_piece(chat: Engine, in_node_network: Cluster) -> None:
    body = json.dumps({"text_input": "One, two, three,", "max_tokens": 24, "stream": True})
    url = f"http://{chat.host}:8000/v2/models/{chat.name}/generate_stream"
    done = in_node_network.exec("curl", "-sSN", "-d", body, url, capture_output=True)
    events = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("data:")]
    assert len(events) > 2
    assert "four" in "".join(event["text_output"] for event in events)


def test_kubectl_shows_what_a_person_wants_to_know(chat: Engine, platform: Platform) -> None:
    lines = platform.cluster.kubectl(
        "get", "llmengine", chat.name, "-n", chat.namespace
    ).splitlines()
    assert lines[0].split() == [
        *("NAME", "READY", "REASON", "MODEL", "RUNTIME", "ENGINES", "REPLICAS", "AGE")
    ]
    assert lines[1].split()[:7] == [
        *("smollm2", "True", "Serving", "s3://models/smollm2", "onnxruntime-1.32.0", "1/1", "1/1")
    ]


def test_the_same_engine_in_another_namespace_is_not_built_again(
    chat: Engine, engines: Engines, smollm: str, platform: Platform
) -> None:
    jobs = {job["metadata"]["uid"] for job in chat.jobs()}
    began = time.monotonic()
    revision = chat.get()["spec"]["model"]["revision"]
    other = engines.apply("again", smollm, namespace="team-b", model={"revision": revision}, **SPEC)
    other.wait_ready()
    print(f"from apply to ready, cached: {time.monotonic() - began:.1f} s")
    assert other.key == chat.key
    assert {job["metadata"]["uid"] for job in other.jobs()} == jobs
    said = ask(f"{other.host}:8001", "again", '[{"role":"user","content":"Hi"}]', 8)
    assert "".join(said)
    assert not platform.cluster.api.items("/apis/batch/v1/namespaces/team-b/jobs")


def test_builds_run_where_only_they_may_write(chat: Engine) -> None:
    assert {job["metadata"]["namespace"] for job in chat.jobs()} == {BUILDS_NAMESPACE}
