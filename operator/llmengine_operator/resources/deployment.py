"""The Deployment that serves one architecture of an engine, rendered from `status.serving`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmengine.api.v1alpha1 import EngineRuntimeSpec
from llmengine.architecture import Architecture
from llmengine.requests import SERVE_REQUEST_VARIABLE, ServeRequest
from llmengine_operator.config import Config
from llmengine_operator.drain import DEFAULT_SECONDS, PRE_STOP_SECONDS
from llmengine_operator.labels import Annotation, Label, key_label
from llmengine_operator.observation import Engine
from llmengine_operator.resources.pod import (
    container_security,
    env_from,
    environment,
    metadata,
    owner_reference,
    pod_spec,
    queued,
    resources_or,
    with_gpu,
)
from llmengine_operator.strategy import Strategy

HTTP, GRPC, METRICS = 8000, 8001, 8002
# An engine's disk: the engine, and room for a file that is fetched again.
DISK_FACTOR = 1.2
_MIB = 1024 * 1024

SERVER = "server"
ENGINE, MODELS, RUN = "/engine", "/models", "/run/llmengine"


@dataclass(frozen=True)
class Serving:
    """What one Deployment serves. `grace_seconds`: derived for the engine, if it could be;
    `gpu_memory_bytes`: what its GPU must have, if that is known."""

    architecture: Architecture
    key: str
    manifest_digest: str
    image: str
    scope_namespace: str
    size_bytes: int
    grace_seconds: int | None = None
    gpu_memory_bytes: int | None = None


def deployment_name(engine_name: str, architecture: Architecture) -> str:
    return f"{engine_name}-{architecture.slug}"


def selector(engine_name: str, architecture: Architecture) -> dict[str, str]:
    """Immutable in a Deployment, so it is complete from day one."""
    return {
        Label.ENGINE: engine_name,
        Label.ARCHITECTURE: architecture.slug,
        Label.TRACK: "stable",
    }


def deployment(
    engine: Engine,
    runtime: EngineRuntimeSpec,
    serving: Serving,
    config: Config,
    strategy: Strategy,
) -> dict[str, Any]:
    """The Deployment without `spec.replicas`, which is set at creation and through /scale."""
    labels = selector(engine.name, serving.architecture)
    options = engine.spec.serving
    defaults = runtime.pod_defaults
    meta = metadata(deployment_name(engine.name, serving.architecture), engine.namespace, labels)
    meta["ownerReferences"] = [owner_reference(engine)]
    meta["annotations"] = {Annotation.KEY: serving.key}
    template_labels = {**defaults.labels, **meta["labels"], Label.KEY: key_label(serving.key)}
    meta["labels"] |= queued(engine)
    pod = pod_spec(
        runtime,
        serving.architecture,
        node_selector=options.node_selector,
        tolerations=options.tolerations,
        priority_class_name=options.priority_class_name,
        gpu_memory=serving.gpu_memory_bytes or 0,
    )
    pod |= {
        # One node's end takes as few of them as can be.
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": labels},
                "matchLabelKeys": ["pod-template-hash"],
            }
        ],
        "terminationGracePeriodSeconds": grace_period(engine, serving),
        "initContainers": [_fetch(engine, runtime, serving, config)],
        "containers": [_server(engine, runtime, serving)],
        "volumes": [
            {"name": "engine", "emptyDir": {}},
            {"name": "models", "emptyDir": {}},
            {"name": "run", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta,
        "spec": {
            "selector": {"matchLabels": labels},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {
                    "maxUnavailable": strategy.max_unavailable,
                    "maxSurge": strategy.max_surge,
                },
            },
            "progressDeadlineSeconds": strategy.progress_deadline_seconds,
            # The API server leaves a zero out, which would look like a difference for ever.
            **({"minReadySeconds": ready} if (ready := strategy.min_ready_seconds) else {}),
            "template": {
                "metadata": {
                    "labels": {**template_labels, "app.kubernetes.io/component": "server"},
                    "annotations": {**defaults.annotations, Annotation.KEY: serving.key},
                },
                "spec": pod,
            },
        },
    }


def _fetch(
    engine: Engine, runtime: EngineRuntimeSpec, serving: Serving, config: Config
) -> dict[str, Any]:
    request = ServeRequest(
        key=serving.key,
        scope_namespace=serving.scope_namespace,
        manifest_digest=serving.manifest_digest,
        model_name=engine.spec.serving.model_name or engine.name,
        store=config.store.location,
    )
    return {
        "name": "fetch",
        "image": serving.image,
        "imagePullPolicy": runtime.image.pull_policy,
        "command": ["llmengine-fetch"],
        "env": environment(
            runtime.pod_defaults,
            **{SERVE_REQUEST_VARIABLE: request.model_dump_json(by_alias=True)},
        ),
        "envFrom": env_from("STORE_", config.store.serve_secret_name),
        "resources": _with_disk(engine, runtime, serving),
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "engine", "mountPath": ENGINE},
            {"name": "models", "mountPath": MODELS},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the container's own
        ],
    }


def _server(engine: Engine, runtime: EngineRuntimeSpec, serving: Serving) -> dict[str, Any]:
    return {
        "name": SERVER,
        "image": serving.image,
        "imagePullPolicy": runtime.image.pull_policy,
        "command": ["llmengine-serve"],
        "env": environment(
            runtime.pod_defaults,
            # The supervisor ends Triton within this time, so a second is enough to spare.
            LLMENGINE_EXIT_TIMEOUT=str(grace_period(engine, serving) - PRE_STOP_SECONDS - 1),
        ),
        "ports": [
            {"name": "http", "containerPort": HTTP, "protocol": "TCP"},
            {"name": "grpc", "containerPort": GRPC, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS, "protocol": "TCP"},
        ],
        "startupProbe": _ready_probe(period=1, failures=600),
        "readinessProbe": _ready_probe(period=5, failures=2),
        "livenessProbe": {
            "exec": {"command": ["llmengine-alive"]},
            "periodSeconds": 5,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
            # A loop that hangs finishes no generation: nothing is won by waiting for it.
            "terminationGracePeriodSeconds": 10,
        },
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}},
        "resources": with_gpu(_with_disk(engine, runtime, serving), serving.architecture),
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "engine", "mountPath": ENGINE, "readOnly": True},
            {"name": "models", "mountPath": MODELS, "readOnly": True},
            {"name": "run", "mountPath": RUN},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the container's own
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - Triton's shared memory
        ],
    }


def grace_period(engine: Engine, serving: Serving) -> int:
    """Seconds from a pod's notice to its end. The user's word wins."""
    chosen = engine.spec.serving.termination_grace_period_seconds
    return chosen or serving.grace_seconds or DEFAULT_SECONDS


def _ready_probe(*, period: int, failures: int) -> dict[str, Any]:
    return {
        "exec": {"command": ["llmengine-alive", "--ready"]},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _with_disk(engine: Engine, runtime: EngineRuntimeSpec, serving: Serving) -> dict[str, Any]:
    resources = resources_or(engine.spec.serving.resources, runtime.pod_defaults.serving_resources)
    disk = f"{int(serving.size_bytes * DISK_FACTOR) // _MIB + 1}Mi"
    requests = {"ephemeral-storage": disk, **resources.get("requests", {})}
    return {**resources, "requests": requests}
