"""What an LLMEngine needs around it: a store, a model, images and the Helm charts.

The end-to-end tests stand on the same platform as the demo, so what they prove is what it shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import images
from tests.cluster.cluster import Cluster
from tests.cluster.images import Image
from tests.cluster.paths import ClusterError
from tests.cluster.s3 import READ, WRITE, Credentials, S3Server
from tests.tools import build as tools

ROOT = Path(__file__).resolve().parents[2]
OPERATOR_NAMESPACE = "llmengine-system"
BUILDS_NAMESPACE = "llmengine-builds"
RUNTIME = "onnxruntime-1.32.0"
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
        self._users: dict[str, Credentials] = {}

    def install(self, **values: Any) -> None:
        """Start the store and install both charts; `values` are merged into the operator's."""
        self.start_store()
        for tenant in self.tenants:
            # The strictest pod security that Kubernetes knows: everything of ours passes it.
            labels = {"pod-security.kubernetes.io/enforce": "restricted"}
            self.cluster.apply(
                {
                    "apiVersion": "v1",
                    "kind": "Namespace",
                    "metadata": {"name": tenant, "labels": labels},
                }
            )
        self.helm("llmengine-crds", ROOT / "charts/llmengine-crds", {})
        self.helm("llmengine-operator", ROOT / "charts/llmengine-operator", self.values(values))

    def start_store(self) -> None:
        """Buckets for engines and models, and a user for each of the four identities."""
        self.s3.start()
        for bucket in (ENGINES, MODELS):
            self.s3.make_bucket(bucket)
        add, allow = self.s3.add_user, self.s3.allow
        users = {name: add(name) for name in ("operator", "build", "serve", "models")}
        for name, bucket, actions, prefix in (
            ("operator", ENGINES, READ, "v1/"),
            ("operator", ENGINES, WRITE, "v1/probe/"),
            ("build", ENGINES, WRITE, "v1/"),
            ("serve", ENGINES, READ, "v1/"),
            ("models", MODELS, READ, ""),
        ):
            allow(users[name], bucket, actions, prefix)
        for name, bucket in (
            ("operator", ENGINES),
            ("build", ENGINES),
            ("serve", ENGINES),
            ("models", MODELS),
        ):
            self.s3.allow_list(users[name], bucket)
        for tenant in self.tenants:
            # A namespace's own engines: it can write there, and nowhere else.
            users[tenant] = self.s3.read_write_user(
                f"scope-{tenant}", ENGINES, f"v1/scopes/{tenant}/"
            )
        self._users = users

    def put_model(self, folder: Path, name: str) -> str:
        """Copy a model's files into the models bucket. Returns its s3:// URI."""
        client = self.s3.client()

        def upload() -> None:
            for file in sorted(folder.iterdir()):
                client.upload_file(str(file), MODELS, f"{name}/{file.name}")

        self.s3.call(upload)
        return f"s3://{MODELS}/{name}"

    def stored(self, prefix: str = "") -> dict[str, int]:
        """What the engines bucket holds: sizes in bytes by key."""
        client = self.s3.client()

        def list_keys() -> dict[str, int]:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=ENGINES, Prefix=prefix)
            return {o["Key"]: o["Size"] for page in pages for o in page.get("Contents", [])}

        return self.s3.call(list_keys)

    def values(self, more: Mapping[str, Any]) -> dict[str, Any]:
        """Values of the operator's chart for this store and these images."""
        place = {"endpoint": self.s3.endpoint, "region": "us-east-1"}
        base = {
            "image": _image(self.images.operator),
            "store": {
                **place,
                "bucket": ENGINES,
                "credentials": {
                    name: {"accessKeyId": user.access_key, "secretAccessKey": user.secret_key}
                    for name, user in self._users.items()
                    if name in ("operator", "build", "serve")
                },
            },
            "models": {
                "s3": [
                    {
                        "name": "main",
                        **place,
                        "secretName": "llmengine-models",
                        "accessKeyId": self._users["models"].access_key,
                        "secretAccessKey": self._users["models"].secret_key,
                    }
                ],
                "shared": [f"s3://{MODELS}/"],
            },
            "runtimes": {RUNTIME: {"image": _image(self.images.engine)}},
            "tenantNamespaces": [
                {
                    "name": tenant,
                    "scopedBuild": {
                        "accessKeyId": self._users[tenant].access_key,
                        "secretAccessKey": self._users[tenant].secret_key,
                    },
                }
                for tenant in self.tenants
            ],
        }
        return _merged(base, more)

    def helm(self, release: str, chart: Path, values: Mapping[str, Any]) -> None:
        """Install or upgrade a release in the operator's namespace, and wait until it is up."""
        command = [str(tools.path("helm")), "upgrade", "--install", release, str(chart)]
        command += ["--namespace", OPERATOR_NAMESPACE, "--create-namespace"]
        command += ["--wait", "--timeout", "120s", "--values", "-"]
        done = self.cluster.exec(
            *command, input=json.dumps(values), capture_output=True, check=False
        )
        if done.returncode != 0:
            raise ClusterError(f"helm upgrade {release} failed:\n{done.stderr.strip()}")


def _image(image: Image) -> dict[str, str]:
    repository, _, tag = image.reference.rpartition(":")
    return {"repository": repository, "tag": tag}


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in more.items():
        known = result.get(key)
        both = isinstance(known, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(known, value) if both else value  # type: ignore[arg-type]
    return result
