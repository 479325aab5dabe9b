"""The HorizontalPodAutoscaler of one architecture's Deployment, which alone sets its replicas."""

from __future__ import annotations

from typing import Any

from llmengine.api.v1alpha1 import Autoscaling
from llmengine.architecture import Architecture
from llmengine_operator.labels import Label
from llmengine_operator.observation import Engine
from llmengine_operator.resources.deployment import deployment_name
from llmengine_operator.resources.pod import metadata, owner_reference

# Exported by servers (`llmengine_server.metrics`), passed on by a custom metrics adapter.
REQUESTS_PER_SLOT = "llmengine_requests_per_slot"
REQUESTS_WAITING_PER_SLOT = "llmengine_requests_waiting_per_slot"


def autoscaler(engine: Engine, options: Autoscaling, architecture: Architecture) -> dict[str, Any]:
    """Scales on every target of `options`: the one that takes the most pods counts."""
    name = deployment_name(engine.name, architecture)
    meta = metadata(name, engine.namespace, {Label.ENGINE: engine.name})
    meta["ownerReferences"] = [owner_reference(engine)]
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": meta,
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": options.min_replicas,
            "maxReplicas": options.max_replicas,
            "metrics": _metrics(options),
        },
    }


def _metrics(options: Autoscaling) -> list[dict[str, Any]]:
    metrics: list[dict[str, Any]] = []
    if (utilization := options.cpu_utilization) is not None:
        target = {"type": "Utilization", "averageUtilization": utilization}
        metrics.append({"type": "Resource", "resource": {"name": "cpu", "target": target}})
    for name, value in (
        (REQUESTS_PER_SLOT, options.target_requests_per_slot),
        (REQUESTS_WAITING_PER_SLOT, options.target_requests_waiting_per_slot),
    ):
        if value is not None:
            mean = {"type": "AverageValue", "averageValue": str(value)}
            metrics.append({"type": "Pods", "pods": {"metric": {"name": name}, "target": mean}})
    return metrics
