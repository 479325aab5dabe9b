"""Values that would not work are refused before anything is installed, with a sentence."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.charts.helm import MINIMAL, OPERATOR, Helm, HelmError, at, merged

HALF = "has half a key: accessKeyId and secretAccessKey belong together"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        pytest.param(
            {},
            "image.repository is missing: give the image that was built from operator/Dockerfile",
            id="nothing at all",
        ),
        pytest.param(
            merged(MINIMAL, at("store.bucket", "")),
            "store.bucket is missing: give the bucket that keeps the engines",
            id="no bucket",
        ),
        pytest.param(
            {**MINIMAL, "runtimes": {}},
            "runtimes.onnxruntime-1.32.0.image.repository is missing: give the image that was built"
            " from builder_image/Dockerfile, or leave the runtime out by setting it to null",
            id="a runtime without an image",
        ),
        pytest.param(
            merged(MINIMAL, {"replicas": 2}, at("leaderElection.enabled", False)),
            "replicas is more than 1, but leaderElection.enabled is false: two operators would work"
            " against each other",
            id="two operators without a lease",
        ),
        pytest.param(
            merged(MINIMAL, at("store.credentials.serve.accessKeyId", "AKIA")),
            f"store.credentials.serve {HALF}",
            id="a key without its secret",
        ),
        pytest.param(
            merged(MINIMAL, at("models.s3", [{"name": "main", "secretAccessKey": "x"}])),
            f"models.s3[0] {HALF}",
            id="a secret without its key, for models",
        ),
        pytest.param(
            merged(
                MINIMAL,
                {"tenantNamespaces": [{"name": "team-a", "scopedBuild": {"accessKeyId": "AKIA"}}]},
            ),
            f"tenantNamespaces: scopedBuild of team-a {HALF}",
            id="half a key for a tenant",
        ),
        pytest.param(
            merged(
                MINIMAL, {"tenantNamespaces": [{"name": "a", "serve": {"accessKeyId": "AKIA"}}]}
            ),
            f"tenantNamespaces: serve of a {HALF}",
            id="half a key that serves for a tenant",
        ),
        pytest.param(
            merged(
                MINIMAL,
                at(
                    "store.credentials.build",
                    {"secretName": "", "accessKeyId": "a", "secretAccessKey": "b"},
                ),
            ),
            "store.credentials.build has a key but no secretName: say where the key is to be kept",
            id="a key without a place",
        ),
        pytest.param(
            merged(MINIMAL, {"watchNamespaces": ["b"], "tenantNamespaces": [{"name": "a"}]}),
            "tenantNamespaces has a, but watchNamespaces does not: its engines would never be"
            " looked at",
            id="a tenant that is not watched",
        ),
        pytest.param(
            merged(MINIMAL, at("builds.namespace", "llmengine-system")),
            "builds.namespace is the release's own namespace: name another one, or set"
            " builds.createNamespace to false",
            id="builds in the operator's namespace",
        ),
    ],
)
def test_values_that_would_not_work_are_refused(
    helm: Helm, values: dict[str, Any], says: str
) -> None:
    with pytest.raises(HelmError) as refused:
        helm.render(OPERATOR, values)
    assert str(refused.value).endswith(f": {says}") or f": {says}\n" in str(refused.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        pytest.param(at("store.buckets", "x"), "additional properties 'buckets'", id="misspelt"),
        pytest.param(at("store.bucket", "My_Bucket"), "at '/store/bucket'", id="no bucket's name"),
        pytest.param(at("store.endpoint", "s3.test"), "at '/store/endpoint'", id="no URL"),
        pytest.param(at("store.prefix", "a/"), "at '/store/prefix'", id="a slash at the end"),
        pytest.param(at("store.prefix", "/"), "at '/store/prefix'", id="nothing but a slash"),
        pytest.param(at("models.shared", ["s3://m"]), "at '/models/shared/0'", id="no slash"),
        pytest.param(at("image.tag", 1.5), "at '/image/tag'", id="a number for a tag"),
        pytest.param(at("replicas", "2"), "at '/replicas'", id="text for a number"),
        pytest.param(
            at("image.repository", "registry.test/op:v1"),
            "at '/image/repository'",
            id="a tag in the repository",
        ),
        pytest.param(
            at("runtimes", {"x": {"backend": "onnxruntime"}}),
            "at '/runtimes/x'",
            id="half a runtime",
        ),
        pytest.param(
            at("tenantNamespaces", ["team-a"]), "at '/tenantNamespaces/0'", id="a bare name"
        ),
        pytest.param(
            at("store.credentials.scopedBuild.accessKeyId", "x"),
            "additional properties 'accessKeyId'",
            id="one key for all tenants",
        ),
    ],
)
def test_values_of_the_wrong_form_are_refused(
    helm: Helm, values: dict[str, Any], says: str
) -> None:
    with pytest.raises(HelmError, match="don't meet the specifications") as refused:
        helm.render(OPERATOR, merged(MINIMAL, values))
    assert says in str(refused.value)
