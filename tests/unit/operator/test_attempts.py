"""Build Jobs and their pods, read as reasons that a person understands."""

from __future__ import annotations

from typing import Any

import pytest

from llmengine_operator.attempts import read_attempt
from llmengine_operator.observation import AttemptState, Verdict
from tests.unit.operator.world import NOW


def job(*, age: str = "2026-11-24T11:59:50Z", **status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "builds",
            "name": "build-a-2",
            "uid": "u",
            "creationTimestamp": age,
            "annotations": {
                "llmengine.io/engine-key": "a" * 64,
                "llmengine.io/engine-architecture": "amd64",
                "llmengine.io/attempt": "2",
                "llmengine.io/tries-left": "1",
                "llmengine.io/build-options": "one",
            },
        },
        "spec": {},
        "status": status,
    }


FAILED: dict[str, Any] = {
    "conditions": [
        {
            "type": "Failed",
            "status": "True",
            "reason": "BackoffLimitExceeded",
            "message": "Job has reached the specified backoff limit",
            "lastTransitionTime": "2026-11-24T11:59:59Z",
        }
    ]
}


def pod(state: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    containers = [{"name": "build", "image": "engine:v1", "state": state}] if state else []
    return {
        "metadata": {"name": "p", "creationTimestamp": "2026-11-24T11:59:51Z"},
        "spec": {
            "activeDeadlineSeconds": 7200,
            "containers": [{"name": "build", "resources": {"limits": {"memory": "1Gi"}}}],
        },
        "status": {"containerStatuses": containers, **status},
    }


def ended(code: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


def words(reason: str) -> str:
    return f'{{"reason":"{reason}","message":"what happened"}}'


@pytest.mark.parametrize(
    ("the_pod", "reason", "verdict", "text"),
    [
        pytest.param(
            pod(ended(10, words("ModelInvalid"))),
            "ModelInvalid",
            Verdict.FINAL,
            "what happened",
            id="bad input is final",
        ),
        pytest.param(
            pod(ended(10, words("ModelAccessDenied"))),
            "ModelAccessDenied",
            Verdict.ENVIRONMENT,
            "what happened",
            id="a token that may not read is looked at hourly",
        ),
        pytest.param(
            pod(ended(20, words("StoreUnreachable"))),
            "StoreUnreachable",
            Verdict.RETRY,
            "what happened",
            id="the network is tried again",
        ),
        pytest.param(
            pod(ended(12, words("VerificationFailed"))),
            "VerificationFailed",
            Verdict.FINAL,
            "what happened",
            id="a wrong engine is final",
        ),
        pytest.param(
            pod(ended(1, "Traceback")),
            "BuildFailed",
            Verdict.RETRY,
            "exit code 1",
            id="a bug is tried again",
        ),
        pytest.param(
            pod(ended(137, reason="OOMKilled")),
            "BuildOutOfMemory",
            Verdict.FINAL,
            "its limit (1Gi): raise spec.build.resources.limits.memory",
            id="out of memory names the field to raise",
        ),
        pytest.param(
            pod(ended(143), reason="DeadlineExceeded"),
            "BuildDeadlineExceeded",
            Verdict.FINAL,
            "longer than 7200 s: raise spec.build.activeDeadlineSeconds",
            id="the deadline names the field to raise",
        ),
        pytest.param(
            pod(ended(137), reason="Evicted", message="low on ephemeral-storage"),
            "BuildEvicted",
            Verdict.RETRY,
            "low on ephemeral-storage",
            id="an eviction is tried again",
        ),
        pytest.param(
            None, "BuildLost", Verdict.RETRY, "backoff limit", id="a pod that is gone says nothing"
        ),
    ],
)
def test_how_a_failed_build_is_read(
    the_pod: dict[str, Any] | None, reason: str, verdict: Verdict, text: str
) -> None:
    attempt = read_attempt(job(**FAILED), [the_pod] if the_pod else [], [], NOW)
    assert attempt.state is AttemptState.FAILED
    assert (attempt.reason, attempt.verdict) == (reason, verdict)
    assert text in attempt.message
    assert (attempt.number, attempt.tries_left, attempt.options) == (2, 1, "one")


def test_a_wrong_device_is_named_with_its_node_and_the_next_step() -> None:
    the_pod = pod(ended(13, words("WrongDevice")))
    the_pod["spec"]["nodeName"] = "gpu-7"
    attempt = read_attempt(job(**FAILED), [the_pod], [], NOW)
    assert (attempt.reason, attempt.verdict, attempt.node) == (
        "WrongDevice",
        Verdict.FINAL,
        "gpu-7",
    )
    assert "node gpu-7 is not what its labels say: what happened; correct them" in attempt.message


@pytest.mark.parametrize(
    ("the_pod", "reason", "text"),
    [
        pytest.param(
            pod(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}]),
            "Unschedulable",
            "0/1 nodes",
            id="no node has room",
        ),
        pytest.param(
            pod({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off"}}),
            "ImagePullFailed",
            "engine:v1: Back-off",
            id="the image cannot be pulled",
        ),
        pytest.param(
            pod({"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "x"'}}),
            "ContainerConfigInvalid",
            'secret "x"',
            id="a Secret is missing",
        ),
        pytest.param(
            pod({"waiting": {"reason": "ContainerCreating"}}),
            "BuildPending",
            "",
            id="it is about to start",
        ),
    ],
)
def test_why_a_build_does_not_start(the_pod: dict[str, Any], reason: str, text: str) -> None:
    attempt = read_attempt(job(), [the_pod], [], NOW)
    assert attempt.state is AttemptState.WAITING
    assert (attempt.reason, attempt.message) == (reason, text)


def test_a_job_without_a_pod_shows_what_its_quota_says() -> None:
    event = {"note": "pods is forbidden: exceeded quota: small"}
    attempt = read_attempt(job(age="2026-11-24T11:59:00Z"), [], [event], NOW)
    assert attempt.reason == "QuotaExceeded"
    assert attempt.blocked


def test_a_job_whose_pod_is_refused_takes_nobodys_place_and_can_be_mended() -> None:
    event = {"note": 'pods is forbidden: no PriorityClass with name "x" was found'}
    attempt = read_attempt(job(age="2026-11-24T11:59:00Z"), [], [event], NOW)
    assert (attempt.reason, attempt.message) == ("PodsRefused", event["note"])
    assert attempt.blocked


def test_the_newest_pod_of_a_drained_node_counts() -> None:
    old = pod(ended(137))
    new = pod({"running": {}})
    new["metadata"]["creationTimestamp"] = "2026-11-24T11:59:55Z"
    assert read_attempt(job(), [new, old], [], NOW).state is AttemptState.RUNNING


@pytest.mark.parametrize("reason", ["", "with spaces", "lower", "X" * 64])
def test_last_words_that_no_condition_can_hold_do_not_become_one(reason: str) -> None:
    seen = read_attempt(job(**FAILED), [pod(ended(10, words(reason)))], (), NOW)
    assert seen.reason == "BuildFailed"
    assert "exit code 10" in seen.message


def test_a_sidecar_is_not_taken_for_the_builder() -> None:
    the_pod = pod({"waiting": {"reason": "PodInitializing"}})
    sidecar = {"name": "a-mesh", "state": {"running": {}}}
    the_pod["status"]["containerStatuses"].insert(0, sidecar)
    assert read_attempt(job(), [the_pod], (), NOW).state is AttemptState.WAITING
    the_pod = pod(ended(137, reason="OOMKilled"))
    the_pod["status"]["containerStatuses"].insert(0, sidecar)
    the_pod["spec"]["containers"].insert(0, {"name": "a-mesh"})
    seen = read_attempt(job(**FAILED), [the_pod], (), NOW)
    assert seen.reason == "BuildOutOfMemory"
    assert "1Gi" in seen.message


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        pytest.param(
            {"kueue.x-k8s.io/queue-name": "gpus"},
            "the Job is suspended: the queue gpus has not admitted it",
            id="by its queue",
        ),
        pytest.param({}, "the Job is suspended: somebody suspended it", id="by somebody"),
    ],
)
def test_a_suspended_job_waits_for_quota_and_holds_up_no_other(
    labels: dict[str, str], says: str
) -> None:
    suspended = job()
    suspended["metadata"]["labels"] = labels
    suspended["spec"]["suspend"] = True
    attempt = read_attempt(suspended, [], [], NOW)
    assert (attempt.state, attempt.reason) == (AttemptState.WAITING, "WaitingForQuota")
    assert attempt.message == says
    assert attempt.blocked
