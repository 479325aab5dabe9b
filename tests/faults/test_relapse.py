"""A server that served well and then dies again and again: its engine says so, stalls, and serves
again by itself.
"""

from __future__ import annotations

import time

import pytest

from llmengine_operator.strategy import rolled_out
from tests.cluster.paths import ClusterError
from tests.demo.platform import Platform
from tests.e2e.engines import Engine, Engines, until
from tests.faults.bad_images import DIES_LATER, POISON, make_runtime

pytestmark = pytest.mark.cluster

DEADLINE = 30
SERVING = {
    "terminationGracePeriodSeconds": 15,
    "rollout": {"progressDeadlineSeconds": DEADLINE},
}
# The kubelet waits up to this long before it starts a container that crashed anew.
BACK_OFF = 300.0


def shell(engine: Engine, script: str) -> None:
    (pod,) = engine.pods()
    where = ("-n", engine.namespace, pod["metadata"]["name"], "-c", "server")
    engine.platform.cluster.kubectl("exec", *where, "--", "sh", "-c", script)


def restarts(engine: Engine) -> int:
    (pod,) = engine.pods()
    return int(pod["status"]["containerStatuses"][0]["restartCount"])


def test_an_engine_whose_server_begins_to_die_stalls_and_serves_again_by_itself(
    platform: Platform, engines: Engines, tiny: str
) -> None:
    make_runtime(platform, DIES_LATER)
    engine = engines.apply("relapse", tiny, runtime=f"bad-{DIES_LATER.name}", serving=SERVING)
    engine.wait_ready(300)
    path = f"/apis/apps/v1/namespaces/{engine.namespace}/deployments/{engine.name}-amd64"
    until(lambda: rolled_out(platform.cluster.api.get(path)), "its rollout to be over")
    (pod,) = engine.pods()
    name = pod["metadata"]["name"]
    shell(engine, f"touch {POISON}")
    began = time.monotonic()
    work = engine.wait("Ready", "Unknown", "CrashLooping", timeout=60)
    assert work["message"].startswith(f"amd64: no pod serves; pod {name}: ")
    sentence = engine.wait_stalled("CrashLooping", timeout=DEADLINE + 90)
    stalled = time.monotonic() - began
    since = engine.condition("Stalled")["lastTransitionTime"]
    assert DIES_LATER.words in sentence
    assert engine.condition("Ready")["status"] == "False"
    assert engine.condition("Reconciling") == {}
    # It got ready for a moment again and again, and was never taken for one that serves.
    until(lambda: restarts(engine) >= 3, "it to be tried again", BACK_OFF)
    assert engine.condition("Stalled")["lastTransitionTime"] == since
    assert engine.condition("Ready")["status"] == "False"
    until(lambda: mended(engine), "a container to mend", BACK_OFF)
    engine.wait("Ready", "True", "Serving", timeout=BACK_OFF)
    assert engine.condition("Stalled") == {}
    assert engine.get()["metadata"]["generation"] == 1
    print(f"stalled {stalled:.1f} s after the first crash, with a deadline of {DEADLINE} s")


def mended(engine: Engine) -> bool:
    """Whatever the server died of is gone: it can be taken away only while a container runs."""
    try:
        shell(engine, f"rm -f {POISON}")
    except ClusterError:
        return False
    return True
