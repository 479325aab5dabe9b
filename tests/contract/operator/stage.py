"""One test's part of a cluster: namespaces, a bucket, a runtime, and an operator's rights."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llmengine.artifact import Layout
from llmengine_operator.config import Config
from llmengine_operator.kinds import (
    DEPLOYMENT,
    EVENT,
    HPA,
    JOB,
    LLMENGINE,
    NODE,
    PDB,
    POD,
    PVC,
    RUNTIME,
    SERVICE,
    Kind,
)
from llmengine_operator.kube import KubeClient
from llmengine_operator.kube_access import Access
from tests.cluster.api import Api, ApiError
from tests.cluster.cluster import Cluster
from tests.cluster.waiting import wait_for
from tests.contract.store.place import Place

MODEL = "s3://models/smollm2"
# Two cores are shared with everything else that a test run does.
PATIENCE = 60.0
CHILDREN = (JOB, DEPLOYMENT, SERVICE, HPA, PDB)


@dataclass
class Stage:
    """Namespaces `team` and `other` for engines and `builds` for Jobs, all of this test alone."""

    cluster: Cluster
    place: Place
    identity: Path
    runtime: str
    spaces: dict[str, str] = field(default_factory=dict)

    @classmethod
    def new(
        cls,
        cluster: Cluster,
        place: Place,
        identity: Path,
        roles: tuple[str, ...] = ("team", "other", "builds"),
    ) -> Stage:
        suffix = uuid.uuid4().hex[:6]
        stage = cls(cluster, place, identity, runtime=f"onnxruntime-{suffix}")
        for role in roles:
            stage.spaces[role] = f"{role}-{suffix}"
            stage.api.request(
                "POST", "/api/v1/namespaces", {"metadata": {"name": stage.spaces[role]}}
            )
        stage.set_image("v1")
        return stage

    def close(self) -> None:
        """Namespaces end slowly and by themselves."""
        self.cordon(False)
        self.remove_runtime()
        for engine in self.engines():
            meta = engine["metadata"]
            self.remove(LLMENGINE, meta["name"], namespace=meta["namespace"])
        for name in self.spaces.values():
            self.api.request("DELETE", f"/api/v1/namespaces/{name}")

    @property
    def api(self) -> Api:
        return self.cluster.api

    @property
    def tenants(self) -> list[str]:
        """The namespaces that engines live in."""
        return [name for role, name in self.spaces.items() if role != "builds"]

    @property
    def team(self) -> str:
        return self.spaces["team"]

    @property
    def other(self) -> str:
        return self.spaces["other"]

    @property
    def builds(self) -> str:
        return self.spaces["builds"]

    def config(self, **sections: Any) -> Config:
        """An operator that serves this stage and looks at nothing else."""
        place = self.place.location
        mine: dict[str, Any] = {
            "namespace": "llmengine-system",
            "store": {"endpoint": place.endpoint, "bucket": place.bucket, "prefix": place.prefix},
            "models": {
                "s3": [{"name": "main", "endpoint": place.endpoint, "secretName": "model-reader"}],
                "shared": ["s3://models/"],
            },
            "builds": {"namespace": self.builds},
            "rollouts": {"minReadySeconds": 1},
            "watchNamespaces": self.tenants,
            "leaderElection": {"enabled": False},
        }
        for name, section in sections.items():
            whole = isinstance(section, Mapping) and isinstance(mine.get(name), Mapping)
            mine[name] = {**mine[name], **section} if whole else section
        return Config.model_validate(mine)

    def access(self, connections: int = 2) -> Access:
        """The API server, with the rights of the operator and no others."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBECONFIG", str(self.identity))
            return Access(connections=connections)

    def connect(self) -> KubeClient:
        return KubeClient(self.access(connections=8))

    # What a user or an admin does.

    def set_image(self, tag: str, **spec: Any) -> None:
        """Make or edit the runtime."""
        body = {
            "apiVersion": RUNTIME.api_version,
            "kind": RUNTIME.kind,
            "metadata": {"name": self.runtime},
            "spec": {
                "backend": "onnxruntime",
                "version": "1.32.0",
                "accelerator": "cpu",
                "image": {"repository": "registry.test/engine", "tag": tag},
                **spec,
            },
        }
        path = f"{RUNTIME.path(None, self.runtime)}?fieldManager=admin&force=true"
        self.api.request("PATCH", path, body, "application/apply-patch+yaml")

    def manifest(
        self, name: str = "chat", *, namespace: str | None = None, revision: str = "v1", **spec: Any
    ) -> dict[str, Any]:
        """An LLMEngine; `spec` replaces or adds whole sections of its spec."""
        return {
            "apiVersion": LLMENGINE.api_version,
            "kind": LLMENGINE.kind,
            "metadata": {"name": name, "namespace": namespace or self.team},
            "spec": {
                "runtime": self.runtime,
                "model": {"uri": MODEL, "revision": revision},
                **spec,
            },
        }

    def create(self, name: str = "chat", **more: Any) -> dict[str, Any]:
        """Create an LLMEngine; see manifest()."""
        body = self.manifest(name, **more)
        path = LLMENGINE.path(body["metadata"]["namespace"])
        return dict(self.api.request("POST", path, body))

    def edit(
        self, name: str = "chat", *, namespace: str | None = None, **spec: Any
    ) -> dict[str, Any]:
        """Merge into an LLMEngine's spec; None removes a field."""
        path = LLMENGINE.path(namespace or self.team, name)
        return dict(self.api.merge(path, {"spec": spec}))

    def ask_again(self, name: str = "chat", *, at: str, namespace: str | None = None) -> None:
        """Set the annotation that asks for another try."""
        path = LLMENGINE.path(namespace or self.team, name)
        self.api.merge(path, {"metadata": {"annotations": {"llmengine.io/requested-at": at}}})

    def remove(
        self, kind: Kind, name: str, *, namespace: str | None = "", propagation: str = "Background"
    ) -> None:
        """Delete an object; that there is none is no error. A namespace of "" is the team's."""
        path = kind.path(self.team if namespace == "" else namespace, name)
        try:
            self.api.request("DELETE", path, {"propagationPolicy": propagation})
        except ApiError as error:
            if error.status != 404:
                raise

    def make_claim(self, name: str) -> None:
        body = {
            "metadata": {"name": name},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}},
            },
        }
        self.api.request("POST", PVC.path(self.team), body)

    def cordon(self, closed: bool) -> None:
        """Whether nodes take no more pods: those that are made wait for one."""
        for node in self.items(NODE, None):
            path = NODE.path(None, node["metadata"]["name"])
            self.api.merge(path, {"spec": {"unschedulable": closed}})

    def remove_runtime(self) -> None:
        self.remove(RUNTIME, self.runtime, namespace=None)

    def remove_job(self, job: Mapping[str, Any]) -> None:
        self.remove(JOB, job["metadata"]["name"], namespace=job["metadata"]["namespace"])

    def delete_manifest(self, key: str) -> None:
        """As the messages about a damaged engine say."""
        name = Layout(self.place.location.prefix).manifest(key)
        bucket = self.place.location.bucket
        self.place.server.client().delete_object(Bucket=bucket, Key=name)

    # What they see.

    def get(self, kind: Kind, name: str, namespace: str | None = "") -> dict[str, Any] | None:
        """An object, or None. A namespace of "" is the team's."""
        try:
            return dict(self.api.get(kind.path(self.team if namespace == "" else namespace, name)))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def items(self, kind: Kind, namespace: str | None = "", labels: str = "") -> list[Any]:
        query = f"?labelSelector={labels}" if labels else ""
        return self.api.items(kind.path(self.team if namespace == "" else namespace) + query)

    def children(self, namespace: str = "") -> dict[str, dict[str, Any]]:
        """Deployments, Services, autoscalers and budgets, each by its kind and name."""
        return {
            f"{kind}/{item['metadata']['name']}": item
            for kind in (DEPLOYMENT, SERVICE, HPA, PDB)
            for item in self.items(kind, namespace)
        }

    def events(self, name: str = "chat") -> list[dict[str, Any]]:
        """What was announced about an engine, the oldest first."""
        about = [e for e in self.items(EVENT) if e["regarding"]["name"] == name]
        engines = [e for e in about if e["regarding"]["kind"] == LLMENGINE.kind]
        return sorted(engines, key=lambda event: str(event["eventTime"]))

    def engines(self) -> list[dict[str, Any]]:
        return [e for place in self.tenants for e in self.items(LLMENGINE, place)]

    def status(self, name: str = "chat", namespace: str | None = None) -> dict[str, Any]:
        engine = self.get(LLMENGINE, name, namespace or self.team)
        assert engine is not None, f"there is no LLMEngine {name}"
        return dict(engine.get("status", {}))

    def conditions(
        self, name: str = "chat", namespace: str | None = None
    ) -> dict[str, tuple[str, str]]:
        """Status and reason of each condition by its type."""
        found = self.status(name, namespace).get("conditions", [])
        return {c["type"]: (c["status"], c["reason"]) for c in found}

    def message(self, name: str = "chat", type_: str = "Ready") -> str:
        found = self.status(name).get("conditions", [])
        return next((str(c["message"]) for c in found if c["type"] == type_), "")

    def jobs(self, namespace: str | None = None) -> list[dict[str, Any]]:
        """Build Jobs, the oldest first; those of the builds namespace unless another is named."""
        found = self.items(JOB, namespace or self.builds)
        return sorted(found, key=lambda j: (j["metadata"]["creationTimestamp"], _attempt(j)))

    def left(self) -> list[str]:
        """Everything of ours that exists beside engines and runtimes."""
        return [
            f"{kind}/{item['metadata']['name']}"
            for kind in CHILDREN
            for space in self.spaces.values()
            for item in self.items(kind, space)
            if "deletionTimestamp" not in item["metadata"]
        ]

    # Waiting for it.

    def until(self, what: str, predicate: Any, *, interval: float = 0.05) -> Any:
        """The first truthy value of the predicate; a failure shows all engines and Jobs."""
        return wait_for(
            predicate, PATIENCE, lambda: f"{what}\n{self._picture()}", interval=interval
        )

    def until_reason(
        self, reason: str, name: str = "chat", *, namespace: str | None = None
    ) -> dict[str, Any]:
        """Waits until Ready has this reason for the current generation. Returns the status."""

        def seen() -> dict[str, Any] | None:
            engine = self.get(LLMENGINE, name, namespace or self.team)
            assert engine is not None
            status = dict(engine.get("status", {}))
            current = status.get("observedGeneration") == engine["metadata"]["generation"]
            # Of the same answer: between two of them the engine goes on.
            ready = {c["type"]: c["reason"] for c in status.get("conditions", [])}.get("Ready")
            return status if current and ready == reason else None

        return dict(self.until(f"{name} to be {reason}", seen))

    def until_job(self, count: int = 1, namespace: str | None = None) -> dict[str, Any]:
        """Waits for so many build Jobs; the newest."""

        def seen() -> dict[str, Any] | None:
            jobs = self.jobs(namespace)
            return jobs[-1] if len(jobs) == count else None

        return dict(self.until(f"{count} Jobs", seen))

    def job(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """A Job as it is now."""
        found = self.get(JOB, job["metadata"]["name"], job["metadata"]["namespace"])
        assert found is not None
        return found

    def until_attempt(self, number: int, namespace: str | None = None) -> dict[str, Any]:
        """Waits for the Job of this try."""

        def seen() -> dict[str, Any] | None:
            return next((j for j in self.jobs(namespace) if _attempt(j) == number), None)

        return dict(self.until(f"try {number}", seen))

    def until_gone(self) -> None:
        """Waits until nothing of ours is left."""
        self.until("nothing to be left", lambda: self.left() == [])

    def _picture(self) -> str:
        lines = []
        for engine in self.engines():
            meta = engine["metadata"]
            lines.append(f"LLMEngine {meta['namespace']}/{meta['name']}: {engine.get('status')}")
        for space in self.spaces.values():
            for job in self.items(JOB, space):
                lines.append(f"Job {space}/{job['metadata']['name']}: {job.get('status')}")
            for pod in self.items(POD, space):
                state = {k: pod["status"].get(k) for k in ("phase", "reason", "containerStatuses")}
                lines.append(f"Pod {space}/{pod['metadata']['name']}: {state}")
        return "\n".join(lines)


def _attempt(job: Mapping[str, Any]) -> int:
    return int(job["metadata"].get("annotations", {}).get("llmengine.io/attempt", "0"))
