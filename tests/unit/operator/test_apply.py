"""When an object is written, and by which manager."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from llmengine_operator.apply import REPLICAS_MANAGER, Applier, _stamped
from llmengine_operator.conditions import ConditionType, find
from llmengine_operator.decision import Apply, ApplyDeployment, Scale
from llmengine_operator.kinds import Kind
from llmengine_operator.kube import FIELD_MANAGER, KubeObject
from llmengine_operator.kube_errors import ConflictError, NotFoundError
from llmengine_operator.observation import Found
from llmengine_operator.report import report
from tests.unit.operator.world import NOW, World, as_observed
from tests.unit.operator_edge.fake_kube import FakeKube

DEPLOYMENT: dict[str, Any] = {
    "kind": "Deployment",
    "metadata": {"namespace": "team", "name": "chat-amd64"},
    "spec": {"template": {"spec": {"containers": []}}},
}


class ApplyKube(FakeKube):
    """Remembers what is applied: (manager, whether it names a template, replicas)."""

    def __init__(self) -> None:
        super().__init__()
        self.applied: list[tuple[str, bool, int | None]] = []
        self.gone = False

    def apply(
        self, kind: Kind, obj: Mapping[str, Any], *, manager: str = FIELD_MANAGER
    ) -> KubeObject:
        spec = obj.get("spec", {})
        self.applied.append((manager, "template" in spec, spec.get("replicas")))
        if self.gone and obj["metadata"].get("uid"):
            raise ConflictError(409, "Conflict", "uid mismatch", f"apply {kind}")
        return {**obj, "metadata": {**obj["metadata"], "uid": "made"}}

    def scale(self, kind: Kind, namespace: str, name: str, replicas: int) -> None:
        if self.gone:
            raise NotFoundError(404, "NotFound", f"{name} not found", f"scale {kind}")


def observed(obj: Mapping[str, Any], **managers: dict[str, Any]) -> Found[Any]:
    """A Deployment that the API server has, with what its managers own."""
    seen = as_observed(_stamped(obj), ready=1, replicas=4)
    fields = [
        {"manager": name, "operation": "Apply", "fieldsV1": owned}
        for name, owned in managers.items()
    ]
    seen["metadata"]["managedFields"] = fields
    return Found(seen)


def apply(child: Found[Any] | None) -> tuple[list[tuple[str, bool, int | None]], bool]:
    kube = ApplyKube()
    children = {("Deployment", "chat-amd64"): child} if child else {}
    observation = replace(World().observation, children=children)
    written = Applier(kube).apply(observation, [ApplyDeployment(DEPLOYMENT, 2)]).deployments
    return kube.applied, bool(written)


def covers(seen: Any, wanted: Any) -> bool:
    """Whether nothing is written when the API server has `seen`."""
    kube = ApplyKube()
    obj = {"kind": "Service", "metadata": {"namespace": "team", "name": "chat"}, "spec": wanted}
    child = {**_stamped(obj), "spec": seen}
    observation = replace(World().observation, children={("Service", "chat"): Found(child)})
    Applier(kube).apply(observation, [Apply(obj)])
    return kube.applied == []


def test_replicas_have_a_manager_of_their_own_from_the_first_moment() -> None:
    applied, written = apply(None)
    assert written
    assert applied == [
        (REPLICAS_MANAGER, True, 2),
        (FIELD_MANAGER, True, None),
        (REPLICAS_MANAGER, False, 2),
    ]


def test_a_deployment_that_goes_while_it_is_made_is_left_to_the_next_pass() -> None:
    kube = ApplyKube()
    kube.gone = True
    applied = Applier(kube).apply(World().observation, [ApplyDeployment(DEPLOYMENT, 2)])
    assert applied.refused is None
    assert kube.applied[-1] == (REPLICAS_MANAGER, False, 2)
    # What was read of it is not to be believed any more.
    assert applied.deployments == {"chat-amd64"}


@pytest.mark.parametrize("gone", [False, True], ids=["scaled", "gone meanwhile"])
def test_a_deployment_that_is_scaled_is_not_as_it_was_read(gone: bool) -> None:
    """Else an engine with more replicas would be Ready before the first of them is made."""
    kube = ApplyKube()
    kube.gone = gone
    world = World(serving={"replicas": 2}).cached().serving(replicas=1)
    decision = world.decide()
    assert Scale("team", "chat-amd64", 2) in decision.actions
    applied = Applier(kube).apply(world.observation, [Scale("team", "chat-amd64", 2)])
    assert applied.deployments == {"chat-amd64"}
    status = report(world.observation, decision, applied=applied.deployments, refused=None, now=NOW)
    ready = find(status.conditions, ConditionType.READY)
    assert ready is not None
    assert (ready.status, ready.reason) == ("Unknown", "RollingOut")


def test_a_crash_while_a_deployment_is_made_leaves_its_template_with_no_second_owner() -> None:
    everything: dict[str, Any] = {"f:metadata": {}, "f:spec": {"f:replicas": {}, "f:template": {}}}
    child = observed(DEPLOYMENT, **{REPLICAS_MANAGER: everything})
    applied, written = apply(child)
    assert written
    # The number of pods is what it is: an autoscaler may have chosen it meanwhile.
    assert applied == [(FIELD_MANAGER, True, None), (REPLICAS_MANAGER, False, 4)]


def test_a_deployment_that_is_as_it_should_be_is_not_written() -> None:
    child = observed(DEPLOYMENT, **{REPLICAS_MANAGER: {"f:spec": {"f:replicas": {}}}})
    assert apply(child) == ([], False)


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        pytest.param({"a": "1Gi"}, {"a": "1024Mi"}, id="an amount in other words"),
        pytest.param({"a": "500m"}, {"a": "0.5"}, id="a fraction"),
        pytest.param({"a": "2"}, {"a": 2}, id="a number as text"),
        pytest.param({}, {"a": ""}, id="an empty text that is left out"),
        pytest.param({}, {"a": []}, id="an empty list that is left out"),
        pytest.param({}, {"a": {}}, id="an empty map that is left out"),
        pytest.param({"a": 1, "b": 2}, {"a": 1}, id="a default that was filled in"),
        pytest.param({"a": [1, 2]}, {"a": [1]}, id="an entry that somebody appended"),
        pytest.param({"a": [0, 1, 5, 2]}, {"a": [1, 2]}, id="entries that somebody put between"),
    ],
)
def test_what_the_api_server_writes_differently_is_no_difference(seen: Any, wanted: Any) -> None:
    assert covers(seen, wanted)


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        pytest.param({"a": "1Gi"}, {"a": "1025Mi"}, id="another amount"),
        pytest.param({}, {"a": False}, id="a false that is not said"),
        pytest.param({}, {"a": 0}, id="a zero that is not said"),
        pytest.param({"a": [2]}, {"a": [1]}, id="another entry"),
        pytest.param({"a": [1]}, {"a": [1, 2]}, id="a missing entry"),
        pytest.param({"a": [2, 1]}, {"a": [1, 2]}, id="entries in another order"),
        pytest.param({"a": "x"}, {"a": "y"}, id="another text"),
    ],
)
def test_a_difference_is_written(seen: Any, wanted: Any) -> None:
    assert not covers(seen, wanted)
