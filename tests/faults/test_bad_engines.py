"""New engines that do not serve: each stops at its first pod, while the old pods serve on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.demo.platform import RUNTIME, Platform
from tests.e2e.engines import Engines, until
from tests.e2e.load import Fate, Tally, loaded
from tests.faults import bad_images
from tests.faults.bad_images import Fault, make_runtime

pytestmark = pytest.mark.cluster

DEADLINE = 30
SERVING = {
    "replicas": 2,
    "terminationGracePeriodSeconds": 15,
    "rollout": {"progressDeadlineSeconds": DEADLINE},
}
LIGHT = ("--clients", "2", "--pause", "0.2")
PATIENCE = 300.0


@dataclass(frozen=True)
class Outcome:
    """One engine that was edited to a bad one and back."""

    old_key: str
    new_key: str
    old_pods: list[dict[str, Any]]
    stalled: dict[str, Any]
    pods: list[dict[str, Any]]
    reverted: dict[str, Any]
    last_pods: list[dict[str, Any]]
    jobs_of_revert: int
    tally: Tally


@pytest.fixture(scope="module")
def outcomes(platform: Platform, tiny: str) -> Iterator[dict[str, Outcome]]:
    """All faults at the same time: each waits for its deadline."""
    engines = Engines(platform, "bad engines")
    try:
        yield _outcomes(platform, engines, tiny)
    finally:
        engines.delete_all()


def _outcomes(platform: Platform, engines: Engines, tiny: str) -> dict[str, Outcome]:
    mine = {
        fault.name: engines.apply(fault.name, tiny, serving=SERVING) for fault in bad_images.ALL
    }
    for fault in bad_images.ALL:
        make_runtime(platform, fault)
    for engine in mine.values():
        engine.wait_ready(PATIENCE)
    before = {name: (engine.key, engine.pods()) for name, engine in mine.items()}
    with ExitStack() as stack:
        ends = {
            name: stack.enter_context(loaded(platform.cluster, engine.host, name, *LIGHT))
            for name, engine in mine.items()
        }
        for name, engine in mine.items():
            engine.edit({"runtime": f"bad-{name}", "engine": {"maxSequenceLength": 64}})
        stalled = {}
        for name, engine in mine.items():
            engine.wait("Stalled", "True", timeout=PATIENCE)
            stalled[name] = engine.status(), engine.pods()
        for engine in mine.values():
            engine.edit({"runtime": RUNTIME, "engine": {"maxSequenceLength": 128}})
        for engine in mine.values():
            engine.wait_ready(PATIENCE)
            until(lambda e=engine: len(e.pods()) == 2, "the bad pod to go")  # type: ignore[misc]
        return {
            name: Outcome(
                old_key=before[name][0],
                new_key=stalled[name][0]["engines"][0]["key"],
                old_pods=before[name][1],
                stalled=stalled[name][0],
                pods=stalled[name][1],
                reverted=engine.status(),
                last_pods=engine.pods(),
                jobs_of_revert=len(engine.jobs()),
                tally=ends[name](),
            )
            for name, engine in mine.items()
        }


def conditions(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}


def uids(pods: list[dict[str, Any]]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def ready(pod: dict[str, Any]) -> bool:
    found = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
    return found.get("Ready") == "True"


every_fault = pytest.mark.parametrize(
    "fault", [pytest.param(fault, id=fault.name) for fault in bad_images.ALL]
)


@every_fault
def test_it_stalls_within_its_deadline_and_says_the_pods_last_words(
    outcomes: dict[str, Outcome], fault: Fault
) -> None:
    outcome = outcomes[fault.name]
    (new,) = [p for p in outcome.pods if p["metadata"]["uid"] not in uids(outcome.old_pods)]
    found = conditions(outcome.stalled)
    assert found["Stalled"][0] == "True"
    assert found["Ready"] == ("False", found["Stalled"][1])
    assert "Reconciling" not in found
    message = next(c["message"] for c in outcome.stalled["conditions"] if c["type"] == "Stalled")
    assert f"pod {new['metadata']['name']}" in message
    assert fault.words in message


@every_fault
def test_it_gets_one_pod_and_every_old_one_stays_and_serves(
    outcomes: dict[str, Outcome], fault: Fault
) -> None:
    outcome = outcomes[fault.name]
    assert len(outcome.pods) == 3
    assert uids(outcome.old_pods) < uids(outcome.pods)
    assert all(
        ready(pod) for pod in outcome.pods if pod["metadata"]["uid"] in uids(outcome.old_pods)
    )
    assert conditions(outcome.stalled)["Available"] == ("True", "Serving")


@every_fault
def test_the_status_shows_what_is_wanted_and_what_serves_instead(
    outcomes: dict[str, Outcome], fault: Fault
) -> None:
    outcome = outcomes[fault.name]
    (row,) = outcome.stalled["serving"]
    assert row["key"] == outcome.new_key != outcome.old_key
    assert row["replaces"]["key"] == outcome.old_key
    assert row["replaces"]["readyReplicas"] == 2
    assert outcome.stalled["engines"][0]["changed"] == ["engine.maxSequenceLength: 128 -> 64"]


@every_fault
def test_taking_the_edit_back_ends_it_without_a_build_and_with_the_very_same_pods(
    outcomes: dict[str, Outcome], fault: Fault
) -> None:
    outcome = outcomes[fault.name]
    assert conditions(outcome.reverted)["Ready"] == ("True", "Serving")
    assert "replaces" not in outcome.reverted["serving"][0]
    assert uids(outcome.last_pods) == uids(outcome.old_pods)
    assert outcome.jobs_of_revert == 0


@every_fault
def test_clients_lose_nothing_but_what_a_pod_that_dies_of_requests_was_given(
    outcomes: dict[str, Outcome], fault: Fault
) -> None:
    tally = outcomes[fault.name].tally
    assert tally.whole > 0
    if fault is bad_images.DIES_SOON:
        assert tally.losses == tally.of(Fate.REFUSED, Fate.BROKEN)
    else:
        assert tally.losses == []
