"""A node is drained, by kubectl, under an engine that clients stream from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from llmengine_operator.pods import is_ready
from tests.cluster.cluster import Cluster
from tests.cluster.node import NODE
from tests.cluster.paths import ClusterError
from tests.demo.platform import Platform
from tests.e2e.engines import Engine, Engines, until
from tests.e2e.load import Fate, Tally, loaded

pytestmark = pytest.mark.cluster
LOAD = ("--clients", "8", "--tokens", "32")

SERVES = ("True", "Serving", "True")
FEWER_PODS = ("Unknown", "RollingOut", "True")
NO_POD = ("Unknown", "RollingOut", "False")
NO_ROOM = ("Unknown", "Unschedulable", "True")


@pytest.fixture(scope="module", autouse=True)
def _inside(second_node: str, in_node_network: Cluster) -> None:
    """Two nodes, and the tests inside the network of the first."""


@pytest.fixture(scope="module")
def engine(platform: Platform, tiny: str) -> Iterator[Engine]:
    engines = Engines(platform, "drained-node")
    serving = {"replicas": 1, "terminationGracePeriodSeconds": 20}
    # Its pod is not to start beside the operator, who has to be there to see it go.
    platform.cluster.kubectl("cordon", NODE)
    try:
        engine = engines.apply("drained-node", tiny, serving=serving)
        engine.wait_ready()
    finally:
        platform.cluster.kubectl("uncordon", NODE)
    yield engine
    engines.delete_all()


@dataclass
class Seen:
    """What an engine said of itself, and its budget of the pods, a few times a second."""

    conditions: set[tuple[str, ...]] = field(default_factory=set)
    """Status and reason of Ready, and the status of Available."""
    wanted: set[int] = field(default_factory=set)
    missing: int = 0
    """How many pods fewer were ready than the budget wants, at the worst."""


def test_a_drain_takes_the_only_pod_and_whoever_comes_before_the_next_is_ready_is_told_so(
    engine: Engine,
) -> None:
    jobs = job_names(engine)
    (node,) = nodes(engine)
    with under_load(engine) as (seen, end):
        with engine.platform.cluster.drained(node):
            assert node not in nodes(engine)
        tally = end()
    assert job_names(engine) == jobs
    assert {SERVES, NO_POD} <= seen.conditions <= {SERVES, FEWER_PODS, NO_POD}
    assert seen.wanted == {0}  # or the node could never be drained
    # What ran was finished, and what came later was told so, or found nobody.
    assert tally.whole > 0
    assert len(tally.of(Fate.REFUSED, Fate.SAID)) == len(tally.losses)
    assert all("shutting down" in loss.text for loss in tally.of(Fate.SAID))


def test_drains_leave_one_of_two_pods_and_no_answer_is_lost(engine: Engine) -> None:
    engine.edit({"serving": {"replicas": 2}})
    cluster = engine.platform.cluster
    jobs = job_names(engine)
    stays, goes = nodes(engine)
    assert stays != goes
    with under_load(engine) as (seen, end):
        with cluster.drained(goes):
            assert nodes(engine) == [stays, stays]
            # Now there is no other node: a second drain gets one pod, and may not take the last.
            only = f"--pod-selector=llmengine.io/engine={engine.name}"
            late = "--timeout=8s"
            with pytest.raises(ClusterError, match="timeout"), cluster.drained(stays, only, late):
                pass
        nodes(engine)
        tally = end()
    assert job_names(engine) == jobs
    assert seen.conditions == {SERVES, FEWER_PODS, NO_ROOM}
    assert seen.wanted == {1}
    assert seen.missing <= 0
    assert not tally.losses
    assert tally.whole > 0


@contextmanager
def under_load(engine: Engine) -> Iterator[tuple[Seen, Callable[[], Tally]]]:
    cluster = engine.platform.cluster
    with watched(engine) as seen, loaded(cluster, engine.host, engine.name, *LOAD) as end:
        yield seen, end


def nodes(engine: Engine) -> list[str]:
    """Where its pods run, once it is Ready with all of them."""
    wanted = engine.get()["spec"]["serving"]["replicas"]
    until(
        lambda: len(pods := engine.pods()) == wanted and all(map(is_ready, pods)),
        f"{wanted} ready pods",
    )
    engine.wait_ready()
    return sorted(pod["spec"]["nodeName"] for pod in engine.pods())


def job_names(engine: Engine) -> list[str]:
    return [job["metadata"]["name"] for job in engine.jobs()]


@contextmanager
def watched(engine: Engine) -> Iterator[Seen]:
    """Looks at the engine and at its budget all the while."""
    seen, stop = Seen(), threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            said = {it["type"]: it for it in engine.status()["conditions"]}
            ready, available = said["Ready"], said["Available"]
            seen.conditions.add((ready["status"], ready["reason"], available["status"]))
            budget = budget_of(engine)
            seen.wanted.add(budget["desiredHealthy"])
            seen.missing = max(seen.missing, budget["desiredHealthy"] - budget["currentHealthy"])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def budget_of(engine: Engine) -> dict[str, Any]:
    path = f"/apis/policy/v1/namespaces/{engine.namespace}/poddisruptionbudgets"
    (budget,) = engine.platform.cluster.api.items(path)
    return dict(budget["status"])
