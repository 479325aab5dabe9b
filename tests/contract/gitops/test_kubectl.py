"""What people and pipelines do with kubectl, and what it does to an engine that serves."""

from __future__ import annotations

from typing import Any

import pytest

from llmengine_operator.kinds import LLMENGINE, RUNTIME
from tests.contract.gitops.desk import Desk
from tests.contract.gitops.recorder import Recorder, told
from tests.contract.operator.command import OperatorCommand
from tests.contract.operator.stage import PATIENCE, Stage

pytestmark = pytest.mark.controlplane

WAIT = ("wait", "llmengine/chat", "--for=condition=Ready")
# As Flux, Argo CD and people call themselves.
MANAGERS = ("kustomize-controller", "argocd-controller", "deploy")
# Every kind of value that an API server may write in another way.
FULL: dict[str, Any] = {
    "engine": {"dtype": "auto", "maxBatchSize": 8, "quantization": {"weights": "none"}},
    "architectures": ["amd64"],
    "build": {
        "attempts": 2,
        "resources": {"requests": {"cpu": 1, "memory": "1024Mi"}, "limits": {"memory": "2048Mi"}},
        "tolerations": [{"key": "example.com/inference", "operator": "Exists"}],
    },
    "serving": {
        "replicas": 1,
        "resources": {"requests": {"cpu": "0.1", "memory": "0.5Gi"}},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "terminationGracePeriodSeconds": 90,
    },
    "suspend": False,
}


def server_side(manager: str) -> tuple[str, ...]:
    return ("--server-side", f"--field-manager={manager}")


def test_a_wait_from_the_first_second_on_ends_when_the_engine_serves(
    stage: Stage, desk: Desk, operator: OperatorCommand
) -> None:
    """The condition is not there yet: kubectl waits for that, too."""
    with operator.paused():
        desk.kubectl("apply", "--filename", desk.write(desk.manifest()))
        assert "conditions" not in desk.engine()["status"]
        waiting = desk.start(*WAIT, f"--timeout={PATIENCE:.0f}s")
    desk.builder.finish(desk.job("v1"))
    said, complaint = waiting.communicate(timeout=PATIENCE + 30)
    assert waiting.returncode == 0, complaint
    assert said == "llmengine.llmengine.io/chat condition met\n"
    assert stage.conditions()["Ready"] == ("True", "Serving")


def test_a_wait_after_an_edit_is_not_content_with_the_engine_of_before(
    stage: Stage, desk: Desk, operator: OperatorCommand
) -> None:
    stage.create(model=desk.model("v1"))
    desk.build("v1")
    with operator.paused():
        desk.kubectl("apply", "--filename", desk.write(desk.manifest("v2")))
        assert stage.conditions()["Ready"] == ("True", "Serving")
        waited = desk.run(*WAIT, "--timeout=1s")
    assert waited.returncode != 0
    assert "timed out waiting for the condition on llmengines/chat" in waited.stderr
    desk.builder.finish(desk.job("v2"))
    desk.kubectl(*WAIT, f"--timeout={PATIENCE:.0f}s")
    assert desk.served_key() == stage.status()["engines"][0]["key"]


def test_what_was_applied_differs_from_nothing_and_applied_again_changes_nothing(
    stage: Stage, desk: Desk, operator: OperatorCommand
) -> None:
    file = desk.write(desk.manifest(**FULL))

    def in_sync() -> None:
        for manager in MANAGERS:
            diff = desk.run("diff", *server_side(manager), "--filename", file)
            assert (diff.returncode, diff.stdout) == (0, "")

    with operator.paused():
        desk.kubectl("apply", *server_side(MANAGERS[0]), "--filename", file)
        in_sync()
    desk.job("v1")
    in_sync()
    desk.build("v1")
    in_sync()
    before = desk.engine()["metadata"]
    for manager in MANAGERS:
        desk.kubectl("apply", *server_side(manager), "--filename", file)
        desk.kubectl("apply", *server_side(manager), "--filename", file)
    after = desk.engine()["metadata"]
    assert after["generation"] == before["generation"] == 1
    # Nobody but those who applied says anything of it; the operator's word is the status.
    owners = {(e["manager"], e.get("subresource", "")) for e in after["managedFields"]}
    assert owners == {(m, "") for m in MANAGERS} | {("llmengine-operator", "status")}
    stage.until_reason("Serving")


def test_the_same_goes_for_an_apply_on_the_clients_side(stage: Stage, desk: Desk) -> None:
    file = desk.write(desk.manifest(**FULL))
    desk.kubectl("apply", "--filename", file)
    desk.build("v1")
    diff = desk.run("diff", "--filename", file)
    assert (diff.returncode, diff.stdout) == (0, "")
    before = desk.engine()["metadata"]["resourceVersion"]
    said = desk.kubectl("apply", "--filename", file)
    assert said == "llmengine.llmengine.io/chat unchanged\n"
    assert desk.engine()["metadata"]["resourceVersion"] == before


