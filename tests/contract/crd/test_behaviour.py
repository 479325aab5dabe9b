"""How our kinds behave in a real API server: defaults, status, merging, columns, explanations."""

from __future__ import annotations

import copy
import json
import uuid
from typing import Any

import pytest

from llmengine.api.crd import crds, engine_crd
from llmengine.api.v1alpha1 import LLMEngineSpec
from tests.cluster.api import Api, ApiError
from tests.cluster.cluster import Cluster
from tests.cluster.paths import ClusterError
from tests.cluster.waiting import wait_for
from tests.contract.crd.conftest import install
from tests.contract.crd.objects import COMMIT, Server, engine, runtime, sentence

pytestmark = pytest.mark.controlplane

READY: dict[str, Any] = {
    "type": "Ready",
    "status": "Unknown",
    "reason": "Building",
    "message": "building amd64: Compile 40%",
    "observedGeneration": 1,
    "lastTransitionTime": "2026-11-24T12:00:00Z",
}


@pytest.fixture
def name() -> str:
    return f"e-{uuid.uuid4().hex[:8]}"


def test_defaults_are_filled_in_to_the_last_nested_field(server: Server, name: str) -> None:
    created = server.create(engine({"spec.serving.autoscaling.maxReplicas": 3}, name=name))
    assert created["spec"]["engine"] == {
        "dtype": "auto",
        "quantization": {"weights": "none", "kvCache": "none"},
        "maxBatchSize": 8,
        "maxSequenceLength": 4096,
        "maxBatchTokens": 512,
        "portability": "Device",
    }
    assert created["spec"]["build"] == {"attempts": 3, "activeDeadlineSeconds": 7200}
    assert created["spec"]["serving"] == {
        "autoscaling": {"minReplicas": 1, "maxReplicas": 3},
        "rollout": {"strategy": "Auto", "progressDeadlineSeconds": 600},
    }
    assert created["spec"]["suspend"] is False


def test_what_the_api_server_fills_in_is_what_the_models_fill_in(server: Server) -> None:
    obj = engine()
    created = server.create(obj, keep=False)
    assert LLMEngineSpec.model_validate(created["spec"]) == LLMEngineSpec.model_validate(
        obj["spec"]
    )


def test_a_runtime_gets_its_pull_policy(server: Server) -> None:
    assert server.create(runtime(), keep=False)["spec"]["image"]["pullPolicy"] == "IfNotPresent"


def test_amounts_stay_as_they_were_written(server: Server) -> None:
    amounts = {"cpu": 2, "memory": "4096Mi"}
    created = server.create(engine({"spec.build.resources.requests": amounts}), keep=False)
    assert created["spec"]["build"]["resources"]["requests"] == amounts


def test_an_engine_that_no_operator_has_seen_is_not_done(server: Server, name: str) -> None:
    created = server.create(engine(name=name))
    assert created["status"] == {"observedGeneration": -1}
    assert created["metadata"]["generation"] == 1


def test_a_user_cannot_write_the_status_with_the_spec(server: Server, name: str) -> None:
    created = server.create(engine({"status.observedGeneration": 1}, name=name))
    assert created["status"] == {"observedGeneration": -1}
    changed = server.merge(created, {"status": {"url": "http://elsewhere"}})
    assert changed["status"] == {"observedGeneration": -1}


def test_a_status_moves_no_generation_and_no_spec(server: Server, name: str) -> None:
    obj = engine(name=name)
    server.create(obj)
    status = {"observedGeneration": 1, "url": "http://chat.team.svc:8000"}
    changed = server.merge(obj, {"status": status, "spec": {"suspend": True}}, subresource="status")
    assert changed["status"] == status
    assert changed["metadata"]["generation"] == 1
    assert changed["spec"]["suspend"] is False
    assert server.merge(obj, {"spec": {"suspend": True}})["metadata"]["generation"] == 2


