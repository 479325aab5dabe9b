"""The client against a real API server: ownership, preconditions, pages, words of errors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llmengine_operator import kube as kube_module
from llmengine_operator.kinds import (
    CONFIGMAP,
    CRD,
    DEPLOYMENT,
    EVENT,
    JOB,
    LLMENGINE,
    POD,
    SERVICE,
)
from llmengine_operator.kube import FIELD_MANAGER, KubeClient
from llmengine_operator.kube_errors import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
)
from tests.contract.kube.conftest import Setting, a_managed_job, an_engine, connect

pytestmark = pytest.mark.controlplane


def a_deployment(namespace: str, **spec: Any) -> dict[str, Any]:
    labels = {"app": "x"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    return {
        "metadata": {"namespace": namespace, "name": "web"},
        "spec": {"selector": {"matchLabels": labels}, "template": pod, **spec},
    }


def managers(obj: dict[str, Any]) -> dict[str, Any]:
    return {entry["manager"]: entry for entry in obj["metadata"]["managedFields"]}


def test_an_applied_object_has_what_was_applied_and_loses_what_is_applied_no_more(
    kube: KubeClient, namespace: str
) -> None:
    meta = {"namespace": namespace, "name": "settings"}
    kube.apply(CONFIGMAP, {"metadata": meta, "data": {"a": "1", "b": "2"}})
    kube.apply(CONFIGMAP, {"metadata": meta, "data": {"b": "3"}})
    found = kube.get(CONFIGMAP, namespace, "settings")
    assert found["data"] == {"b": "3"}
    assert managers(found)[FIELD_MANAGER]["operation"] == "Apply"


def test_applying_the_same_again_changes_nothing(kube: KubeClient, namespace: str) -> None:
    first = kube.apply(DEPLOYMENT, a_deployment(namespace, replicas=0))
    second = kube.apply(DEPLOYMENT, a_deployment(namespace, replicas=0))
    assert second["metadata"]["generation"] == first["metadata"]["generation"]
    assert second["metadata"]["uid"] == first["metadata"]["uid"]


def test_an_apply_takes_a_field_back_from_whoever_edited_it(
    kube: KubeClient, namespace: str
) -> None:
    meta = {"namespace": namespace, "name": "settings"}
    kube.apply(CONFIGMAP, {"metadata": meta, "data": {"a": "ours"}})
    kube.apply(CONFIGMAP, {"metadata": meta, "data": {"a": "theirs"}}, manager="somebody")
    assert kube.apply(CONFIGMAP, {"metadata": meta, "data": {"a": "ours"}})["data"]["a"] == "ours"


def test_two_managers_own_an_owner_reference_each_and_take_away_only_their_own(
    kube: KubeClient, namespace: str
) -> None:
    kube.create(JOB, a_managed_job(namespace, "build"))

    def own(engine: str, *references: dict[str, str]) -> dict[str, Any]:
        metadata = {"namespace": namespace, "name": "build", "ownerReferences": list(references)}
        return kube.apply(JOB, {"metadata": metadata}, manager=f"engine-{engine}")

    engines = {
        name: kube.create(LLMENGINE, an_engine(namespace, name))["metadata"]["uid"]
        for name in ("a", "b")
    }
    for name, uid in engines.items():
        reference = {"apiVersion": LLMENGINE.api_version, "kind": "LLMEngine"}
        own(name, {**reference, "name": name, "uid": uid})
    owners = kube.get(JOB, namespace, "build")["metadata"]["ownerReferences"]
    assert {owner["name"] for owner in owners} == {"a", "b"}
    owners = own("a")["metadata"]["ownerReferences"]
    assert [owner["name"] for owner in owners] == ["b"]


def test_a_status_is_applied_without_touching_the_spec(kube: KubeClient, namespace: str) -> None:
    created = kube.create(LLMENGINE, an_engine(namespace, "chat"))
    assert created["status"]["observedGeneration"] == -1
    meta = {"namespace": namespace, "name": "chat"}
    kube.apply_status(LLMENGINE, {"metadata": meta, "status": {"observedGeneration": 1}})
    found = kube.get(LLMENGINE, namespace, "chat")
    assert found["status"]["observedGeneration"] == 1
    assert found["spec"] == created["spec"]
    assert found["metadata"]["generation"] == created["metadata"]["generation"]


def test_a_status_of_an_engine_that_was_deleted_makes_no_engine(
    kube: KubeClient, namespace: str
) -> None:
    meta = {"namespace": namespace, "name": "gone"}
    with pytest.raises(NotFoundError, match=rf"apply LLMEngine {namespace}/gone status"):
        kube.apply_status(LLMENGINE, {"metadata": meta, "status": {"observedGeneration": 1}})


def test_creating_twice_is_told_apart_from_a_conflict(kube: KubeClient, namespace: str) -> None:
    kube.create(JOB, a_managed_job(namespace, "build"))
    with pytest.raises(AlreadyExistsError, match=rf"cannot create Job {namespace}/build"):
        kube.create(JOB, a_managed_job(namespace, "build"))


def test_replacing_what_somebody_changed_meanwhile_is_a_conflict(
    kube: KubeClient, namespace: str
) -> None:
    meta = {"namespace": namespace, "name": "settings"}
    read = kube.create(CONFIGMAP, {"metadata": meta, "data": {"a": "1"}})
    replaced = kube.replace(CONFIGMAP, {**read, "data": {"a": "2"}})
    assert replaced["data"] == {"a": "2"}
    with pytest.raises(ConflictError):
        kube.replace(CONFIGMAP, {**read, "data": {"a": "3"}})


def test_deleting_with_a_uid_spares_an_object_that_came_after(
    kube: KubeClient, namespace: str
) -> None:
    created = kube.create(JOB, a_managed_job(namespace, "build"))
    with pytest.raises(ConflictError):
        kube.delete(JOB, namespace, "build", uid="of-another")
    kube.delete(JOB, namespace, "build", uid=created["metadata"]["uid"])
    with pytest.raises(NotFoundError):
        kube.delete(JOB, namespace, "build")


def test_replicas_are_scaled_without_owning_them_in_the_apply(
    kube: KubeClient, namespace: str
) -> None:
    kube.create(DEPLOYMENT, a_deployment(namespace, replicas=0))
    kube.scale(DEPLOYMENT, namespace, "web", 2)
    kube.apply(DEPLOYMENT, a_deployment(namespace))
    assert kube.get(DEPLOYMENT, namespace, "web")["spec"]["replicas"] == 2


@pytest.mark.parametrize("write", ["create", "apply"])
def test_a_misspelt_field_is_refused_and_not_dropped(
    kube: KubeClient, namespace: str, write: str
) -> None:
    obj = {"metadata": {"namespace": namespace, "name": "settings"}, "daata": {"a": "1"}}
    with pytest.raises(InvalidError, match="daata"):
        getattr(kube, write)(CONFIGMAP, obj)


def test_the_sentences_of_the_schema_reach_the_caller_with_their_fields(
    kube: KubeClient, namespace: str
) -> None:
    engine = an_engine(namespace, "chat")
    engine["spec"]["model"]["uri"] = "ftp://x"
    with pytest.raises(InvalidError) as raised:
        kube.create(LLMENGINE, engine)
    assert "must begin with hf://, s3:// or pvc://" in str(raised.value)
    (cause,) = raised.value.causes
    assert cause.field == "spec.model.uri"
    assert "must begin with" in cause.message


def test_lists_of_all_namespaces_come_in_pages_and_by_label(
    kube: KubeClient, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_module, "PAGE_SIZE", 3)
    for number in range(8):
        kube.create(JOB, a_managed_job(namespace, f"j{number}", labels={"batch": namespace}))
    kube.create(JOB, a_managed_job(namespace, "other"))
    before = kube.requests.get(("list", "Job"), 0)
    jobs = kube.list(JOB, labels={"batch": namespace})
    assert [job["metadata"]["name"] for job in jobs] == [f"j{n}" for n in range(8)]
    assert jobs[0]["kind"] == "Job"
    assert kube.requests["list", "Job"] - before == 3
    assert len(kube.list(JOB, namespace, cached=True, labels={"batch": namespace})) == 8
    assert len(kube.list(JOB, namespace, fields="metadata.name=j3")) == 1


def test_a_list_of_metadata_has_no_specs(kube: KubeClient, namespace: str) -> None:
    kube.create(JOB, a_managed_job(namespace, "build"))
    (job,) = kube.list(JOB, namespace, metadata_only=True)
    assert job["metadata"]["name"] == "build"
    assert int(job["metadata"]["resourceVersion"]) > 0
    assert "spec" not in job


def test_what_we_may_not_do_is_forbidden_by_name(
    setting: Setting, namespace: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = connect(setting.kubeconfig(tmp_path), monkeypatch)
    operator.list(POD, namespace)
    with pytest.raises(
        ForbiddenError, match=r"cannot list Service: .*llmengine-operator.*services"
    ):
        operator.list(SERVICE)
    with pytest.raises(ForbiddenError):
        operator.list(CRD)


def test_a_token_that_is_wrong_is_forbidden_as_well(
    setting: Setting, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = connect(Setting(setting.cluster, "nonsense").kubeconfig(tmp_path), monkeypatch)
    with pytest.raises(ForbiddenError, match="Unauthorized"):
        stranger.list(POD)


def test_an_event_is_seen_with_its_object_and_counted(kube: KubeClient, namespace: str) -> None:
    engine = kube.create(LLMENGINE, an_engine(namespace, "chat"))
    for _ in range(3):
        kube.event(engine, type="Normal", reason="BuildStarted", action="Build", note="amd64")
    kube.event(engine, type="Warning", reason="BuildFailed", action="Build", note="no memory")
    events = kube.list(EVENT, namespace, fields="regarding.name=chat")
    by_reason = {event["reason"]: event for event in events}
    assert by_reason["BuildStarted"]["series"]["count"] == 3
    assert by_reason["BuildFailed"]["type"] == "Warning"
    assert "series" not in by_reason["BuildFailed"]


def test_an_event_that_the_server_has_forgotten_is_posted_anew(
    kube: KubeClient, namespace: str
) -> None:
    engine = kube.create(LLMENGINE, an_engine(namespace, "chat"))
    for _ in range(2):
        kube.event(engine, type="Normal", reason="Served", action="Serve", note="n")
        for event in kube.list(EVENT, namespace):
            kube.delete(EVENT, namespace, event["metadata"]["name"])
    kube.event(engine, type="Normal", reason="Served", action="Serve", note="n")
    assert [event["reason"] for event in kube.list(EVENT, namespace)] == ["Served"]


def test_an_event_about_a_cluster_scoped_object_lies_in_the_default_namespace(
    kube: KubeClient, namespace: str
) -> None:
    crd = kube.get(CRD, None, "llmengines.llmengine.io")
    kube.event(crd, type="Normal", reason="Tested", action="Test", note=namespace)
    notes = [event["note"] for event in kube.list(EVENT, "default") if "note" in event]
    assert namespace in notes


def test_threads_share_a_client(kube: KubeClient, namespace: str) -> None:
    def write(number: int) -> str:
        meta = {"namespace": namespace, "name": f"c{number}"}
        kube.apply(CONFIGMAP, {"metadata": meta, "data": {"n": str(number)}})
        return str(kube.get(CONFIGMAP, namespace, f"c{number}")["data"]["n"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(write, range(40))) == [str(n) for n in range(40)]
