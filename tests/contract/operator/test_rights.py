"""The whole operator, as its image runs it, with the chart's rights and no others."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from llmengine_operator import kinds
from llmengine_operator.kinds import DEPLOYMENT, HPA, LLMENGINE, POD, SERVICE
from tests.contract.charts.rights import Right, needed
from tests.contract.operator.builder import Builder, request_of
from tests.contract.operator.command import OperatorCommand
from tests.contract.operator.setting import Identities
from tests.contract.operator.stage import MODEL, Stage

pytestmark = pytest.mark.controlplane

SIDE_BY_SIDE = {"maxConcurrentPerArchitecture": 9}
AUTOSCALED = {"autoscaling": {"maxReplicas": 3}, "resources": {"requests": {"cpu": "100m"}}}
# Of the fake nodes one is of another architecture, and tainted.
EVERYWHERE = {"tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}]}
PRIVATE = {"uri": MODEL, "revision": "v1", "secretName": "mine"}


def lead_a_whole_life(stage: Stage, builder: Builder) -> None:
    """Everything that an operator does for engines."""
    stage.create(build=EVERYWHERE, serving=AUTOSCALED)
    # Of the key of the first, and of one more.
    stage.create("wide", build=EVERYWHERE, serving=EVERYWHERE)
    for name in ("mine", "again"):
        stage.create(name, model=PRIVATE)
    stage.make_claim("weights")
    stage.create("claimed", model={"uri": "pvc://weights", "revision": "v1"})
    stage.until_job(2)
    shared, arm = sorted(stage.jobs(), key=lambda job: request_of(job).architecture)
    stage.until_job(2, stage.team)
    private = next(j for j in stage.jobs(stage.team) if "pvc://" not in str(j))
    stage.until(
        "both owners",
        lambda: len(stage.job(private)["metadata"]["ownerReferences"]) == 2,
    )
    builder.fail(shared, 20, "StoreUnreachable", "no answer")
    stage.until_reason("BuildRetrying")
    stage.ask_again(at="now")
    builder.finish(stage.until_attempt(2))
    builder.finish(private)
    builder.finish(arm)
    for name in ("chat", "mine", "again", "wide"):
        stage.until_reason("Serving", name)
    assert stage.get(DEPLOYMENT, "wide-arm64") is not None
    stage.edit("wide", architectures=["amd64"])
    stage.until("its Deployment to go", lambda: stage.get(DEPLOYMENT, "wide-arm64") is None)
    stage.until("its Service to go", lambda: stage.get(SERVICE, "wide-arm64") is None)
    stage.remove(LLMENGINE, "wide")
    stage.edit(serving={"autoscaling": None, "replicas": 2})
    stage.until("no autoscaler", lambda: stage.get(HPA, "chat-amd64") is None)
    stage.until("two pods", lambda: stage.status()["summary"]["replicas"] == "2/2")
    stage.set_image("v2")
    for name in ("chat", "mine", "again"):
        stage.until("its pods to follow", lambda n=name: _image(stage, n).endswith(":v2"))
        stage.until_reason("Serving", name)
    stage.edit(model={"revision": "v2"})
    stage.until_reason("Building")
    for name in ("chat", "mine", "again", "claimed"):
        stage.remove(LLMENGINE, name)
    stage.until_gone()
    stage.until("all pods to go", lambda: stage.items(POD) == [])


def _image(stage: Stage, name: str) -> str:
    found = stage.get(DEPLOYMENT, f"{name}-amd64")
    assert found is not None
    return str(found["spec"]["template"]["spec"]["containers"][0]["image"])


def test_its_rights_are_enough_for_a_whole_life_and_it_uses_them(
    stage: Stage, builder: Builder, identity: Path, tmp_path: Path
) -> None:
    config = stage.config(watchNamespaces=[], builds=SIDE_BY_SIDE, leaderElection={"enabled": True})
    with OperatorCommand(tmp_path, config, identity, stage.place) as operator:
        lead_a_whole_life(stage, builder)
        assert operator.warnings() == []
        used = {
            Right.to(verb, getattr(kinds, _constant(kind))) for verb, kind in operator.requests()
        }
    # A patch of a subresource is counted as one of its object.
    may = {Right(r.group, r.resource.partition("/")[0], r.verb) for r in needed()}
    assert used <= may
    unused = {
        (right.verb, right.resource)
        for right in may - used
        if right.verb != "watch" and (right.verb, right.resource) not in UNCOUNTED
    }
    # Events are looked at only when a Job gets no pod; runtimes are listed to be watched.
    assert unused == {("list", "events"), ("list", "engineruntimes")}


# An apply that makes its object is one request; a lease may be there already.
UNCOUNTED = {
    ("create", "leases"),
    ("create", "deployments"),
    ("create", "services"),
    ("create", "horizontalpodautoscalers"),
    ("create", "poddisruptionbudgets"),
}


def _constant(kind: str) -> str:
    known = {k.kind: name for name, k in vars(kinds).items() if isinstance(k, kinds.Kind)}
    return known[kind]


def test_with_watched_namespaces_it_needs_rights_there_and_touches_nothing_else(
    stage: Stage, builder: Builder, identities: Identities, tmp_path: Path
) -> None:
    watched = {"watchNamespaces": [stage.team], "builds": {"namespace": stage.builds}}
    identity = identities.make(f"llmengine-operator-{uuid.uuid4().hex[:6]}", **watched)
    config = stage.config(
        watchNamespaces=[stage.team],
        builds={"namespace": stage.builds, **SIDE_BY_SIDE},
    )
    stage.create("alien", namespace=stage.other, revision="v9")
    with OperatorCommand(tmp_path, config, identity, stage.place) as operator:
        lead_a_whole_life(stage, builder)
        assert operator.warnings() == []
    alien = stage.get(LLMENGINE, "alien", stage.other)
    assert alien is not None
    assert alien["status"] == {"observedGeneration": -1}
    assert stage.children(stage.other) == {}
