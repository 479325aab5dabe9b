"""Processes that are killed while clients stream: what is lost is what ran there, and no more."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from tests.demo.platform import Platform
from tests.e2e.engines import Engine, Engines, until
from tests.e2e.kills import kill_operator, kill_server
from tests.e2e.load import Fate, loaded

pytestmark = pytest.mark.cluster

SERVING = {"replicas": 2, "terminationGracePeriodSeconds": 15}
# Long answers, so that many are in the middle of one.
CLIENTS = ("--clients", "8", "--tokens", "64")
PATIENCE = 300.0
SEED = 20261124


@pytest.fixture
def engine(engines: Engines, tiny: str) -> Iterator[Engine]:
    made = engines.apply("killed", tiny, serving=SERVING)
    made.wait_ready(PATIENCE)
    yield made


def test_a_killed_server_takes_its_own_requests_with_it_and_their_clients_know(
    engine: Engine, platform: Platform
) -> None:
    with loaded(platform.cluster, engine.host, engine.name, *CLIENTS) as end:
        killed = kill_server(engine.pods()[0])
        until(lambda: restarts(engine) == 1, "the container to be started anew", PATIENCE)
        engine.wait_ready(PATIENCE)
        tally = end()
    # Who comes before the Service has forgotten the pod is turned away, and may try again.
    accepted = [loss for loss in tally.losses if loss.fate is not Fate.REFUSED]
    assert [loss for loss in accepted if not killed.took(loss)] == []
    assert accepted, "nothing ran there"
    assert tally.whole > 0


def restarts(engine: Engine) -> int:
    statuses = [pod["status"].get("containerStatuses", [{}]) for pod in engine.pods()]
    return sum(int(status[0].get("restartCount", 0)) for status in statuses)


def test_an_operator_that_is_killed_at_any_moment_of_a_rollout_costs_no_answer(
    engine: Engine, platform: Platform
) -> None:
    moments = random.Random(SEED)
    with loaded(platform.cluster, engine.host, engine.name, *CLIENTS) as end:
        for length in (160, 192):
            engine.edit({"engine": {"maxSequenceLength": length}})
            time.sleep(moments.uniform(0, 6))  # the moment is what is tried out
            kill_operator(platform)
            engine.wait_ready(PATIENCE)
            until(lambda: len(engine.pods()) == 2, "no old pod", PATIENCE)
        tally = end()
    assert tally.losses == []
    assert tally.whole > 0