def test_two_managers_each_keep_their_own_rows(server: Server, name: str) -> None:
    obj = engine(name=name)
    server.create(obj)
    identity = {key: obj[key] for key in ("apiVersion", "kind", "metadata")}
    row = {"key": "a" * 64, "architecture": "amd64", "state": "Building"}
    foreign = {**READY, "type": "Audited", "status": "True", "reason": "Audited"}

    def apply(manager: str, **status: Any) -> dict[str, Any]:
        applied = server.apply(
            {**identity, "status": status}, manager=manager, subresource="status"
        )
        found: dict[str, Any] = applied["status"]
        return found

    apply("llmengine-operator", observedGeneration=1, conditions=[READY], engines=[row])
    both = apply("auditor", conditions=[foreign])
    assert {c["type"] for c in both["conditions"]} == {"Ready", "Audited"}
    # The operator does not know of the other one's, and takes nothing away by saying its own anew.
    later = {**READY, "status": "True", "reason": "Serving"}
    cached = {**row, "state": "Cached"}
    serving = {
        "architecture": "amd64",
        "key": row["key"],
        "manifestDigest": "sha256:" + "b" * 64,
        "image": "registry.test/engine:v1",
    }
    after = apply(
        "llmengine-operator",
        observedGeneration=1,
        conditions=[later],
        engines=[cached],
        serving=[serving],
    )
    assert {c["type"]: c["status"] for c in after["conditions"]} == {
        "Ready": "True",
        "Audited": "True",
    }
    assert [e["state"] for e in after["engines"]] == ["Cached"]
    # What a manager says no more, it takes away: its own only.
    gone = apply("llmengine-operator", observedGeneration=1)
    assert [c["type"] for c in gone["conditions"]] == ["Audited"]
    assert "engines" not in gone


def test_a_list_of_rows_takes_each_key_once(server: Server, name: str) -> None:
    obj = engine(name=name)
    server.create(obj)
    with pytest.raises(ApiError) as refused:
        server.merge(obj, {"status": {"conditions": [READY, READY]}}, subresource="status")
    assert 'status.conditions[1]: Duplicate value: {"type":"Ready"}' in sentence(refused.value)


def test_kubectl_shows_what_a_user_wants_to_know(installed: Cluster, server: Server) -> None:
    obj = engine({"spec.runtime": "onnxruntime-1.32.0"}, name="shown")
    server.create(obj)
    status = {
        "observedGeneration": 1,
        "url": "http://shown.team.svc:8000",
        "conditions": [READY],
        "summary": {"engines": "0/1", "replicas": "0/2"},
    }
    server.merge(obj, {"status": status}, subresource="status")

    def rows(*options: str) -> list[list[str]]:
        printed = installed.kubectl("get", "lle", "shown", "-n", server.namespace, *options)
        return [line.split() for line in printed.splitlines()]

    header, row = rows()
    assert header == ["NAME", "READY", "REASON", "MODEL", "RUNTIME", "ENGINES", "REPLICAS", "AGE"]
    assert row[:-1] == [
        "shown",
        "Unknown",
        "Building",
        "hf://HuggingFaceTB/SmolLM2-135M-Instruct",
        "onnxruntime-1.32.0",
        "0/1",
        "0/2",
    ]
    wide, row = rows("-o", "wide")
    assert wide == [*header, "URL", "MESSAGE"]
    assert row[8:] == ["http://shown.team.svc:8000", *READY["message"].split()]


def test_kubectl_shows_runtimes(installed: Cluster, server: Server) -> None:
    obj = runtime(name=f"shown-{uuid.uuid4().hex[:8]}")
    server.create(obj)
    try:
        printed = installed.kubectl("get", "ler", obj["metadata"]["name"], "-o", "wide")
    finally:
        server.delete(obj)
    header, row = (line.split() for line in printed.splitlines())
    assert header == ["NAME", "BACKEND", "VERSION", "ACCELERATOR", "AGE", "IMAGE", "TAG"]
    assert row[1:4] == ["onnxruntime", "1.32.0", "cpu"]
    assert row[5:] == ["registry.test/engine", "v1"]


