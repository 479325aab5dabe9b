"""The PodDisruptionBudget of one architecture: a drain takes its pods one after the other."""

from __future__ import annotations

from typing import Any

from llmengine.architecture import Architecture
from llmengine_operator.labels import Label
from llmengine_operator.observation import Engine
from llmengine_operator.resources.deployment import deployment_name, selector
from llmengine_operator.resources.pod import metadata, owner_reference


def disruption_budget(engine: Engine, architecture: Architecture) -> dict[str, Any]:
    """Also for a single pod, which a drain may then take: a budget that allows nothing would make
    every node with an engine undrainable.
    """
    meta = metadata(
        deployment_name(engine.name, architecture), engine.namespace, {Label.ENGINE: engine.name}
    )
    meta["ownerReferences"] = [owner_reference(engine)]
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": meta,
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector(engine.name, architecture)},
            # Pods that serve nothing protect nobody.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
