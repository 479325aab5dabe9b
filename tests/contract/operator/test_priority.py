"""A build never keeps what serves from its GPU: the scheduler knows which of them can wait."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmengine_operator.kinds import JOB, POD
from tests.contract.charts.helm import MINIMAL, OPERATOR, Helm, find
from tests.contract.operator.builder import Builder
from tests.contract.operator.gpu_pool import L4, GpuPool
from tests.contract.operator.running import Clock, LiveOperator
from tests.contract.operator.stage import Stage

pytestmark = pytest.mark.controlplane

_CLASSES = "/apis/scheduling.k8s.io/v1/priorityclasses"


@pytest.fixture
def low(stage: Stage, tmp_path: Path) -> Iterator[str]:
    """The class of builds, as the chart makes it for a release of its own."""
    made = find(Helm(tmp_path).render(OPERATOR, MINIMAL, release=stage.team), "PriorityClass")
    name = str(made["metadata"]["name"])
    stage.api.request("POST", _CLASSES, made)
    yield name
    stage.api.request("DELETE", f"{_CLASSES}/{name}")


def pods(stage: Stage, job: dict[str, Any]) -> dict[str, str]:
    """Of a Job, and where they are; without those that go."""
    labels = f"batch.kubernetes.io/job-name={job['metadata']['name']}"
    return {
        pod["metadata"]["name"]: pod["spec"].get("nodeName", "")
        for pod in stage.items(POD, stage.builds, labels)
        if "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] != "Failed"
    }


def test_a_server_takes_the_last_gpu_from_a_build_which_goes_on_when_it_is_free_again(
    stage: Stage, builder: Builder, pool: GpuPool, low: str, clock: Clock
) -> None:
    node = pool.add(L4, allocatable={"nvidia.com/gpu": "1"})
    config = stage.config(builds={"priorityClassName": low})
    with LiveOperator(stage, config=config, clock=clock) as operator:
        stage.create(serving={"replicas": 0})
        builder.finish(stage.until_job())
        stage.until_reason("ScaledToZero")
        stage.create("new", revision="v2")
        stage.until_reason("Building", "new")
        (job,) = [j for j in stage.jobs() if not j.get("status", {}).get("succeeded")]
        assert job["spec"]["template"]["spec"]["priorityClassName"] == low
        (first,) = pods(stage, job)
        # What is to serve finds the GPU taken.
        stage.edit(serving={"replicas": 1})
        stage.until("the build to be told to go", lambda: first not in pods(stage, job))
        builder.killed(job)  # as the kubelet does
        stage.until_reason("Serving")
        assert stage.conditions("new")["Ready"][1] != "Serving"
        stage.until("another pod, which waits", lambda: _waits(stage, job, first))
        # The build takes nothing from it, and has not lost a try.
        stage.until_reason("Unschedulable", "new")
        stage.edit(serving={"replicas": 0})
        stage.until("the build on the node", lambda: list(pods(stage, job).values()) == [node])
        builder.finish(job)
        stage.until_reason("Serving", "new")
        assert operator.client.requests["create", "Job"] == 2


def _waits(stage: Stage, job: dict[str, Any], first: str) -> bool:
    there = pods(stage, job)
    return first not in there and list(there.values()) == [""]


def test_a_build_that_names_no_class_that_exists_says_so_and_is_mended_by_an_edit(
    stage: Stage, builder: Builder, low: str, clock: Clock
) -> None:
    with LiveOperator(stage, clock=clock) as operator:
        stage.create(build={"priorityClassName": "nowhere"})
        job = stage.until_job()
        clock.advance(seconds=25)

        def refused() -> bool:
            operator.resync()  # no watch tells of events
            return stage.conditions()["Ready"] == ("Unknown", "PodsRefused")

        stage.until("the refusal", refused, interval=0.5)
        assert "no PriorityClass with name nowhere was found" in stage.message()
        stage.edit(build={"priorityClassName": low})
        stage.until("another Job", lambda: _replaced(stage, job))
        other = stage.until_job()
        assert other["spec"]["template"]["spec"]["priorityClassName"] == low
        builder.finish(other)
        stage.until_reason("Serving")


def _replaced(stage: Stage, job: dict[str, Any]) -> bool:
    uids = [j["metadata"]["uid"] for j in stage.jobs()]
    return bool(uids) and job["metadata"]["uid"] not in uids


def test_another_default_leaves_the_build_that_runs_alone(
    stage: Stage, builder: Builder, low: str, clock: Clock
) -> None:
    with LiveOperator(stage, clock=clock):
        stage.create()
        job = stage.until_job()
        stage.until_reason("Building")
    with LiveOperator(
        stage, config=stage.config(builds={"priorityClassName": low}), clock=clock
    ) as restarted:
        stage.until("it to be looked at", lambda: (stage.team, "chat") in restarted.passes)
        stage.until("the builds, too", lambda: ("", "builds") in restarted.passes)
        assert [j["metadata"]["uid"] for j in stage.jobs()] == [job["metadata"]["uid"]]
        stage.until_reason("Building")
        builder.finish(job)
        stage.until_reason("Serving")
        assert restarted.client.requests["list", JOB.kind] > 0
