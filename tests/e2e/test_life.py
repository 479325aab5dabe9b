"""What a user does to an engine, at every moment of its life."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.demo.ask import ask
from tests.demo.platform import RUNTIME, Platform
from tests.e2e.engines import Engine, Engines, until

pytestmark = pytest.mark.cluster

HELLO = '[{"role":"user","content":"hello"}]'


@pytest.fixture(scope="module", autouse=True)
def _inside(in_node_network: Cluster) -> None:
    """Requests go to the cluster's own names."""


def reason(engine: Engine) -> str:
    return engine.condition("Ready").get("reason", "")


def test_two_engines_applied_in_the_same_second_share_one_job(engines: Engines, tiny: str) -> None:
    one, two = engines.apply_all(
        engines.manifest("one", tiny, namespace="team-a"),
        engines.manifest("two", tiny, namespace="team-b"),
    )
    one.wait_ready()
    two.wait_ready()
    assert one.key == two.key
    assert len(one.jobs()) == 1


def test_it_can_be_waited_for_from_the_first_second(engines: Engines, tiny: str) -> None:
    engine = engines.apply("waited", tiny)
    said = engine.platform.cluster.kubectl(
        *("wait", "--for=condition=Ready", "llmengine/waited", "-n", "team-a", "--timeout=120s")
    )
    assert "condition met" in said


def test_the_served_model_can_have_a_name_of_its_own(engines: Engines, tiny: str) -> None:
    engine = engines.apply("named", tiny, serving={"modelName": "ensemble"})
    engine.wait_ready()
    assert ask(f"{engine.host}:8001", "ensemble", HELLO, 4)


def test_an_edit_while_it_builds_ends_the_old_build_at_once(engines: Engines, smollm: str) -> None:
    engine = engines.apply("edited", smollm)
    until(lambda: reason(engine) == "Building", "the build to run")
    old = engine.jobs()[0]["metadata"]
    engine.edit({"engine": {"maxSequenceLength": 64}})
    until(
        lambda: all(job["metadata"]["uid"] != old["uid"] for job in jobs(engine)),
        "the unwanted Job to go",
        20,
    )
    until(lambda: reason(engine) in ("Building", "RollingOut", "Serving"), "the new build")
    assert engine.key != old["annotations"]["llmengine.io/engine-key"]


def jobs(engine: Engine) -> list[dict[str, Any]]:
    return engine.platform.cluster.api.items("/apis/batch/v1/jobs")


@pytest.mark.parametrize("stage", ["BuildPending", "Building", "RollingOut", "Serving"])
def test_deleted_at_any_stage_it_leaves_nothing_but_its_cached_engine(
    engines: Engines, smollm: str, platform: Platform, stage: str
) -> None:
    engine = engines.apply("deleted", smollm)
    order = ["BuildQueued", "BuildPending", "Building", "Publishing", "RollingOut", "Serving"]
    until(lambda: order.index(reason(engine) or order[0]) >= order.index(stage), f"stage {stage}")
    key = engine.key
    cached = f"v1/engines/{key}/manifest.json" in platform.stored("v1/engines/")
    engine.delete()

    def left() -> list[str]:
        mine = [
            job["metadata"]["name"]
            for job in jobs(engine)
            if job["metadata"]["annotations"].get("llmengine.io/engine-key") == key
        ]
        return mine + engine.children("Deployment", "Service", "Pod")

    until(lambda: not left(), f"nothing to be left, but there is {left()}", 60)
    if cached or stage in ("RollingOut", "Serving"):
        assert f"v1/engines/{key}/manifest.json" in platform.stored("v1/engines/")


def test_a_changed_model_is_built_while_the_old_one_answers(engines: Engines, tiny: str) -> None:
    engine = engines.apply("changing", tiny)
    engine.wait_ready()
    old = engine.key
    engine.edit({"model": {"revision": f"{engines.revision}-2"}})
    until(lambda: engine.row().get("changed"), "a row that says what changed")
    assert engine.row()["changed"] == [
        f"model.revision: {engines.revision} -> {engines.revision}-2"
    ]
    while engine.condition("Ready").get("status") != "True":
        assert ask(f"{engine.host}:8001", "changing", HELLO, 2)
    assert engine.status()["serving"][0]["key"] == engine.key != old


def test_a_revert_needs_no_build(engines: Engines, tiny: str) -> None:
    engine = engines.apply("reverted", tiny)
    engine.wait_ready()
    engine.edit({"engine": {"maxSequenceLength": 64}})
    engine.wait_ready()
    engine.edit({"engine": {"maxSequenceLength": 128}})
    engine.wait_ready()
    assert not engine.jobs()


def test_replicas_are_followed_down_to_zero_and_up(engines: Engines, tiny: str) -> None:
    engine = engines.apply("scaled", tiny, serving={"replicas": 2})
    engine.wait_ready()
    assert engine.status()["summary"]["replicas"] == "2/2"
    engine.edit({"serving": {"replicas": 0}})
    assert engine.wait("Ready", "True", "ScaledToZero")
    until(lambda: not engine.pods(), "no pod")
    engine.edit({"serving": {"replicas": 1}})
    engine.wait("Ready", "True", "Serving")


def test_suspended_it_does_not_build_but_serves_on(engines: Engines, tiny: str) -> None:
    engine = engines.apply("suspended", tiny)
    engine.wait_ready()
    engine.edit({"suspend": True, "engine": {"maxSequenceLength": 64}})
    assert engine.wait("Ready", "Unknown", "Suspended")
    assert ask(f"{engine.host}:8001", "suspended", HELLO, 2)
    engine.edit({"suspend": False})
    engine.wait("Ready", "True", "Serving")


def test_a_model_of_ones_own_is_built_in_its_namespace_and_kept_apart(
    engines: Engines, tiny: str, platform: Platform
) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "my-models", "namespace": "team-a"},
        "stringData": {
            "AWS_ACCESS_KEY_ID": platform.s3.root.access_key,
            "AWS_SECRET_ACCESS_KEY": platform.s3.root.secret_key,
        },
    }
    platform.cluster.apply(secret)
    engine = engines.apply("private", tiny, model={"secretName": "my-models"})
    engine.wait_ready()
    assert [job["metadata"]["namespace"] for job in engine.jobs()] == ["team-a"]
    keys = platform.stored("v1/scopes/team-a/")
    assert f"v1/scopes/team-a/engines/{engine.key}/manifest.json" in keys
    assert f"v1/engines/{engine.key}/manifest.json" not in platform.stored("v1/engines/")


def test_an_edit_of_the_runtime_rolls_the_pods_without_a_build(
    engines: Engines, tiny: str, platform: Platform
) -> None:
    engine = engines.apply("rolled", tiny)
    engine.wait_ready()
    key, jobs_before = engine.key, len(engine.jobs())
    path = f"/apis/llmengine.io/v1alpha1/engineruntimes/{RUNTIME}"
    variables = [{"name": "A", "value": "b"}]
    platform.cluster.api.merge(path, {"spec": {"podDefaults": {"env": variables}}})
    try:
        until(lambda: env_of(engine) == "b", "a pod with the runtime's new variable")
        engine.wait_ready()
        assert (engine.key, len(engine.jobs())) == (key, jobs_before)
    finally:
        platform.cluster.api.merge(path, {"spec": {"podDefaults": {"env": []}}})


def env_of(engine: Engine) -> str:
    for pod in engine.pods():
        for entry in pod["spec"]["containers"][0]["env"]:
            if entry["name"] == "A":
                return str(entry["value"])
    return ""
