"""What an admin reads who writes an EngineRuntime wrongly: each sentence, word for word."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.cluster.api import ApiError
from tests.contract.crd.objects import REMOVED, Server, runtime, sentence

pytestmark = pytest.mark.controlplane

IMMUTABLE = (
    "cannot be changed, because engines are keyed by it: create another EngineRuntime, and name it"
    " in the spec.runtime of the engines"
)
OWN = (
    "llmengine.io/..., app.kubernetes.io/managed-by and app.kubernetes.io/component are the"
    " operator's own: remove them"
)
WITHOUT_TAG = (
    'must be an image without tag and digest (got "{}"): these go into the fields tag and digest'
)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param(
            {"spec": REMOVED},
            "spec: Required value: give spec.backend, version, accelerator and image",
            id="no spec",
        ),
        pytest.param(
            {"spec.backend": REMOVED},
            "spec.backend: Required value: give onnxruntime, tensorrt or tensorrtllm",
            id="no backend",
        ),
        pytest.param(
            {"spec.version": REMOVED},
            "spec.version: Required value: give the exact version of the backend in the image, such"
            " as 1.32.0",
            id="no version",
        ),
        pytest.param(
            {"spec.accelerator": REMOVED},
            "spec.accelerator: Required value: give cpu or nvidia",
            id="no accelerator",
        ),
        pytest.param(
            {"spec.image": REMOVED},
            "spec.image: Required value: name the image that builds and serves: give"
            " image.repository and image.tag",
            id="no image",
        ),
        pytest.param(
            {"spec.image.repository": REMOVED},
            "spec.image.repository: Required value: name the image that builds and serves",
            id="no repository",
        ),
        pytest.param(
            {"spec.image.tag": REMOVED},
            "spec.image.tag: Required value: give a tag or a digest: engines must not change their"
            " image by chance",
            id="neither tag nor digest",
        ),
        pytest.param(
            {"spec.image.repository": "registry.test:5000/engine:v1"},
            f"spec.image.repository: Invalid value:"
            f" {WITHOUT_TAG.format('registry.test:5000/engine:v1')}",
            id="a tag in the repository",
        ),
        pytest.param(
            {"spec.image.repository": "registry.test/engine@sha256:ab"},
            f"spec.image.repository: Invalid value:"
            f" {WITHOUT_TAG.format('registry.test/engine@sha256:ab')}",
            id="a digest in the repository",
        ),
        pytest.param(
            {"spec.image.tag": "v 1"},
            'spec.image.tag: Invalid value: "v 1": not a tag: write letters, digits, _, . and -',
            id="a tag with a space",
        ),
        pytest.param(
            {"spec.image.digest": "sha256:abc"},
            'spec.image.digest: Invalid value: "sha256:abc": not a digest: write sha256: and 64'
            " hexadecimal digits",
            id="half a digest",
        ),
        pytest.param(
            {"spec.image.pullPolicy": "Sometimes"},
            'spec.image.pullPolicy: Unsupported value: "Sometimes": supported values: "Always",'
            ' "IfNotPresent", "Never"',
            id="an unknown pull policy",
        ),
        pytest.param(
            {"spec.image.pullSecrets": ["a", "a"]},
            'spec.image.pullSecrets[1]: Duplicate value: "a"',
            id="a pull Secret twice",
        ),
        pytest.param(
            {"spec.backend": "vllm"},
            'spec.backend: Unsupported value: "vllm": supported values: "onnxruntime", "tensorrt",'
            ' "tensorrtllm"',
            id="an unknown backend",
        ),
        pytest.param(
            {"spec.accelerator": "tpu"},
            'spec.accelerator: Unsupported value: "tpu": supported values: "cpu", "nvidia"',
            id="an unknown accelerator",
        ),
        pytest.param(
            {"spec.accelerator": "nvidia"},
            "spec.accelerator: Invalid value: is wrong for backend onnxruntime (got nvidia):"
            " onnxruntime runs on cpu, tensorrt and tensorrtllm run on nvidia",
            id="a CPU backend on a GPU",
        ),
        pytest.param(
            {"spec.backend": "tensorrt"},
            "spec.accelerator: Invalid value: is wrong for backend tensorrt (got cpu):"
            " onnxruntime runs on cpu, tensorrt and tensorrtllm run on nvidia",
            id="a GPU backend on a CPU",
        ),
        pytest.param(
            {"spec.version": ">=1.32"},
            'spec.version: Invalid value: ">=1.32": not an exact version: write one such as 1.32.0',
            id="a range of versions",
        ),
        pytest.param(
            {"spec.podDefaults.env": [{"name": "HTTP-PROXY"}]},
            'spec.podDefaults.env[0].name: Invalid value: "HTTP-PROXY": not the name of a variable:'
            " write letters, digits and _, beginning with a letter or _",
            id="a variable that cannot be",
        ),
        pytest.param(
            {"spec.podDefaults.env": [{"name": "LLMENGINE_SCRATCH", "value": "/"}]},
            'spec.podDefaults.env[0].name: Invalid value: "LLMENGINE_SCRATCH": LLMENGINE_... are'
            " set by the operator: remove it",
            id="a variable of the operator",
        ),
        pytest.param(
            {"spec.podDefaults.env": [{"name": "A"}, {"name": "A", "value": "b"}]},
            'spec.podDefaults.env[1]: Duplicate value: {"name":"A"}',
            id="a variable twice",
        ),
        pytest.param(
            {"spec.podDefaults.labels": {"llmengine.io/engine": "mine"}},
            f"spec.podDefaults.labels: Forbidden: {OWN}",
            id="a label of the operator",
        ),
        pytest.param(
            {"spec.podDefaults.annotations": {"llmengine.io/engine-key": "mine"}},
            f"spec.podDefaults.annotations: Forbidden: {OWN}",
            id="an annotation of the operator",
        ),
        pytest.param(
            {"spec.podDefaults.labels": {"a b": "c"}},
            "spec.podDefaults.labels: Invalid value: every key must be the name of a label, such as"
            " example.com/pool",
            id="a label that cannot be",
        ),
    ],
)
def test_a_wrong_runtime_is_refused_with_a_sentence(
    server: Server, changes: dict[str, Any], says: str
) -> None:
    refusal = server.refusal(runtime(changes))
    assert refusal.removeprefix("[").split(", <nil>: ")[0] == says


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        pytest.param({"version": "1.33.0"}, ["version"], id="another version"),
        pytest.param(
            {"backend": "tensorrt", "accelerator": "nvidia"},
            ["backend", "accelerator"],
            id="another backend",
        ),
    ],
)
def test_what_engines_are_keyed_by_cannot_be_changed(
    server: Server, changes: dict[str, str], fields: list[str]
) -> None:
    obj = runtime(name=f"fixed-{uuid.uuid4().hex[:8]}")
    server.create(obj)
    try:
        with pytest.raises(ApiError) as refused:
            server.merge(obj, {"spec": changes})
        for field in fields:
            assert f"spec.{field}: Forbidden: {IMMUTABLE}" in sentence(refused.value)
    finally:
        server.delete(obj)


@pytest.mark.parametrize(
    "image",
    [
        pytest.param({"tag": "v2"}, id="another tag"),
        pytest.param({"repository": "mirror.test:5000/a/b-c_d", "tag": "v1"}, id="a mirror"),
        pytest.param({"digest": "sha256:" + "a" * 64, "tag": None}, id="a digest for the tag"),
    ],
)
def test_the_image_can_be_changed(server: Server, image: dict[str, str | None]) -> None:
    obj = runtime(name=f"moved-{uuid.uuid4().hex[:8]}")
    server.create(obj)
    try:
        changed = server.merge(obj, {"spec": {"image": image}})
    finally:
        server.delete(obj)
    for field, value in image.items():
        assert changed["spec"]["image"].get(field) == value


GPU = {"spec.backend": "tensorrt", "spec.version": "10.6.0", "spec.accelerator": "nvidia"}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="as little as possible"),
        pytest.param({"spec.computeCapabilities": ["sm_80+"]}, id="capabilities from one on"),
        pytest.param({"spec.computeCapabilities": ["sm_75", "sm_120"]}, id="two capabilities"),
        pytest.param({"spec.minimumDriver": "550"}, id="a major version of the driver"),
        pytest.param({"spec.minimumDriver": "550.54.15"}, id="a whole version of the driver"),
        pytest.param({"spec.runtimeClassName": "nvidia"}, id="a RuntimeClass"),
    ],
)
def test_a_gpu_runtime_is_accepted(server: Server, changes: dict[str, Any]) -> None:
    server.create(runtime({**GPU, **changes}), keep=False)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param(
            {**GPU, "spec.computeCapabilities": ["9.0"]},
            'spec.computeCapabilities[0]: Invalid value: "9.0": not a compute capability: write one'
            " such as sm_90, or sm_80+ for it and all above",
            id="a capability in NVIDIA's words",
        ),
        pytest.param(
            {**GPU, "spec.minimumDriver": "R550"},
            'spec.minimumDriver: Invalid value: "R550": not the version of a driver: write one such'
            " as 550, 550.54 or 550.54.15",
            id="a branch of the driver",
        ),
        pytest.param(
            {"spec.computeCapabilities": ["sm_80+"]},
            "spec.computeCapabilities: Forbidden: is for GPUs, and accelerator is cpu: remove it",
            id="capabilities of a CPU",
        ),
        pytest.param(
            {"spec.minimumDriver": "550"},
            "spec.minimumDriver: Forbidden: is for GPUs, and accelerator is cpu: remove it",
            id="a driver for a CPU",
        ),
    ],
)
def test_what_is_wrong_about_gpus_is_refused_with_a_sentence(
    server: Server, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ApiError) as refused:
        server.create(runtime(changes), keep=False)
    assert says in sentence(refused.value)