def test_a_runtime_that_was_applied_differs_from_nothing_either(desk: Desk) -> None:
    manifest = {
        "apiVersion": RUNTIME.api_version,
        "kind": RUNTIME.kind,
        "metadata": {"name": f"{desk.revision}-runtime"},
        "spec": {
            "backend": "onnxruntime",
            "version": "1.32.0",
            "accelerator": "cpu",
            "image": {"repository": "registry.test/engine", "tag": "v1"},
            "podDefaults": {"buildResources": {"requests": {"cpu": 1, "memory": "1024Mi"}}},
        },
    }
    file = desk.write(manifest)
    for apply in (server_side("argocd-controller"), ()):
        desk.kubectl("apply", *apply, "--filename", file)
        diff = desk.run("diff", *apply, "--filename", file)
        assert (diff.returncode, diff.stdout) == (0, "")
        desk.kubectl("delete", "--filename", file)


def test_an_edit_by_hand_is_drift_and_is_undone_by_whoever_applies(
    stage: Stage, desk: Desk
) -> None:
    file = desk.write(desk.manifest(serving={"replicas": 1}))
    apply = ("apply", *server_side("argocd-controller"), "--filename", file)
    desk.kubectl(*apply)
    desk.build("v1")
    stage.edit(serving={"replicas": 2})
    stage.until("two pods", lambda: stage.status()["summary"]["replicas"] == "2/2")
    diff = desk.run("diff", *server_side("argocd-controller"), "--force-conflicts", "-f", file)
    assert diff.returncode == 1
    assert "+    replicas: 1" in diff.stdout
    desk.kubectl(*apply, "--force-conflicts")
    stage.until("one pod", lambda: stage.status()["summary"]["replicas"] == "1/1")


def test_a_replace_is_an_update(stage: Stage, desk: Desk) -> None:
    desk.kubectl("create", "--filename", desk.write(desk.manifest()))
    desk.build("v1")
    uid, pods = desk.engine()["metadata"]["uid"], desk.pods()
    with Recorder(stage) as recorder:
        desk.kubectl("replace", "--filename", desk.write(desk.manifest("v2")))
        assert desk.pods() == pods
        desk.build("v2")
    assert told(recorder.moments(), "kstatus") == [
        (1, "Current"),
        (2, "InProgress"),
        (2, "Current"),
    ]
    assert desk.engine()["metadata"]["uid"] == uid


def test_a_forced_replace_is_another_engine_that_takes_what_was_built(
    stage: Stage, desk: Desk
) -> None:
    file = desk.write(desk.manifest())
    desk.kubectl("create", "--filename", file)
    desk.build("v1")
    old = desk.engine()["metadata"]["uid"]
    with Recorder(stage) as recorder:
        desk.kubectl("replace", "--force", "--filename", file)
        assert desk.engine()["metadata"]["uid"] != old
        stage.until_reason("Serving")
        stage.until("the old Deployment to go", lambda: owner_of(desk) != old)
        stage.until_reason("Serving")
    assert recorder.built() == []
    # What the old one left is in the way for a moment: that is work, and no failure.
    states = [moment.kstatus for moment in recorder.moments()]
    assert set(states) == {"InProgress", "Current"}
    assert owner_of(desk) == desk.engine()["metadata"]["uid"]


def owner_of(desk: Desk) -> str:
    (reference,) = desk.deployment()["metadata"]["ownerReferences"]
    return str(reference["uid"])


@pytest.mark.parametrize("version", ["v1", "v2"], ids=["as it was", "with another model"])
def test_orphans_serve_on_and_are_taken_back_by_an_engine_of_the_same_name(
    stage: Stage, desk: Desk, version: str
) -> None:
    apply = ("apply", *server_side("argocd-controller"), "--filename")
    desk.kubectl(*apply, desk.write(desk.manifest()))
    desk.build("v1")
    deployment, pods, services = desk.deployment(), desk.pods(), stage.children().keys()
    with Recorder(stage) as recorder:
        desk.kubectl("delete", "llmengine", "chat", "--cascade=orphan")
        assert stage.get(LLMENGINE, "chat") is None
        assert desk.pods() == pods
        desk.kubectl(*apply, desk.write(desk.manifest(version)))
        if version == "v2":
            desk.job(version)
            stage.until_reason("Building")
            assert desk.pods() == pods
            assert stage.conditions()["Available"] == ("True", "Serving")
            desk.build(version)
        stage.until_reason("Serving")
    assert all(seen["status"]["readyReplicas"] >= 1 for seen in recorder.deployments())
    after = desk.deployment()
    assert after["metadata"]["uid"] == deployment["metadata"]["uid"]
    assert owner_of(desk) == desk.engine()["metadata"]["uid"]
    assert stage.children().keys() == services
    if version == "v1":
        assert recorder.built() == []
        assert after["spec"] == deployment["spec"]
        assert desk.pods() == pods
    else:
        assert desk.served_key() == stage.status()["engines"][0]["key"]
