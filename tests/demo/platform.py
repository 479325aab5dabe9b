"""What an LLMEngine needs around it on a local cluster: a store, a model, images and the charts.

The end-to-end tests stand on the same platform as the demo, so what they prove is what it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import images
from tests.cluster.cluster import Cluster
from tests.cluster.images import Image
from tests.cluster.s3 import READ, REGION, WRITE, S3Server
from tests.demo import charts
from tests.demo.charts import OPERATOR_NAMESPACE, ROOT, RUNTIME, StoreAccess

__all__ = ["OPERATOR_NAMESPACE", "ROOT", "RUNTIME"]

BUILDS_NAMESPACE = "llmengine-builds"
ENGINES, MODELS = "engines", "models"


@dataclass(frozen=True)
class Images:
    """The two images of this checkout."""

    operator: Image
    engine: Image

    @classmethod
    def build(cls) -> Images:
        """From the real Dockerfiles, unless their sources were built before."""
        operator = images.build(ROOT / "operator/Dockerfile", None, ROOT, "operator")
        engine = images.build(ROOT / "builder_image/Dockerfile", "onnxruntime", ROOT, "onnxruntime")
        return cls(operator, engine)

    def all(self) -> list[Image]:
        return [self.operator, self.engine]


class Platform:
    """A store in a cluster's network, and our charts installed into the cluster.

    `tenants` are namespaces that get the Secrets for serving, and for building engines of their
    own scope. They are made here.
    """

    def __init__(self, cluster: Cluster, built: Images, tenants: Sequence[str]) -> None:
        self.cluster = cluster
        self.images = built
        self.tenants = list(tenants)
        self.s3 = S3Server(cluster, name="s3")

    def install(self, **values: Any) -> None:
        """Start the store and install both charts; `values` are merged into the operator's."""
        self._store = self._start_store()
        for tenant in self.tenants:
            self.cluster.apply(namespace(tenant))
        self._values = values
        self.install_charts()

    def install_charts(self) -> None:
        """As they were installed first, whatever was installed over them since."""
        operator, engine = self.images.operator.reference, self.images.engine.reference
        ours = charts.values(operator, engine, self._store, self.tenants)
        charts.install(self.cluster, _merged(ours, self._values))

    def _start_store(self) -> StoreAccess:
        """Buckets for engines and models, and a user for each identity."""
        self.s3.start()
        for bucket in (ENGINES, MODELS):
            self.s3.make_bucket(bucket)
        s3 = self.s3
        users = {
            "operator": s3.read_only_user("operator", ENGINES, "v1/"),
            "build": s3.read_write_user("build", ENGINES, "v1/"),
            "models": s3.read_only_user("models", MODELS),
        }
        # Whether the store honours conditional writes is found out by writing.
        s3.allow(users["operator"], ENGINES, WRITE, "v1/probe/")
        for tenant in self.tenants:
            # What a namespace keeps to itself, its builds write and its servers read.
            place = f"v1/scopes/{tenant}/"
            users[f"scopedBuild-{tenant}"] = s3.read_write_user(f"scope-{tenant}", ENGINES, place)
            server = users[f"serve-{tenant}"] = s3.add_user(f"serve-{tenant}")
            for readable in ("v1/engines/", "v1/blobs/", place):
                s3.allow(server, ENGINES, READ, readable)
        return StoreAccess(s3.endpoint, REGION, ENGINES, MODELS, users)

    def put_model(self, folder: Path, name: str) -> str:
        """Copy a model's files into the models bucket. Returns its s3:// URI."""
        self.s3.call(lambda: upload(self.s3.client(), folder, MODELS, name))
        return f"s3://{MODELS}/{name}"

    def stored(self, prefix: str = "") -> dict[str, int]:
        """What the engines bucket holds: sizes in bytes by key."""
        return self.s3.call(lambda: listed(self.s3.client(), ENGINES, prefix))


def namespace(name: str) -> dict[str, Any]:
    """With the strictest pod security that Kubernetes knows: everything of ours passes it."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": labels},
    }


def upload(client: Any, folder: Path, bucket: str, name: str) -> None:
    """Put the files of a model's folder below NAME/ of a bucket."""
    for file in sorted(folder.iterdir()):
        client.upload_file(str(file), bucket, f"{name}/{file.name}")


def listed(client: Any, bucket: str, prefix: str = "") -> dict[str, int]:
    """Sizes in bytes by key."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {obj["Key"]: obj["Size"] for page in pages for obj in page.get("Contents", [])}


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in more.items():
        known = result.get(key, {})
        both = isinstance(known, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(known, value) if both else value
    return result
