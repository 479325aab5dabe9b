"""What serves, while the store or the process below it breaks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.demo.ask import ask
from tests.demo.platform import ENGINES, Platform
from tests.e2e.engines import Engine, Engines, until

pytestmark = pytest.mark.cluster

HELLO = '[{"role":"user","content":"hello"}]'
# Finds the process that holds the engine, and ends it as the kernel would.
KILL_ENGINE = """
import os, signal
pid = int(open("/run/llmengine/loop").read().split()[0])
os.kill(pid, signal.SIGKILL)
"""


@pytest.fixture(scope="module", autouse=True)
def _inside(in_node_network: Cluster) -> None:
    """Requests go to the cluster's own names."""


@pytest.fixture
def served(engines: Engines, tiny: str) -> Iterator[Engine]:
    engine = engines.apply("served", tiny)
    engine.wait_ready()
    yield engine


def answers(engine: Engine) -> bool:
    return bool(ask(f"{engine.host}:8001", engine.name, HELLO, 2))


def test_a_dead_engine_process_turns_the_pod_unready_and_restarts_it_within_a_minute(
    served: Engine, platform: Platform
) -> None:
    pod = served.pods()[0]["metadata"]["name"]
    platform.cluster.kubectl(
        *("exec", "-n", served.namespace, pod, "-c", "server", "--"),
        *("python3", "-c", KILL_ENGINE),
    )
    began = time.monotonic()
    until(lambda: restarts(served) == 1, "the container to be restarted", 60)
    until(lambda: served.condition("Available").get("status") == "True", "the pod to be ready", 60)
    print(f"unready, restarted and ready again: {time.monotonic() - began:.1f} s")
    served.wait_forwarded()
    assert answers(served)


def restarts(engine: Engine) -> int:
    statuses = engine.pods()[0]["status"].get("containerStatuses", [{}])
    return int(statuses[0].get("restartCount", 0))


def test_a_damaged_blob_is_refused_by_name_and_never_served(
    served: Engine, platform: Platform
) -> None:
    file = weights_of(served, platform)
    flip_a_bit(file)
    platform.cluster.kubectl(
        *("delete", "pod", "-n", served.namespace, served.pods()[0]["metadata"]["name"]),
    )
    sentence = served.wait_stalled("FetchFailed")
    assert file.name in sentence
    assert served.condition("Available")["status"] == "False"
    flip_a_bit(file)
    served.wait_ready()


def weights_of(engine: Engine, platform: Platform) -> Path:
    """The engine's largest blob on the server's disk; it is called by its digest."""
    client = platform.s3.client()
    key = f"v1/engines/{engine.key}/manifest.json"
    manifest = client.get_object(Bucket=ENGINES, Key=key)["Body"].read().decode()
    blobs = {
        name.rpartition("/")[2]: size
        for name, size in platform.stored("v1/blobs/").items()
        if name.rpartition("/")[2] in manifest
    }
    digest = max(blobs, key=lambda name: blobs[name])
    return next(Path(platform.s3.folder).rglob(digest))


def flip_a_bit(file: Path) -> None:
    with file.open("r+b") as data:
        data.seek(file.stat().st_size // 2)
        byte = data.read(1)[0]
        data.seek(-1, 1)
        data.write(bytes([byte ^ 1]))


def test_a_store_that_is_away_stops_no_pod_and_starts_no_build(
    served: Engine, platform: Platform, engines: Engines
) -> None:
    platform.s3.stop()
    try:
        served.edit({"model": {"revision": f"{engines.revision}-next"}})
        condition = served.wait("Ready", "Unknown", "StoreUnreachable")
        assert platform.s3.endpoint in condition["message"]
        assert served.condition("Available")["status"] == "True"
        assert answers(served)
        assert not served.jobs()
    finally:
        platform.s3.start()
    served.wait_ready()
