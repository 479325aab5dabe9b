"""Every state that the operator can report, before the judges of the GitOps tools."""

from __future__ import annotations

import re
from typing import Any

import pytest

from llmengine_operator.reasons import Reason
from tests.cluster.paths import REPOSITORY
from tests.contract.gitops.judges import argo, flux, kstatus
from tests.contract.gitops.manifests import health_check_expressions
from tests.contract.gitops.states import STATES, State

NAMES = [state.name for state in STATES]
DELETED = "deleted, its parts are going"
# A build that failed for good is one state, whatever it failed of.
_OF_FAILED_BUILDS = {
    Reason.BUILD_FAILED,
    Reason.BUILD_OUT_OF_MEMORY,
    Reason.BUILD_DEADLINE_EXCEEDED,
    Reason.BUILD_EVICTED,
    Reason.BUILD_LOST,
}
# Of other conditions than Ready, and of nodes that are passed over; and what is said of an object
# that cannot be read at all.
_NOT_OF_READY = {
    Reason.CACHED,
    Reason.NO_POD_READY,
    Reason.GPU_UNLABELLED,
    Reason.GPU_TOO_SMALL,
    Reason.SPEC_INVALID,
}

by_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    return {state.name: state.object for state in STATES}


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    return {state.name: state for state in STATES}


@pytest.fixture(scope="module")
def kstatuses(objects: dict[str, dict[str, Any]]) -> dict[str, str]:
    return dict(zip(objects, kstatus(*objects.values()), strict=True))


@pytest.fixture(scope="module")
def healths(objects: dict[str, dict[str, Any]]) -> dict[str, str]:
    said = argo(*objects.values())
    return {name: verdict.status for name, verdict in zip(objects, said, strict=True)}


def conditions(obj: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {c["type"]: c for c in obj["status"].get("conditions", [])}


def test_all_reasons_that_ready_can_have_are_among_the_states(
    objects: dict[str, dict[str, Any]],
) -> None:
    seen = {conditions(obj)["Ready"]["reason"] for obj in objects.values() if conditions(obj)}
    assert set(Reason) - seen == _OF_FAILED_BUILDS | _NOT_OF_READY


@by_name
def test_flux_and_helm_take_a_state_for_what_it_is(
    name: str, states: dict[str, State], kstatuses: dict[str, str]
) -> None:
    assert kstatuses[name] == states[name].kstatus


@by_name
def test_argo_cd_takes_a_state_for_what_it_is(
    name: str, states: dict[str, State], healths: dict[str, str]
) -> None:
    if name != DELETED:
        assert healths[name] == states[name].argo


@by_name
def test_nobody_takes_an_engine_for_done_that_does_not_serve_the_newest_spec(
    name: str,
    objects: dict[str, dict[str, Any]],
    kstatuses: dict[str, str],
    healths: dict[str, str],
) -> None:
    obj = objects[name]
    seen = obj["status"]["observedGeneration"] == obj["metadata"]["generation"]
    ready = conditions(obj).get("Ready", {"status": "Unknown"})["status"]
    going = "deletionTimestamp" in obj["metadata"]
    assert (kstatuses[name] == "Current") == (seen and ready == "True" and not going)
    assert (kstatuses[name] == "Failed") == (seen and ready == "False")
    if not going:
        assert (healths[name] == "Healthy") == (kstatuses[name] == "Current")
        assert (healths[name] == "Degraded") == (kstatuses[name] == "Failed")


def test_argo_cd_shows_the_reason_and_the_sentence() -> None:
    states = {state.name: state.object for state in STATES}
    (building, failed) = argo(states["a build runs"], states["a build failed for good"])
    assert building.message == "Building: amd64: Compile 40 %"
    assert failed.message == "ModelUnsupported: amd64: its last words"


def test_the_expressions_of_the_example_differ_from_kstatus_for_suspended_engines_only(
    objects: dict[str, dict[str, Any]], kstatuses: dict[str, str]
) -> None:
    judged = flux(health_check_expressions(), *objects.values())
    differ = {
        name: said
        for name, said in zip(objects, judged, strict=True)
        if said != kstatuses[name] and name != DELETED
    }
    assert differ == {
        "suspended before it was built": "Current",
        "suspended, and edited since it served": "Current",
    }


def rows() -> list[list[str]]:
    """The table of the page for users, without its head."""
    page = (REPOSITORY / "docs" / "gitops.md").read_text()
    lines = re.findall(r"^\| (.+) \|$", page, re.MULTILINE)
    table = [[cell.strip().strip("`") for cell in line.split("|")] for line in lines]
    return [row for row in table if row[0] in NAMES]


def test_the_table_for_users_is_right(
    objects: dict[str, dict[str, Any]],
    states: dict[str, State],
    kstatuses: dict[str, str],
    healths: dict[str, str],
) -> None:
    table = rows()
    assert len(table) > 10
    for name, ready, reconciling, stalled, by_kstatus, by_argo in table:
        seen = conditions(objects[name])
        said = [seen.get(type_, {}).get("status", "-") for type_ in _COLUMNS]
        assert [ready, reconciling, stalled] == said, name
        assert by_kstatus == kstatuses[name], name
        assert by_argo == (states[name].argo if name == DELETED else healths[name]), name


_COLUMNS = ("Ready", "Reconciling", "Stalled")


def test_every_verdict_has_a_row_in_the_table() -> None:
    assert {(row[4], row[5]) for row in rows()} == {(s.kstatus, s.argo) for s in STATES}


def test_an_engine_runtime_is_done_once_it_is_there() -> None:
    runtime = {"apiVersion": "llmengine.io/v1alpha1", "kind": "EngineRuntime", "spec": {}}
    assert kstatus({**runtime, "metadata": {"name": "r", "generation": 3}}) == ["Current"]
