"""Builds that are killed, evicted, or starved."""

from __future__ import annotations

import pytest

from tests.demo.platform import OPERATOR_NAMESPACE, Platform
from tests.e2e.engines import Engines, until

pytestmark = pytest.mark.cluster


def limits(memory: str) -> dict[str, dict[str, dict[str, str]]]:
    return {"resources": {"limits": {"memory": memory}}}


def test_a_build_that_is_killed_for_its_memory_names_the_field_to_raise(
    engines: Engines, tiny: str
) -> None:
    # So little that not even Python starts: the builder cannot say it itself.
    engine = engines.apply("starved", tiny, build=limits("16Mi"))
    sentence = engine.wait_stalled("BuildOutOfMemory")
    assert "limit (16Mi): raise spec.build.resources.limits.memory" in sentence
    assert len(engine.jobs()) == 1
    engine.edit({"build": limits("1Gi")})
    engine.wait_ready()


def test_too_little_memory_is_seen_before_it_kills(engines: Engines, smollm: str) -> None:
    engine = engines.apply("tight", smollm, build=limits("400Mi"))
    sentence = engine.wait_stalled("MemoryTooSmall")
    assert "spec.build.resources.limits.memory" in sentence


def test_a_drained_node_costs_no_try(engines: Engines, smollm: str, platform: Platform) -> None:
    kubectl = platform.cluster.kubectl
    engine = engines.apply("drained", smollm)
    until(lambda: engine.condition("Ready").get("reason") == "Building", "the build to run")
    job = engine.jobs()[0]["metadata"]
    node = kubectl("get", "nodes", "-o", "name").strip()
    selector = "app.kubernetes.io/component=build"
    kubectl("drain", node, f"--pod-selector={selector}", "--delete-emptydir-data", "--timeout=60s")
    try:
        until(
            lambda: engine.condition("Ready").get("reason") == "Unschedulable",
            "the new pod to wait for a node",
        )
    finally:
        kubectl("uncordon", node)
    engine.wait_ready()
    assert [j["metadata"]["uid"] for j in engine.jobs()] == [job["uid"]]


def test_an_operator_that_is_killed_during_a_build_goes_on_where_it_was(
    engines: Engines, smollm: str, platform: Platform
) -> None:
    engine = engines.apply("orphan", smollm)
    until(lambda: engine.condition("Ready").get("reason") == "Building", "the build to run")
    job = engine.jobs()[0]["metadata"]["uid"]
    platform.cluster.kubectl(
        *("delete", "pod", "-n", OPERATOR_NAMESPACE, "--grace-period=0", "--force"),
        *("-l", "app.kubernetes.io/name=llmengine-operator"),
    )
    engine.wait_ready(180)
    assert [j["metadata"]["uid"] for j in engine.jobs()] == [job]


def test_an_engine_deleted_while_the_operator_is_away_leaves_no_job(
    engines: Engines, smollm: str, platform: Platform
) -> None:
    scale = ("scale", "deployment/llmengine-operator", "-n", OPERATOR_NAMESPACE)
    engine = engines.apply("gone", smollm)
    until(lambda: engine.condition("Ready").get("reason") == "Building", "the build to run")
    platform.cluster.kubectl(*scale, "--replicas=0")
    jobs = engine.jobs()
    engine.delete()
    platform.cluster.kubectl(*scale, "--replicas=1")
    path = "/apis/batch/v1/namespaces/{namespace}/jobs".format(**jobs[0]["metadata"])
    mine = jobs[0]["metadata"]["uid"]
    until(
        lambda: all(j["metadata"]["uid"] != mine for j in platform.cluster.api.items(path)),
        "the unwanted Job to be deleted",
    )
