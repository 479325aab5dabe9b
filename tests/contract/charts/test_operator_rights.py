"""The real operator works with the rights and the configuration that the chart gives it.

It builds and serves an engine on nodes that kwok plays: whatever it may not do would show.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmengine.artifact import Manifest
from llmengine.key import CLUSTER
from llmengine.requests import BUILD_REQUEST_VARIABLE, BuildRequest
from llmengine.store import Credentials, Store
from tests.cluster.cluster import Cluster
from tests.cluster.fake_nodes import end_pod
from tests.cluster.paths import REPOSITORY
from tests.cluster.ports import free_port
from tests.cluster.s3 import S3Server
from tests.cluster.waiting import wait_for
from tests.contract.charts.helm import CRDS, MINIMAL, OPERATOR, Helm, at, find, merged
from tests.engines import make_manifest

pytestmark = pytest.mark.controlplane

SYSTEM = "llmengine-system"
BUILDS = "llmengine-builds"


@pytest.fixture(scope="module")
def store() -> Iterator[S3Server]:
    with S3Server(name="chart-store") as server:
        server.make_bucket("engines")
        yield server


@dataclass(frozen=True)
class Place:
    """A namespace for engines, and the values that the operator was installed with."""

    cluster: Cluster
    helm: Helm
    store: S3Server
    namespace: str
    values: dict[str, Any]

    def path(self, group: str, plural: str, name: str = "", namespace: str = "") -> str:
        place = f"{group}/namespaces/{namespace or self.namespace}/{plural}"
        return f"{place}/{name}" if name else place

    def engine(self) -> dict[str, Any]:
        found: dict[str, Any] = self.cluster.api.get(
            self.path("/apis/llmengine.io/v1alpha1", "llmengines", "chat")
        )
        return found

    def ready(self) -> dict[str, Any]:
        conditions = self.engine()["status"].get("conditions", [])
        found: dict[str, Any] = {c["type"]: c for c in conditions}.get("Ready", {})
        return found

    def publish(self, request: BuildRequest) -> None:
        """What a build would leave behind."""
        root = self.store.root
        credentials = Credentials(root.access_key, root.secret_key)
        manifest = make_manifest().model_copy(
            update={"key": request.key, "factors": request.factors}
        )
        Store(request.store, credentials).publish_manifest(
            Manifest.model_validate(manifest.model_dump()), CLUSTER
        )


@contextmanager
def installed(
    cluster: Cluster, helm: Helm, store: S3Server, namespace: str, values: dict[str, Any]
) -> Iterator[Place]:
    key = {"accessKeyId": store.root.access_key, "secretAccessKey": store.root.secret_key}
    place = {"endpoint": store.endpoint}
    everywhere = merged(
        MINIMAL,
        at("store", {**place, "credentials": {"operator": key, "build": key, "serve": key}}),
        at("models", {"s3": [{"name": "main", **place}], "shared": ["s3://models/"]}),
        {"tenantNamespaces": [{"name": namespace}]},
        values,
    )
    cluster.kubectl("create", "namespace", namespace)
    helm.run("upgrade", "--install", "llmengine-crds", str(CRDS))
    helm.run(
        *("upgrade", "--install", "llmengine-operator", str(OPERATOR)),
        *("--namespace", SYSTEM, "--create-namespace"),
        values=everywhere,
    )
    try:
        yield Place(cluster, helm, store, namespace, everywhere)
    finally:
        helm.run("uninstall", "llmengine-operator", "--namespace", SYSTEM)
        cluster.kubectl("delete", "engineruntimes", "--all")
        cluster.kubectl("delete", "namespace", "--wait=false", namespace)
        cluster.kubectl("delete", "jobs", "--all", "--namespace", BUILDS)


@contextmanager
def operator(place: Place, folder: Path) -> Iterator[Path]:
    """The operator as the chart would run it, but as a process here. Yields its log."""
    rendered = place.helm.render(OPERATOR, place.values)
    config = yaml.safe_load(find(rendered, "ConfigMap")["data"]["config.yaml"])
    config |= {"healthPort": free_port(), "metricsPort": free_port()}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "llmengine_operator.main", f"--config={folder}/config.yaml"],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "KUBECONFIG": str(_kubeconfig(place.cluster, folder)),
                "POD_NAME": "operator-0",
                "STORE_AWS_ACCESS_KEY_ID": place.store.root.access_key,
                "STORE_AWS_SECRET_ACCESS_KEY": place.store.root.secret_key,
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield log
            assert process.poll() is None, log.read_text()
        finally:
            process.terminate()
            process.wait(20)


def _kubeconfig(cluster: Cluster, folder: Path) -> Path:
    """Of the ServiceAccount that the chart has made."""
    account = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/llmengine-operator/token"
    token = cluster.api.request("POST", account, {"spec": {"expirationSeconds": 3600}})
    server = f"https://127.0.0.1:{cluster.api.port}"
    ca = str(cluster.state.pki / "ca.crt")
    file = folder / "kubeconfig"
    file.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [
                    {"name": "c", "cluster": {"server": server, "certificate-authority": ca}}
                ],
                "users": [{"name": "u", "user": {"token": token["status"]["token"]}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    return file


def _engine(place: Place, **serving: Any) -> dict[str, Any]:
    return {
        "apiVersion": "llmengine.io/v1alpha1",
        "kind": "LLMEngine",
        "metadata": {"name": "chat", "namespace": place.namespace},
        "spec": {
            "runtime": "onnxruntime-1.32.0",
            "model": {"uri": "s3://models/tiny", "revision": uuid.uuid4().hex},
            "serving": serving,
        },
    }


@pytest.mark.parametrize("watched", [False, True], ids=["all namespaces", "watched namespaces"])
def test_an_engine_is_built_served_scaled_and_removed(
    chart_cluster: Cluster,
    cluster_helm: Helm,
    store: S3Server,
    tmp_path: Path,
    watched: bool,
) -> None:
    namespace = f"t-{uuid.uuid4().hex[:8]}"
    values = {"watchNamespaces": [namespace]} if watched else {}
    _ensure_node(chart_cluster)
    api = chart_cluster.api
    with installed(chart_cluster, cluster_helm, store, namespace, values) as place:
        with operator(place, tmp_path) as log:

            def see(what: str, predicate: Any, seconds: float = 60) -> Any:
                return wait_for(predicate, seconds, lambda: f"{what}: {log.read_text()[-3000:]}")

            chart_cluster.apply(engine := _engine(place, replicas=2))
            jobs = place.path("/apis/batch/v1", "jobs", namespace=BUILDS)
            (job,) = see("a build", lambda: api.items(jobs))
            (container,) = job["spec"]["template"]["spec"]["containers"]
            environment = {e["name"]: e["value"] for e in container["env"]}
            request = BuildRequest.model_validate_json(environment[BUILD_REQUEST_VARIABLE])
            place.publish(request)
            pods = place.path("/api/v1", "pods", namespace=BUILDS)
            (pod,) = see("its pod", lambda: [p for p in api.items(pods) if _runs(p)])
            end_pod(api, BUILDS, pod["metadata"]["name"])
            see("Ready", lambda: place.ready().get("status") == "True")
            assert place.engine()["status"]["summary"] == {"engines": "1/1", "replicas": "2/2"}

            engine["spec"]["serving"] = {"replicas": 3}
            chart_cluster.apply(engine)
            deployment = place.path("/apis/apps/v1", "deployments")
            see("3 replicas", lambda: api.items(deployment)[0]["spec"]["replicas"] == 3)
            engine["spec"]["serving"] = {
                "autoscaling": {"maxReplicas": 4},
                "resources": {"requests": {"cpu": 1}},
            }
            chart_cluster.apply(engine)
            scalers = place.path("/apis/autoscaling/v2", "horizontalpodautoscalers")
            see("an autoscaler", lambda: api.items(scalers))
            engine["spec"]["serving"] = {"replicas": 1}
            chart_cluster.apply(engine)
            see("no autoscaler", lambda: not api.items(scalers))
            events = place.path("/apis/events.k8s.io/v1", "events")
            see("an Event", lambda: [e for e in api.items(events) if e["reason"] == "Serving"])

            chart_cluster.kubectl("delete", "lle", "chat", "--namespace", namespace)
            see("nothing to be left", lambda: not api.items(deployment))
        said = log.read_text()
        assert "forbidden" not in said.lower()
        assert '"level": "critical"' not in said


def _ensure_node(cluster: Cluster) -> None:
    """One on which a build's pod runs until it is told to end."""
    if not cluster.api.items("/api/v1/nodes"):
        cluster.fake_nodes(1, manual=True)


def _runs(pod: dict[str, Any]) -> bool:
    return bool(pod["status"].get("phase") == "Running")