@pytest.mark.parametrize("word", ["llmengine", "llmengines", "LLMEngine", "lle"])
def test_an_engine_is_found_by_every_name_of_its_kind(
    installed: Cluster, server: Server, name: str, word: str
) -> None:
    server.create(engine(name=name))
    printed = installed.kubectl("get", word, name, "-n", server.namespace, "-o", "name")
    assert printed.split() == [f"llmengine.llmengine.io/{name}"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        pytest.param(
            "llmengine.spec.model.uri",
            "hf://OWNER/NAME, s3://BUCKET/PATH or pvc://CLAIM/PATH.",
            id="a string",
        ),
        pytest.param(
            "llmengine.spec.engine.dtype",
            "Number format of weights and activations.",
            id="a choice",
        ),
        pytest.param(
            "llmengine.spec.serving", "How the engine is served. Nothing here", id="a part"
        ),
        pytest.param(
            "llmengine.status.conditions.type",
            "Ready, Available, Reconciling, Stalled or EnginesBuilt.",
            id="a field of a row",
        ),
        pytest.param(
            "engineruntime.spec.version",
            "Exact version of the backend in the image, such as 1.32.0.",
            id="a field of a runtime",
        ),
    ],
)
def test_kubectl_explains_fields(installed: Cluster, server: Server, path: str, says: str) -> None:
    explained = " ".join(installed.kubectl("explain", path).split())
    assert says in explained


def test_kubectl_explains_choices(installed: Cluster, server: Server) -> None:
    explained = installed.kubectl("explain", "llmengine.spec.engine.dtype")
    assert explained.split("ENUM:")[1].split()[:4] == ["auto", "float32", "float16", "bfloat16"]


def test_kubectl_refuses_a_misspelt_field(installed: Cluster, server: Server) -> None:
    obj = engine({"spec.modle": {}})
    with pytest.raises(ClusterError, match=r'unknown field "spec.modle"'):
        installed.kubectl("apply", "-n", server.namespace, "-f", "-", stdin=json.dumps(obj))


def test_the_crds_fit_into_an_annotation_of_kubectl_apply() -> None:
    """256 KiB: with more of them, client-side apply would refuse the CRD."""
    for crd in crds():
        assert len(json.dumps(crd)) < 256 * 1024


def test_what_an_older_crd_took_can_be_finished_but_not_repeated(
    installed: Cluster, server: Server, name: str
) -> None:
    """A rule that is new leaves the objects of before alone: labels and status still change."""
    loose = copy.deepcopy(engine_crd())
    properties = loose["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    model = properties["spec"]["properties"]["model"]
    del model["x-kubernetes-validations"]
    obj = engine({"spec.model.revision": "main"}, name=name)
    try:
        _replace(installed.api, loose)
        wait_for(lambda: _accepts(server, obj), 20, "the CRD without rules to be in force")
        server.create(obj)
    finally:
        install(installed)
    wait_for(lambda: not _accepts(server, obj), 20, "the CRD with rules to be in force")
    assert server.merge(obj, {"metadata": {"labels": {"a": "b"}}})["metadata"]["labels"]
    status = {"observedGeneration": 1}
    assert server.merge(obj, {"status": status}, subresource="status")["status"] == status
    assert server.merge(obj, {"spec": {"suspend": True}})["spec"]["suspend"]
    with pytest.raises(ApiError, match="must be a 40-character commit"):
        server.merge(obj, {"spec": {"model": {"revision": "v2"}}})
    mended = server.merge(obj, {"spec": {"model": {"revision": COMMIT}}})
    assert mended["spec"]["model"]["revision"] == COMMIT


def _replace(api: Api, crd: dict[str, Any]) -> None:
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
    version = api.get(path)["metadata"]["resourceVersion"]
    metadata = {**crd["metadata"], "resourceVersion": version}
    api.request("PUT", path, {**crd, "metadata": metadata})


def _accepts(server: Server, obj: dict[str, Any]) -> bool:
    try:
        server.create({**obj, "metadata": {"name": "probe"}}, keep=False)
    except ApiError:
        return False
    return True
