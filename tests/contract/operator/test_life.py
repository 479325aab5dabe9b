"""The life of an engine, as somebody with kubectl sees it."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from llmengine_operator.kinds import DEPLOYMENT, JOB, LLMENGINE, POD, SERVICE
from tests.contract.operator.builder import MIB, Builder, request_of
from tests.contract.operator.running import LiveOperator
from tests.contract.operator.stage import MODEL, Stage

pytestmark = pytest.mark.controlplane


@pytest.fixture
def operator(stage: Stage) -> Iterator[LiveOperator]:
    with LiveOperator(stage) as running:
        yield running


@pytest.fixture
def serving(stage: Stage, builder: Builder, operator: LiveOperator) -> dict[str, Any]:
    """An engine that was built and serves: its status."""
    stage.create()
    builder.finish(stage.until_job())
    return stage.until_reason("Serving")


@pytest.mark.usefixtures("operator")
def test_the_build_job_says_what_it_is_and_survives_a_drained_node(stage: Stage) -> None:
    stage.create(build={"activeDeadlineSeconds": 600})
    job = stage.until_job()
    meta, spec = job["metadata"], job["spec"]
    request = request_of(job)
    assert meta["name"] == f"build-{request.key[:20]}-1"
    assert meta["labels"] == {
        "llmengine.io/key": request.key[:40],
        "llmengine.io/architecture": "amd64",
        "app.kubernetes.io/component": "build",
        "app.kubernetes.io/managed-by": "llmengine-operator",
    }
    notes = {name.partition("/")[2]: value for name, value in meta["annotations"].items()}
    assert re.fullmatch("[0-9a-f]{12}", notes.pop("build-options"))
    assert notes == {
        "engine-key": request.key,
        "engine-architecture": "amd64",
        "attempt": "1",
        "tries-left": "2",
        "requested-by": f"{stage.team}/chat",
    }
    # The one in the builds namespace belongs to nobody: whoever asks may go.
    assert "ownerReferences" not in meta
    assert spec["backoffLimit"] == 0
    assert spec["podFailurePolicy"]["rules"] == [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    ]
    assert "activeDeadlineSeconds" not in spec
    assert spec["template"]["spec"]["activeDeadlineSeconds"] == 600
    assert (request.uri, request.revision, request.job) == (
        MODEL,
        "v1",
        f"{stage.builds}/{meta['name']}",
    )


def test_a_node_that_is_drained_during_a_build_costs_no_try(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    stage.create()
    job = stage.until_job()
    stage.until_reason("Building")
    first = builder.pod(job)["metadata"]["uid"]
    builder.drained(job)
    stage.until("another pod", lambda: builder.pod(job)["metadata"]["uid"] != first)
    builder.finish(job)
    stage.until_reason("Serving")
    assert [j["metadata"]["name"] for j in stage.jobs()] == [job["metadata"]["name"]]


def test_what_was_built_is_served_by_a_deployment_and_three_services(
    stage: Stage, serving: dict[str, Any]
) -> None:
    row = serving["serving"][0]
    deployment = stage.get(DEPLOYMENT, "chat-amd64")
    assert deployment is not None
    selector = {
        "llmengine.io/engine": "chat",
        "llmengine.io/architecture": "amd64",
        "llmengine.io/track": "stable",
    }
    assert deployment["spec"]["selector"]["matchLabels"] == selector
    assert deployment["metadata"]["annotations"]["llmengine.io/engine-key"] == row["key"]
    pods = stage.items(POD, labels="llmengine.io/engine=chat")
    assert [pod["metadata"]["labels"]["llmengine.io/key"] for pod in pods] == [row["key"][:40]]
    assert row["manifestDigest"] in str(pods[0]["spec"]["initContainers"][0]["env"])
    services = {s["metadata"]["name"]: s["spec"] for s in stage.items(SERVICE)}
    everything = {k: v for k, v in selector.items() if not k.endswith("architecture")}
    assert services["chat"]["selector"] == services["chat-headless"]["selector"] == everything
    assert services["chat-amd64"]["selector"] == selector
    assert services["chat-headless"]["clusterIP"] == "None"
    ports = [(p["name"], p["port"]) for p in services["chat"]["ports"]]
    assert ports == [("http", 8000), ("grpc", 8001), ("metrics", 8002)]


def test_the_status_of_an_engine_that_serves(stage: Stage, serving: dict[str, Any]) -> None:
    assert stage.conditions() == {
        "Ready": ("True", "Serving"),
        "Available": ("True", "Serving"),
        "EnginesBuilt": ("True", "Cached"),
    }
    assert serving["observedGeneration"] == 1
    assert serving["url"] == f"http://chat.{stage.team}.svc:8000"
    assert serving["summary"] == {"engines": "1/1", "replicas": "1/1"}
    row = serving["engines"][0]
    assert (row["state"], row["sizeBytes"], row["buildSeconds"]) == ("Cached", 10 * MIB, 42)
    for condition in serving["conditions"]:
        assert condition["observedGeneration"] == 1
        assert datetime.fromisoformat(condition["lastTransitionTime"])


@pytest.mark.usefixtures("serving")
def test_kubectl_shows_in_one_line_how_the_engine_is(stage: Stage) -> None:
    def get(*more: str) -> list[list[str]]:
        text = stage.cluster.kubectl("get", "llmengine", "chat", "--namespace", stage.team, *more)
        return [re.split(r" {2,}", line.strip()) for line in text.strip().splitlines()]

    head, row = get()
    shown = dict(zip(head, row, strict=True))
    assert re.fullmatch(r"\d+[sm]\w*", shown.pop("AGE"))
    assert shown == {
        "NAME": "chat",
        "READY": "True",
        "REASON": "Serving",
        "MODEL": MODEL,
        "RUNTIME": stage.runtime,
        "ENGINES": "1/1",
        "REPLICAS": "1/1",
    }
    head, row = get("--output=wide")
    shown = dict(zip(head, row, strict=True))
    assert shown["URL"] == f"http://chat.{stage.team}.svc:8000"
    assert shown["MESSAGE"] == f"1 pod serves at http://chat.{stage.team}.svc:8000"


def test_kubectl_wait_returns_when_the_engine_serves_and_not_before(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    stage.create()
    ended = threading.Event()

    def wait() -> None:
        stage.cluster.kubectl(
            *("wait", "llmengine/chat", "--namespace", stage.team),
            *("--for=condition=Ready", "--timeout=60s"),
        )
        ended.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    job = stage.until_job()
    stage.until_reason("Building")
    assert not ended.is_set()
    builder.finish(job)
    waiting.join(60)
    assert ended.is_set()
    assert stage.conditions()["Ready"] == ("True", "Serving")


def test_each_step_is_told_in_the_status_and_in_an_event(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    seen: list[str] = []

    def watch() -> subprocess.Popen[str]:
        shown = "{.status.conditions[?(@.type=='Ready')].reason}{'\\n'}"
        arguments = ("get", "lle", "chat", "--namespace", stage.team, "--watch")
        command = stage.cluster.command("kubectl", *arguments, f"--output=jsonpath={shown}")
        return subprocess.Popen(
            command, env=stage.cluster.environment(), stdout=subprocess.PIPE, text=True
        )

    stage.create()
    with watch() as process:
        assert process.stdout is not None
        builder.finish(stage.until_job())
        for line in process.stdout:
            if (reason := line.strip()) and seen[-1:] != [reason]:
                seen.append(reason)
            if reason == "Serving":
                process.terminate()
                break
    # A quick builder may leave no time for "Building", and "BuildPending" may be over at once.
    assert set(seen) <= {
        "BuildQueued",
        "BuildPending",
        "Building",
        "Publishing",
        "RollingOut",
        "Serving",
    }
    assert seen[-2:] == ["RollingOut", "Serving"]

    stage.until("its event", lambda: stage.events()[-1]["reason"] == "Serving")
    described = stage.cluster.kubectl("describe", "lle", "chat", "--namespace", stage.team)
    assert re.search(r"Normal +Serving .* 1 pod serves at http://chat", described)


def test_a_running_build_shows_its_phase_and_percent(
    stage: Stage, builder: Builder, operator: LiveOperator
) -> None:
    stage.create()
    job = stage.until_job()
    stage.until_reason("Building")
    builder.progress(job, "Compile", 40)
    stage.until("its progress", lambda: stage.message() == "amd64: Compile 40 %")
    assert stage.status()["engines"][0]["progress"] == {"phase": "Compile", "percent": 40}


def test_ready_means_that_the_newest_generation_serves_in_full(
    stage: Stage, serving: dict[str, Any], operator: LiveOperator
) -> None:
    assert serving["observedGeneration"] == 1
    # No node has so much memory: new pods stay pending, the old one goes on.
    stage.edit(serving={"resources": {"requests": {"memory": "9Ti"}}})
    status = stage.until_reason("Unschedulable")
    assert status["observedGeneration"] == 2
    assert stage.conditions() == {
        "Ready": ("Unknown", "Unschedulable"),
        "Reconciling": ("True", "Unschedulable"),
        "Available": ("True", "Serving"),
        "EnginesBuilt": ("True", "Cached"),
    }
    assert "Insufficient memory" in stage.message()
    stage.edit(serving=None)
    stage.until_reason("Serving")
    assert stage.status()["observedGeneration"] == 3


def test_a_second_engine_of_the_same_key_is_served_without_a_build(
    stage: Stage, serving: dict[str, Any], operator: LiveOperator
) -> None:
    stage.create("again", namespace=stage.other)
    status = stage.until_reason("Serving", "again", namespace=stage.other)
    assert status["engines"][0]["key"] == serving["engines"][0]["key"]
    assert len(stage.jobs()) == 1


def test_deleting_an_engine_that_serves_leaves_its_engine_in_the_store_only(
    stage: Stage, builder: Builder, serving: dict[str, Any], operator: LiveOperator
) -> None:
    stage.remove(LLMENGINE, "chat")
    stage.until_gone()
    assert builder.store.get_manifest(serving["engines"][0]["key"]) is not None
    # And it is served again at once.
    stage.create()
    stage.until_reason("Serving")
    assert stage.items(JOB, stage.builds) == []
