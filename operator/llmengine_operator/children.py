"""The objects that an engine owns: what ought to be, and what has to be done for it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from llmengine.api.v1alpha1 import EngineRuntimeSpec, ServingStatus
from llmengine.architecture import Architecture
from llmengine_operator.config import Config
from llmengine_operator.decision import Action, Apply, ApplyDeployment, Delete, Scale
from llmengine_operator.labels import MANAGED, Label
from llmengine_operator.observation import Engine, Found, KubeObject, Observation
from llmengine_operator.reasons import Reason
from llmengine_operator.resources.autoscaler import autoscaler
from llmengine_operator.resources.deployment import (
    Serving,
    deployment,
    deployment_name,
    grace_period,
)
from llmengine_operator.resources.disruption_budget import disruption_budget
from llmengine_operator.resources.service import services
from llmengine_operator.rollout import pods_of
from llmengine_operator.strategy import Strategy, strategy
from llmengine_operator.targets import UNWATCHED_POLL, Problem

_SERVE = ("Deployment", "Service", "PodDisruptionBudget")
_OF_ONE_ARCHITECTURE = (*_SERVE, "HorizontalPodAutoscaler")
# As soon as the garbage collector has come round.
LEFTOVER_POLL = timedelta(seconds=2)


def desired(
    observation: Observation,
    runtime: EngineRuntimeSpec,
    rows: Iterable[ServingStatus],
    config: Config,
) -> list[Apply | ApplyDeployment]:
    """Every object that ought to be. Services stand from the first pass on."""
    engine = observation.engine
    options = engine.spec.serving
    scaled = options.autoscaling
    first = scaled.min_replicas if scaled else 1
    initial = first if options.replicas is None else options.replicas
    objects: list[Apply | ApplyDeployment] = []
    architectures: list[Architecture] = []
    for row in rows:
        architecture = Architecture.parse(row.architecture)
        architectures.append(architecture)
        serving = Serving(
            architecture=architecture,
            key=row.key,
            manifest_digest=row.manifest_digest,
            image=row.image,
            scope_namespace=row.scope_namespace,
            size_bytes=row.size_bytes,
            grace_seconds=row.termination_grace_period_seconds,
            gpu_memory_bytes=row.gpu_memory_bytes,
        )
        how = _strategy(observation, serving, config)
        objects.append(ApplyDeployment(deployment(engine, runtime, serving, config, how), initial))
        objects.append(Apply(disruption_budget(engine, architecture)))
        if scaled:
            objects.append(Apply(autoscaler(engine, scaled, architecture)))
    objects.extend(Apply(service) for service in services(engine, architectures))
    return objects


def _strategy(observation: Observation, serving: Serving, config: Config) -> Strategy:
    engine, architecture = observation.engine, serving.architecture
    child = observation.children.get(("Deployment", deployment_name(engine.name, architecture)))
    return strategy(
        engine.spec.serving.rollout,
        child.value if isinstance(child, Found) else None,
        pods_of(observation.pods, architecture.slug),
        observation.nodes,
        grace_seconds=grace_period(engine, serving),
        min_ready_seconds=config.rollouts.min_ready_seconds,
    )


def actions(
    observation: Observation,
    wanted: Iterable[Apply | ApplyDeployment],
    architectures: Iterable[Architecture],
    retiring: Iterable[ServingStatus],
) -> Iterable[Action]:
    """Apply what is wanted, and delete what is ours and neither wanted nor retiring.

    A Deployment of one of the wanted `architectures` is never deleted: without a status, as an
    engine has it that was restored from a backup, nobody knows what it serves, but it does.
    """
    engine, children = observation.engine, observation.children
    replicas = engine.spec.serving.replicas
    keep = {
        (kind, deployment_name(engine.name, architecture))
        for kind in _SERVE
        for architecture in architectures
    }
    for row in retiring:
        name = deployment_name(engine.name, Architecture.parse(row.architecture))
        keep |= {(kind, name) for kind in _OF_ONE_ARCHITECTURE}
    for action in wanted:
        identity = (action.object["kind"], action.object["metadata"]["name"])
        keep.add(identity)
        yield action
        child = children.get(identity)
        if not isinstance(action, ApplyDeployment) or not isinstance(child, Found):
            continue
        if replicas is not None and child.value["spec"].get("replicas") != replicas:
            yield Scale(engine.namespace, identity[1], replicas)
    for (kind, name), child in children.items():
        if (kind, name) not in keep and isinstance(child, Found) and _owned(child.value, engine):
            yield Delete(kind, engine.namespace, name, child.value["metadata"]["uid"])


def taken_name(
    observation: Observation, wanted: Iterable[Apply | ApplyDeployment]
) -> Problem | None:
    """An object of a name that we need, but somebody else's, is not taken over."""
    engine = observation.engine
    for action in wanted:
        kind, name = action.object["kind"], action.object["metadata"]["name"]
        child = observation.children.get((kind, name))
        if not isinstance(child, Found):
            continue
        if _owned(child.value, engine) or _orphaned(child.value, engine):
            continue
        place = f"{kind} {engine.namespace}/{name}"
        if _leftover(child.value, engine):
            return Problem(
                Reason.NAME_TAKEN,
                f"{place} of a deleted engine of this name is not gone yet",
                stalled=False,
                look_again=LEFTOVER_POLL,
            )
        return Problem(
            Reason.NAME_TAKEN,
            f"{place} exists and does not belong to this engine: rename the engine, or delete"
            " that object",
            look_again=UNWATCHED_POLL,
        )
    return None


def _owned(obj: KubeObject, engine: Engine) -> bool:
    references = obj["metadata"].get("ownerReferences", [])
    return any(reference["uid"] == engine.uid for reference in references)


def _leftover(obj: KubeObject, engine: Engine) -> bool:
    """Of an engine of this name that was deleted a moment ago: the garbage collector comes."""
    references = obj["metadata"].get("ownerReferences", [])
    return any(
        (reference["kind"], reference["name"]) == ("LLMEngine", engine.name)
        for reference in references
    )


def _orphaned(obj: KubeObject, engine: Engine) -> bool:
    """Left by an engine of this name that was deleted with --cascade=orphan: taken back."""
    labels = obj["metadata"].get("labels", {})
    ours = labels.get(Label.ENGINE) == engine.name and labels.items() >= MANAGED.items()
    return ours and not obj["metadata"].get("ownerReferences")
