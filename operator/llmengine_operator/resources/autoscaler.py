"""The HorizontalPodAutoscaler of one architecture's Deployment."""

from __future__ import annotations

from typing import Any

from llmengine.api.v1alpha1 import Autoscaling
from llmengine.architecture import Architecture
from llmengine_operator.labels import Label
from llmengine_operator.observation import Engine
from llmengine_operator.resources.deployment import deployment_name
from llmengine_operator.resources.pod import metadata, owner_reference


def autoscaler(engine: Engine, options: Autoscaling, architecture: Architecture) -> dict[str, Any]:
    """Scales on CPU utilization, as a percentage of what the pods request."""
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
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {
                        "name": "cpu",
                        "target": {
                            "type": "Utilization",
                            "averageUtilization": options.target_cpu_utilization,
                        },
                    },
                }
            ],
        },
    }
