"""Installs our Helm charts, with values for a store and for images."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.cluster.paths import ClusterError
from tests.cluster.s3 import Credentials
from tests.tools import build as tools

ROOT = Path(__file__).resolve().parents[2]
OPERATOR_NAMESPACE = "llmengine-system"
RUNTIME = "onnxruntime-1.32.0"


class Kubernetes(Protocol):
    """A cluster, local or not."""

    def exec(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]: ...


@dataclass(frozen=True)
class StoreAccess:
    """An S3 service with a bucket for engines and one for models, and who may do what there.

    `users`: operator, build, serve, models; and for a tenant namespace serve-TENANT, where it has
    a key of its own, and scopedBuild-TENANT, where it builds engines of its own.
    """

    endpoint: str
    region: str
    engines: str
    models: str
    users: Mapping[str, Credentials]


def values(
    operator: str, engine: str, store: StoreAccess, tenants: Sequence[str]
) -> dict[str, Any]:
    """Values of the operator's chart. `operator` and `engine` are images, REPOSITORY:TAG."""
    place = {"endpoint": store.endpoint, "region": store.region}

    def key(user: str) -> dict[str, str]:
        credentials = store.users[user]
        return {
            "accessKeyId": credentials.access_key,
            "secretAccessKey": credentials.secret_key,
        }

    return {
        "image": _image(operator),
        "store": {
            **place,
            "bucket": store.engines,
            "credentials": {
                role: key(role) for role in ("operator", "build", "serve") if role in store.users
            },
        },
        "models": {
            "s3": [{"name": "main", **place, "secretName": "llmengine-models", **key("models")}],
            "shared": [f"s3://{store.models}/"],
        },
        "runtimes": {RUNTIME: {"image": _image(engine)}},
        "tenantNamespaces": [
            {
                "name": tenant,
                **{
                    role: key(f"{role}-{tenant}")
                    for role in ("serve", "scopedBuild")
                    if f"{role}-{tenant}" in store.users
                },
            }
            for tenant in tenants
        ],
    }


def install(cluster: Kubernetes, operator_values: Mapping[str, Any]) -> None:
    """Install or upgrade both charts and wait until they are up. Raises ClusterError."""
    upgrade(cluster, "llmengine-crds", {})
    upgrade(cluster, "llmengine-operator", operator_values)


def upgrade(cluster: Kubernetes, release: str, chart_values: Mapping[str, Any]) -> None:
    """Install or upgrade the chart of that name."""
    helm = shutil.which("helm") or str(tools.path("helm"))
    command = [helm, "upgrade", "--install", release, str(ROOT / "charts" / release)]
    command += ["--namespace", OPERATOR_NAMESPACE, "--create-namespace"]
    command += ["--wait", "--timeout", "120s", "--values", "-"]
    text = json.dumps(chart_values)
    done = cluster.exec(*command, input=text, capture_output=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"helm upgrade {release} failed:\n{done.stderr.strip()}")


def _image(reference: str) -> dict[str, str]:
    repository, _, tag = reference.rpartition(":")
    return {"repository": repository, "tag": tag}
