"""A store in trouble starts no build, stops no pod, and is spoken of in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmengine.artifact import Layout
from llmengine_operator.kinds import DEPLOYMENT
from tests.cluster.cluster import Cluster
from tests.cluster.s3 import READ, Credentials, S3Server
from tests.contract.operator.builder import Builder, request_of
from tests.contract.operator.forgetful_store import forgetful
from tests.contract.operator.running import Clock, LiveOperator
from tests.contract.operator.stage import Stage
from tests.contract.store.place import Place

pytestmark = pytest.mark.controlplane


@pytest.fixture
def server() -> Iterator[S3Server]:
    """One that a test may stop."""
    with S3Server(name="s3-mortal") as running:
        yield running


@pytest.fixture
def stage(core_cluster: Cluster, server: S3Server, identity: Path) -> Iterator[Stage]:
    made = Stage.new(core_cluster, Place.new(server), identity)
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def no_job(stage: Stage, operator: LiveOperator) -> None:
    """Nothing is built, however often it is looked at."""
    passes = operator.passes.count(("", "builds"))
    operator.resync()
    stage.until("a pass over Jobs", lambda: operator.passes.count(("", "builds")) > passes)
    assert stage.jobs() == []


def test_a_store_that_is_away_is_waited_for(stage: Stage, builder: Builder) -> None:
    server = stage.place.server
    server.stop()
    with LiveOperator(stage) as operator:
        stage.create()
        stage.until_reason("StoreUnreachable")
        endpoint = stage.place.location.endpoint
        assert f"{endpoint} cannot be reached for s3://" in stage.message()
        assert "check the endpoint, the network policies and whether the service runs" in (
            stage.message()
        )
        assert stage.conditions()["Reconciling"] == ("True", "StoreUnreachable")
        assert stage.status()["engines"][0]["state"] == "Unknown"
        no_job(stage, operator)
        server.start()
        # Within half a minute by itself; a resync does not wait.
        operator.resync()
        builder.finish(stage.until_job())
        stage.until_reason("Serving")


def test_a_store_that_goes_away_stops_no_pod_and_starts_no_build(
    stage: Stage, builder: Builder, clock: Clock
) -> None:
    with LiveOperator(stage, clock=clock) as operator:
        stage.create()
        job = stage.until_job()
        builder.finish(job)
        stage.until_reason("Serving")
        before = stage.get(DEPLOYMENT, "chat-amd64")
        stage.place.server.stop()
        clock.advance(minutes=10)  # what was read of the store is not believed any longer
        stage.edit(model={"revision": "v2"}, serving={"terminationGracePeriodSeconds": 90})
        stage.until_reason("StoreUnreachable")
        assert stage.conditions()["Available"] == ("True", "Serving")
        assert [j["metadata"]["uid"] for j in stage.jobs()] in ([], [job["metadata"]["uid"]])
        after = stage.get(DEPLOYMENT, "chat-amd64")
        assert before is not None and after is not None
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        pod = after["spec"]["template"]
        assert pod["metadata"]["annotations"]["llmengine.io/engine-key"] == request_of(job).key
        # What needs no store goes on: edits, and repairs.
        stage.until("the edit", lambda: _grace(stage) == 90)
        stage.remove(DEPLOYMENT, "chat-amd64")
        stage.until("another Deployment", lambda: _uid(stage) != after["metadata"]["uid"])
        assert _grace(stage) == 90
        stage.place.server.start()
        operator.resync()
        stage.until(
            "the new build", lambda: [request_of(j).revision for j in stage.jobs()] == ["v2"]
        )


def _grace(stage: Stage) -> int:
    found = stage.get(DEPLOYMENT, "chat-amd64")
    assert found is not None
    return int(found["spec"]["template"]["spec"]["terminationGracePeriodSeconds"])


def _uid(stage: Stage) -> str:
    found = stage.get(DEPLOYMENT, "chat-amd64")
    assert found is not None
    return str(found["metadata"]["uid"])


def as_user(stage: Stage, user: Credentials) -> Stage:
    """The same stage, with an operator that asks the store as this user."""
    return replace(stage, place=replace(stage.place, user=user))


def test_wrong_credentials_are_named_without_the_secret(stage: Stage) -> None:
    root = stage.place.server.root
    wrong = as_user(stage, Credentials(root.access_key, "x" * 40))
    with LiveOperator(wrong) as operator:
        stage.create()
        stage.until_reason("StoreDenied")
        assert "the secret key does not belong to it; correct AWS_SECRET_ACCESS_KEY" in (
            stage.message()
        )
        assert "xxxx" not in str(stage.status())
        no_job(stage, operator)


def test_a_bucket_that_is_missing_is_named(stage: Stage) -> None:
    nowhere = stage.config(store={"bucket": "no-such-bucket"})
    with LiveOperator(stage, config=nowhere) as operator:
        stage.create()
        stage.until_reason("BucketMissing")
        assert "the bucket s3://no-such-bucket does not exist on" in stage.message()
        assert "create it, or correct the bucket's name" in stage.message()
        no_job(stage, operator)


def test_a_damaged_manifest_is_neither_served_nor_built_over(
    stage: Stage, builder: Builder, clock: Clock
) -> None:
    with LiveOperator(stage, clock=clock) as operator:
        stage.create()
        job = stage.until_job()
        name = Layout(stage.place.location.prefix).manifest(request_of(job).key)
        client = stage.place.server.client()
        client.put_object(Bucket=stage.place.location.bucket, Key=name, Body=b'{"contract": 1}')
        builder.end(job)
        stage.until_reason("EngineCorrupted")
        assert f"{name}: the manifest cannot be read" in stage.message()
        assert "Delete it to have the engine built again" in stage.message()
        assert stage.get(DEPLOYMENT, "chat-amd64") is None
        assert len(stage.jobs()) == 1
        clock.advance(minutes=1)  # it is no longer on its way
        stage.delete_manifest(request_of(job).key)
        stage.ask_again(at="now")
        builder.finish(stage.until_attempt(2))
        stage.until_reason("Serving")
        assert operator.raised == []


def test_a_store_that_ignores_conditions_is_not_built_into(stage: Stage) -> None:
    with forgetful(stage.place) as place:
        config = stage.config(store={"endpoint": place.location.endpoint})
        with LiveOperator(stage, config=config) as operator:
            stage.create()
            stage.until_reason("StoreUnsafe")
            assert stage.conditions()["Stalled"] == ("True", "StoreUnsafe")
            assert stage.message() == (
                "amd64: the store ignores If-None-Match: a second write replaces the first, so"
                " two builders could replace each other's engine: use a store that honours it, or"
                " set store.conditionalWrites to Preferred in the operator's values if no other"
                " cluster writes to this bucket"
            )
            no_job(stage, operator)


def test_unless_the_admin_says_that_nobody_else_writes_to_it(
    stage: Stage, builder: Builder
) -> None:
    with forgetful(stage.place) as place:
        settings = {"endpoint": place.location.endpoint, "conditionalWrites": "Preferred"}
        with LiveOperator(stage, config=stage.config(store=settings)):
            stage.create()
            builder.finish(stage.until_job())
            stage.until_reason("Serving")


def test_an_engine_that_is_in_an_unsafe_store_is_served(stage: Stage, builder: Builder) -> None:
    with LiveOperator(stage):
        stage.create("first")
        builder.finish(stage.until_job())
        stage.until_reason("Serving", "first")
    with forgetful(stage.place) as place:
        config = stage.config(store={"endpoint": place.location.endpoint})
        with LiveOperator(stage, config=config):
            stage.create()
            stage.until_reason("Serving")


def test_a_store_that_cannot_be_tried_is_not_trusted(stage: Stage, clock: Clock) -> None:
    """An operator that may only read cannot know what becomes of two writers."""
    server, bucket = stage.place.server, stage.place.location.bucket
    reader = server.read_only_user(f"reader-{bucket}", bucket)
    with LiveOperator(as_user(stage, reader), clock=clock) as operator:
        stage.create()
        stage.until_reason("StoreUnsafe")
        assert "it cannot be tried" in stage.message()
        assert f"denied s3:PutObject on s3://{bucket}/" in stage.message()
        assert "v1/probe/" in stage.message()
        no_job(stage, operator)
        # The way out that the message shows.
        prefix = f"{stage.place.location.prefix}/v1/probe/"
        server.allow(reader, bucket, [*READ, "s3:PutObject", "s3:DeleteObject"], prefix)
        clock.advance(minutes=1)
        operator.resync()
        stage.until_job()
