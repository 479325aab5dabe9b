"""What an autoscaler says of itself, where it cannot do its work. Pure."""

from __future__ import annotations

from llmengine.architecture import Architecture
from llmengine_operator.observation import Found, Observation
from llmengine_operator.resources.deployment import deployment_name

# Somebody has set the Deployment to no pods: the autoscaler leaves it so, as it was told.
_SWITCHED_OFF = "ScalingDisabled"


def cannot_scale(observation: Observation, architecture: Architecture) -> str:
    """Why the number of pods of an autoscaled engine stays as it is, or nothing.

    By the autoscaler's own reason and not by its message, which may be another at every attempt.
    """
    engine = observation.engine
    if engine.spec.serving.autoscaling is None:
        return ""
    name = deployment_name(engine.name, architecture)
    child = observation.children.get(("HorizontalPodAutoscaler", name))
    if not isinstance(child, Found):
        return ""
    for condition in child.value.get("status", {}).get("conditions", []):
        if condition["type"] not in ("AbleToScale", "ScalingActive"):
            continue
        if condition["status"] == "False" and condition["reason"] != _SWITCHED_OFF:
            return (
                f"the autoscaler cannot scale {name} ({condition['reason']}):"
                f' "kubectl describe hpa {name}" says why'
            )
    return ""


def undecided(observation: Observation) -> bool:
    """Whether an autoscaler that was made has not been heard of."""
    return observation.engine.spec.serving.autoscaling is not None and any(
        kind == "HorizontalPodAutoscaler"
        and isinstance(child, Found)
        and not child.value.get("status", {}).get("conditions")
        for (kind, _), child in observation.children.items()
    )
