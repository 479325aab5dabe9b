"""A pod that has to go finishes what it runs, in the time that its engine was measured to need."""

from __future__ import annotations

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llmengine_operator.drain import DEFAULT_SECONDS, SHORTEST
from tests.cluster.cluster import Cluster
from tests.demo.platform import ENGINES, Platform
from tests.e2e.engines import Engine, Engines, until

pytestmark = pytest.mark.cluster

LENGTH = 512
PROMPT = "Once upon a time"
# With the prompt nearly all that a sequence may have.
TOKENS = LENGTH - 32


@pytest.fixture(scope="module", autouse=True)
def _inside(in_node_network: Cluster) -> None:
    """Requests go to the cluster's own names."""


def generate(engine: Engine) -> dict[str, Any]:
    connection = http.client.HTTPConnection(engine.host, 8000, timeout=300)
    body = {
        "text_input": PROMPT,
        "max_tokens": TOKENS,
        "min_length": TOKENS,
        "return_num_output_tokens": True,
    }
    connection.request("POST", f"/v2/models/{engine.name}/generate", json.dumps(body))
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    assert response.status == 200, text
    return dict(json.loads(text))


def requests_per_slot(engine: Engine) -> float:
    connection = http.client.HTTPConnection(engine.host, 8002, timeout=10)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    (line,) = [line for line in lines if line.startswith("llmengine_requests_per_slot{")]
    return float(line.rpartition(" ")[2])


def speed_of(engine: Engine, platform: Platform) -> dict[str, Any]:
    key = f"v1/engines/{engine.key}/manifest.json"
    manifest = platform.s3.client().get_object(Bucket=ENGINES, Key=key)["Body"].read()
    return dict(json.loads(manifest)["speed"])


def test_a_pod_that_is_deleted_finishes_the_longest_generation(
    engines: Engines, smollm: str, platform: Platform
) -> None:
    size = {"maxBatchSize": 2, "maxSequenceLength": LENGTH}
    engine = engines.apply("drained", smollm, engine=size, serving={})
    engine.wait_ready()
    speed = speed_of(engine, platform)
    assert speed["slots"] == 2
    (pod,) = engine.pods()
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    (row,) = engine.status()["serving"]
    assert row["terminationGracePeriodSeconds"] == grace
    assert grace >= max(SHORTEST, 10 + 2 * LENGTH * speed["steps"][0]["seconds"])
    print(f"measured {speed}: {grace} s, where {DEFAULT_SECONDS} s is the default")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(generate, engine)
        until(lambda: requests_per_slot(engine) == 0.5, "the generation to run")
        path = f"/api/v1/namespaces/{engine.namespace}/pods/{pod['metadata']['name']}"
        platform.cluster.api.request("DELETE", path)
        assert answer.result(timeout=300)["num_output_tokens"] == TOKENS
    engine.wait_ready()
    # It served with the engine that it has, and no pod rolled for a figure.
    assert len(engine.jobs()) <= 1
    assert engine.status()["serving"][0]["terminationGracePeriodSeconds"] == grace
