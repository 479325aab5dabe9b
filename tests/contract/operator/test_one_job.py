"""One Job for each key, for as long as any engine wants it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llmengine_operator.kinds import JOB, LLMENGINE, POD, PVC
from tests.contract.operator.builder import Builder, request_of
from tests.contract.operator.running import LiveOperator
from tests.contract.operator.stage import MODEL, Stage

pytestmark = pytest.mark.controlplane

PRIVATE = {"uri": MODEL, "revision": "v1", "secretName": "mine"}


@pytest.fixture
def operator(stage: Stage) -> Iterator[LiveOperator]:
    with LiveOperator(stage) as running:
        yield running


def names_of_owners(job: dict[str, Any]) -> list[str]:
    return sorted(o["name"] for o in job["metadata"].get("ownerReferences", []))


def test_equal_engines_that_are_applied_in_one_second_are_built_once(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    stage.cluster.apply(stage.manifest(), stage.manifest(namespace=stage.other))
    job = stage.until_job()
    for namespace in (stage.team, stage.other):
        stage.until_reason("Building", namespace=namespace)
    builder.finish(job)
    for namespace in (stage.team, stage.other):
        stage.until_reason("Serving", namespace=namespace)
    assert operator.client.requests["create", "Job"] == 1


def test_a_job_lives_until_the_last_engine_that_wants_it_is_deleted(
    stage: Stage, operator: LiveOperator
) -> None:
    stage.create()
    stage.create(namespace=stage.other)
    job = stage.until_job()
    for namespace in (stage.team, stage.other):
        stage.until_reason("Building", namespace=namespace)
    stage.remove(LLMENGINE, "chat")
    stage.until("the Services to go", lambda: stage.children() == {})
    passes = operator.passes.count(("", "builds"))
    operator.resync()
    stage.until("a pass over Jobs", lambda: operator.passes.count(("", "builds")) > passes)
    assert stage.jobs()[0]["metadata"]["uid"] == job["metadata"]["uid"]
    stage.remove(LLMENGINE, "chat", namespace=stage.other)
    stage.until_gone()


def test_an_edit_during_a_build_ends_the_old_job_at_once_and_starts_the_new_one(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    stage.create()
    old = stage.until_job()
    stage.until_reason("Building")
    stage.edit(model={"revision": "v2"})
    stage.until("the old Job to go", lambda: old["metadata"]["name"] not in _jobs(stage))
    new = stage.until_job()
    assert request_of(new).revision == "v2"
    builder.finish(new)
    stage.until_reason("Serving")
    assert builder.store.get_manifest(request_of(old).key) is None


def _jobs(stage: Stage) -> list[str]:
    return [job["metadata"]["name"] for job in stage.jobs()]


def test_an_edit_that_is_taken_back_finds_the_engine_in_the_store(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    stage.create()
    builder.finish(stage.until_job())
    stage.until_reason("Serving")
    stage.edit(model={"revision": "v2"})
    stage.until("the new build", lambda: [request_of(j).revision for j in stage.jobs()] == ["v2"])
    stage.edit(model={"revision": "v1"})
    stage.until("no Job", lambda: stage.jobs() == [])
    stage.until_reason("Serving")
    assert operator.client.requests["create", "Job"] == 2


class Stages:
    """Brings an engine to a stage of its life. Returns the key if its engine is stored by then."""

    def __init__(self, stage: Stage, builder: Builder) -> None:
        self.stage, self.builder = stage, builder

    def queued(self) -> str:
        self.stage.create("first", namespace=self.stage.other, revision="v0")
        self.stage.until_job()
        self.stage.create()
        self.stage.until_reason("BuildQueued")
        self.stage.remove(LLMENGINE, "first", namespace=self.stage.other)
        return ""

    def pending(self) -> str:
        self.stage.create()
        self.builder.stuck(self.stage.until_job(), "ImagePullBackOff", "no such image")
        self.stage.until_reason("ImagePullFailed")
        return ""

    def running(self) -> str:
        self.stage.create()
        self.stage.until_job()
        self.stage.until_reason("Building")
        return ""

    def publishing(self) -> str:
        self.stage.create()
        self.builder.end(self.stage.until_job())
        self.stage.until_reason("Publishing")
        return ""

    def retrying(self) -> str:
        self.stage.create()
        self.builder.fail(self.stage.until_job(), 20, "StoreUnreachable", "no answer")
        self.stage.until_reason("BuildRetrying")
        return ""

    def failed(self) -> str:
        self.stage.create()
        self.builder.fail(self.stage.until_job(), 11, "ModelUnsupported", "not this one")
        self.stage.until_reason("ModelUnsupported")
        return ""

    def rolling_out(self) -> str:
        self.stage.create()
        job = self.stage.until_job()
        self.builder.pod(job)
        self.stage.cordon(True)
        self.builder.finish(job)
        self.stage.until_reason("Unschedulable")
        return request_of(job).key

    def serving(self) -> str:
        self.stage.create(serving={"replicas": 2})
        job = self.stage.until_job()
        self.builder.finish(job)
        self.stage.until_reason("Serving")
        return request_of(job).key

    def autoscaled(self) -> str:
        cpu = {"requests": {"cpu": "500m"}}
        self.stage.create(serving={"autoscaling": {"maxReplicas": 3}, "resources": cpu})
        job = self.stage.until_job()
        self.builder.finish(job)
        self.stage.until_reason("Serving")
        return request_of(job).key

    def rebuilding(self) -> str:
        key = self.serving()
        self.stage.edit(model={"revision": "v2"})
        self.stage.until_reason("Building")
        return key


@pytest.mark.parametrize(
    "moment",
    [
        "queued",
        "pending",
        "running",
        "publishing",
        "retrying",
        "failed",
        "rolling_out",
        "serving",
        "autoscaled",
        "rebuilding",
    ],
)
def test_an_engine_that_is_deleted_leaves_nothing_but_what_is_stored(
    stage: Stage, builder: Builder, operator: LiveOperator, moment: str
) -> None:
    key = getattr(Stages(stage, builder), moment)()
    stage.remove(LLMENGINE, "chat")
    stage.until_gone()
    stage.until("all pods to go", lambda: stage.items(POD) == [])
    if key:
        assert builder.store.get_manifest(key) is not None


def test_an_engine_that_is_deleted_and_made_again_at_once_serves_again(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    """Its new self meets what the old one left before the garbage collector does."""
    stage.create()
    builder.finish(stage.until_job())
    stage.until_reason("Serving")
    old = {name: item["metadata"]["uid"] for name, item in stage.children().items()}
    for _ in range(3):
        stage.remove(LLMENGINE, "chat")
        made = stage.create()
    stage.until_reason("Serving")
    children = stage.children()
    assert {o["metadata"]["ownerReferences"][0]["uid"] for o in children.values()} == {
        made["metadata"]["uid"]
    }
    assert not {item["metadata"]["uid"] for item in children.values()} & set(old.values())
    seen = [e["reason"] for e in stage.events()]
    assert "Warning" not in [e["type"] for e in stage.events()], seen


def test_an_engine_of_ones_own_is_built_at_home_and_owned_by_all_who_want_it(
    stage: Stage, builder: Builder
) -> None:
    side_by_side = stage.config(builds={"maxConcurrentPerArchitecture": 4})
    with LiveOperator(stage, config=side_by_side):
        stage.create(model=PRIVATE)
        job = stage.until_job(namespace=stage.team)
        stage.until_reason("Building")
        assert request_of(job).scope_namespace == stage.team
        container = job["spec"]["template"]["spec"]["containers"][0]
        secrets = [entry["secretRef"]["name"] for entry in container["envFrom"]]
        assert secrets == ["llmengine-store-scope-write", "mine"]
        # One that comes while it is built, and one elsewhere that must not share it.
        stage.create("again", model=PRIVATE)
        stage.create("alien", namespace=stage.other, model=PRIVATE)
        stage.until(
            "both owners",
            lambda: names_of_owners(stage.jobs(stage.team)[0]) == ["again", "chat"],
        )
        alien = stage.until_job(namespace=stage.other)
        assert request_of(alien).key != request_of(job).key
    assert stage.jobs() == []
    # The operator is down: the garbage collector alone.
    stage.remove(LLMENGINE, "chat")
    stage.until("one owner", lambda: names_of_owners(stage.jobs(stage.team)[0]) == ["again"])
    stage.remove(LLMENGINE, "again")
    stage.until("no Job", lambda: stage.jobs(stage.team) == [])
    assert len(stage.jobs(stage.other)) == 1


def test_an_engine_of_ones_own_is_served_from_its_scope(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    stage.create(model=PRIVATE)
    job = stage.until_job(namespace=stage.team)
    builder.finish(job)
    status = stage.until_reason("Serving")
    assert status["serving"][0]["scopeNamespace"] == stage.team
    request = request_of(job)
    assert builder.store.get_manifest(request.key) is None
    assert builder.store.get_manifest(request.key, request.scope) is not None
    pod = stage.items(POD, labels="llmengine.io/engine=chat")[0]
    assert f'"scopeNamespace":"{stage.team}"' in str(pod["spec"]["initContainers"][0]["env"])


def test_a_bucket_that_is_not_shared_makes_an_engine_of_ones_own(
    stage: Stage, operator: LiveOperator
) -> None:
    stage.create(model={"uri": "s3://private/smollm2", "revision": "v1"})
    job = stage.until_job(namespace=stage.team)
    container = job["spec"]["template"]["spec"]["containers"][0]
    # Not with the admin's right to read models: it is not everybody's.
    assert [entry["secretRef"]["name"] for entry in container["envFrom"]] == [
        "llmengine-store-scope-write"
    ]


def test_a_volume_is_read_where_it_is_and_another_of_its_name_is_another_model(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    stage.create(model={"uri": "pvc://weights/llama", "revision": "v1"})
    stage.until_reason("ClaimNotFound")
    assert f"PersistentVolumeClaim weights in namespace {stage.team}" in stage.message()
    stage.make_claim("weights")
    operator.resync()
    job = stage.until_job(namespace=stage.team)
    pod = job["spec"]["template"]["spec"]
    claim = {"claimName": "weights", "readOnly": True}
    assert {"name": "model", "persistentVolumeClaim": claim} in pod["volumes"]
    # Nothing binds the volume here: the scheduler says so, and so does the engine.
    stage.until_reason("Unschedulable")
    assert "PersistentVolumeClaim" in stage.message()
    stage.remove(JOB, job["metadata"]["name"])
    stage.remove(PVC, "weights")
    stage.until("the claim to go", lambda: stage.get(PVC, "weights") is None)
    stage.make_claim("weights")
    operator.resync()
    stage.until(
        "a Job of another key",
        lambda: (
            [request_of(j).key for j in stage.jobs(stage.team)] not in ([], [request_of(job).key])
        ),
    )
