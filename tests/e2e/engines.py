"""LLMEngines as a test's user has them: applied by kubectl, and watched through the API."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.cluster.api import ApiError
from tests.cluster.node import NODE_IP
from tests.cluster.waiting import wait_for
from tests.demo.platform import BUILDS_NAMESPACE, RUNTIME, Platform

TEAMS = ("team-a", "team-b")
# Where a test may put a stand-in for the Hugging Face hub: the operator is told of it.
HUB_ADDRESS = (NODE_IP, 8123)
PATIENCE = 120.0

_KINDS = {
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "Service": "/api/v1/namespaces/{}/services",
    "Pod": "/api/v1/namespaces/{}/pods",
    "HorizontalPodAutoscaler": "/apis/autoscaling/v2/namespaces/{}/horizontalpodautoscalers",
}


@dataclass(frozen=True)
class Engine:
    """One LLMEngine."""

    platform: Platform
    namespace: str
    name: str

    @property
    def path(self) -> str:
        return f"/apis/llmengine.io/v1alpha1/namespaces/{self.namespace}/llmengines/{self.name}"

    def get(self) -> dict[str, Any]:
        return dict(self.platform.cluster.api.get(self.path))

    def status(self) -> dict[str, Any]:
        return dict(self.get().get("status", {}))

    def condition(self, type_: str) -> dict[str, str]:
        """Empty when the condition is not set, or speaks of an older generation."""
        engine = self.get()
        for condition in engine.get("status", {}).get("conditions", []):
            current = condition.get("observedGeneration") == engine["metadata"]["generation"]
            if condition["type"] == type_ and current:
                return dict(condition)
        return {}

    def edit(self, spec: Mapping[str, Any]) -> None:
        """Merge into the spec."""
        self.platform.cluster.api.merge(self.path, {"spec": spec})

    def annotate(self, **annotations: str) -> None:
        named = {f"llmengine.io/{key.replace('_', '-')}": v for key, v in annotations.items()}
        self.platform.cluster.api.merge(self.path, {"metadata": {"annotations": named}})

    def delete(self) -> None:
        """Delete it as kubectl does, and see that it is gone at once: it has no finalizer."""
        try:
            self.platform.cluster.api.request("DELETE", self.path)
        except ApiError as error:
            if error.status != 404:
                raise

    def wait(
        self, type_: str, status: str, reason: str = "", timeout: float = PATIENCE
    ) -> dict[str, str]:
        """The condition, once it has this status (and reason) for the current generation."""

        def there() -> dict[str, str]:
            condition = self.condition(type_)
            matches = condition.get("status") == status
            return condition if matches and reason in ("", condition["reason"]) else {}

        what = f"{type_}={status} {reason} of {self.namespace}/{self.name}"
        return wait_for(there, timeout, lambda: f"{what}: {json.dumps(self.status(), indent=1)}")

    def wait_ready(self, timeout: float = PATIENCE) -> None:
        """And, if it has pods, until clients get to one."""
        if self.wait("Ready", "True", timeout=timeout)["reason"] != "ScaledToZero":
            self.wait_forwarded()

    def wait_forwarded(self) -> None:
        self.platform.cluster.wait_forwarded(self.namespace, self.name, 8001)

    def wait_stalled(self, reason: str, timeout: float = PATIENCE) -> str:
        """The sentence of the Stalled condition."""
        return self.wait("Stalled", "True", reason, timeout)["message"]

    def row(self) -> dict[str, Any]:
        """The first row of status.engines."""
        return dict(self.status().get("engines", [{}])[0])

    @property
    def key(self) -> str:
        return str(wait_for(lambda: self.row().get("key"), 20, "a key in status"))

    def jobs(self) -> list[dict[str, Any]]:
        """Build Jobs of the engine's key, wherever they run."""
        key = self.key
        return [
            job
            for namespace in (BUILDS_NAMESPACE, self.namespace)
            for job in self.platform.cluster.api.items(_KINDS["Job"].format(namespace))
            if job["metadata"].get("annotations", {}).get("llmengine.io/engine-key") == key
        ]

    def children(self, *kinds: str) -> list[str]:
        """Kind/name of what the engine owns in its namespace."""
        found = []
        for kind in kinds or ("Deployment", "Service", "HorizontalPodAutoscaler"):
            for obj in self.platform.cluster.api.items(_KINDS[kind].format(self.namespace)):
                if obj["metadata"].get("labels", {}).get("llmengine.io/engine") == self.name:
                    found.append(f"{kind}/{obj['metadata']['name']}")
        return found

    def pods(self) -> list[dict[str, Any]]:
        """Server pods that are not on their way out."""
        selector = f"?labelSelector=llmengine.io%2Fengine%3D{self.name}"
        path = _KINDS["Pod"].format(self.namespace) + selector
        pods = self.platform.cluster.api.items(path)
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    @property
    def host(self) -> str:
        """The name of the Service over all architectures, inside the cluster's network."""
        return f"{self.name}.{self.namespace}.svc.cluster.local"


class Engines:
    """The engines of one test. `revision` differs from that of every other test."""

    def __init__(self, platform: Platform, test: str) -> None:
        self.platform = platform
        self.revision = f"r{hashlib.sha256(f'{test}{time.time()}'.encode()).hexdigest()[:12]}"
        self._made: list[Engine] = []

    def manifest(
        self, name: str, uri: str, *, namespace: str = TEAMS[0], **spec: Any
    ) -> dict[str, Any]:
        model = {"uri": uri, "revision": self.revision, **spec.pop("model", {})}
        return {
            "apiVersion": "llmengine.io/v1alpha1",
            "kind": "LLMEngine",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "runtime": RUNTIME,
                "model": {key: value for key, value in model.items() if value is not None},
                "engine": {"maxBatchSize": 4, "maxSequenceLength": 128},
                "serving": {"terminationGracePeriodSeconds": 15},
                **spec,
            },
        }

    def apply(self, name: str, uri: str, *, namespace: str = TEAMS[0], **spec: Any) -> Engine:
        """Apply one engine of a model."""
        return self.apply_all(self.manifest(name, uri, namespace=namespace, **spec))[0]

    def apply_all(self, *manifests: Mapping[str, Any]) -> list[Engine]:
        """Apply in one go."""
        self.platform.cluster.apply(*manifests)
        made = [
            Engine(self.platform, m["metadata"]["namespace"], m["metadata"]["name"])
            for m in manifests
        ]
        self._made += made
        return made

    def delete_all(self) -> None:
        """Delete what is left, and wait until nothing of it takes up the node."""
        for engine in self._made:
            engine.delete()
        wait_for(
            lambda: not any(engine.children("Deployment", "Pod") for engine in self._made),
            PATIENCE,
            "the engines' pods to end",
        )


def until(predicate: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """Wait for a condition of the cluster."""
    return wait_for(predicate, timeout, what)
