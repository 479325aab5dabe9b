"""The Job that compiles one engine on a node of its architecture. Created, never applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmengine.api.v1alpha1 import Scratch
from llmengine.key import resolve_dtype
from llmengine.quantity import whole_bytes
from llmengine.requests import BUILD_REQUEST_VARIABLE, BuildRequest
from llmengine_operator.config import Config
from llmengine_operator.labels import MANAGED, Annotation, Label, key_label
from llmengine_operator.observation import Engine, Runtime
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
from llmengine_operator.targets import Target, claim_name, model_endpoint

KEEP_SECONDS = 24 * 3600
BUILD = "build"
SCRATCH = "/scratch"
MODEL = "/model"


@dataclass(frozen=True)
class Order:
    """One build to be made: for whom, of what, and which try it is."""

    engine: Engine
    runtime: Runtime
    target: Target
    options: str
    number: int
    tries_left: int
    request: str = ""


def build_namespace(engine: Engine, target: Target, config: Config) -> str:
    """Engines of the whole cluster are built in one place, those with a scope in their own."""
    return config.builds.namespace if target.scope.is_cluster else engine.namespace


def job_name(key: str, number: int) -> str:
    return f"build-{key[:20]}-{number}"


def build_job(order: Order, config: Config) -> dict[str, Any]:
    """The Job. It carries the key's prefix as a label and everything else as annotations."""
    engine, target = order.engine, order.target
    build = engine.spec.build
    labels = {
        Label.KEY: key_label(target.key),
        Label.ARCHITECTURE: target.architecture.slug,
        "app.kubernetes.io/component": "build",
    }
    annotations: dict[str, str] = {
        Annotation.KEY: target.key,
        Annotation.ARCHITECTURE: str(target.architecture),
        Annotation.ATTEMPT: str(order.number),
        Annotation.TRIES_LEFT: str(order.tries_left),
        Annotation.OPTIONS: order.options,
        Annotation.REQUESTED_BY: f"{engine.namespace}/{engine.name}",
    }
    if order.request:
        annotations[Annotation.REQUEST] = order.request
    namespace = build_namespace(engine, target, config)
    meta = metadata(job_name(target.key, order.number), namespace, labels, annotations)
    # Not on its pod: Kueue would take that for a second workload.
    meta["labels"] |= queued(engine)
    if not target.scope.is_cluster:
        meta["ownerReferences"] = [owner_reference(engine, controller=False)]
    defaults = order.runtime.spec.pod_defaults
    pod_meta: dict[str, Any] = {
        "labels": {**defaults.labels, **labels, **MANAGED},
        "annotations": {**defaults.annotations, Annotation.KEY: target.key},
    }
    pod = pod_spec(
        order.runtime.spec,
        target.architecture,
        node_selector=build.node_selector,
        tolerations=build.tolerations,
        priority_class_name=build.priority_class_name or config.builds.priority_class_name,
    )
    pod |= {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": build.active_deadline_seconds,
        "terminationGracePeriodSeconds": 10,
        "containers": [_container(order, config, f"{namespace}/{meta['name']}")],
        "volumes": _volumes(order),
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": meta,
        "spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": KEEP_SECONDS,
            # A drained node ends no attempt: the pod is made again elsewhere.
            "podFailurePolicy": {
                "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]
            },
            "template": {"metadata": pod_meta, "spec": pod},
        },
    }


def build_request(order: Order, config: Config, job: str) -> BuildRequest:
    """What the builder is told; credentials come beside it."""
    engine, target = order.engine, order.target
    options = engine.spec.engine
    endpoint = model_endpoint(engine.spec.model.uri, config)
    return BuildRequest(
        key=target.key,
        factors=target.factors,
        scope_namespace=target.scope.namespace,
        backend=order.runtime.spec.backend,
        backend_version=order.runtime.spec.version,
        architecture=str(target.architecture),
        uri=engine.spec.model.uri,
        revision=engine.spec.model.revision,
        dtype=resolve_dtype(options.dtype, target.architecture),
        quantization=options.quantization,
        max_batch_size=options.max_batch_size,
        max_sequence_length=options.max_sequence_length,
        max_batch_tokens=options.max_batch_tokens,
        store=config.store.location,
        model_endpoint=endpoint.location if endpoint else None,
        hf_endpoint=config.models.hf_endpoint,
        job=job,
        scratch_bytes=_scratch_bytes(engine.spec.build.scratch),
    )


def _container(order: Order, config: Config, job: str) -> dict[str, Any]:
    runtime, engine = order.runtime.spec, order.engine
    store_secret = (
        config.store.build_secret_name
        if order.target.scope.is_cluster
        else config.store.scoped_build_secret_name
    )
    mounts: list[dict[str, Any]] = [
        {"name": "scratch", "mountPath": SCRATCH},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the container's own
    ]
    if claim_name(engine.spec.model.uri):
        mounts.append({"name": "model", "mountPath": MODEL, "readOnly": True})
    return {
        "name": BUILD,
        "image": runtime.image.reference,
        "imagePullPolicy": runtime.image.pull_policy,
        "command": ["llmengine-build"],
        "env": environment(
            runtime.pod_defaults,
            **{
                BUILD_REQUEST_VARIABLE: build_request(order, config, job).model_dump_json(
                    by_alias=True
                ),
                "LLMENGINE_SCRATCH": SCRATCH,
            },
        ),
        "envFrom": [
            *env_from("STORE_", store_secret),
            *env_from("MODEL_", _model_secret(order, config)),
        ],
        "resources": with_gpu(_with_disk(order), order.target.architecture),
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _with_disk(order: Order) -> dict[str, Any]:
    """The node must have the scratch disk free, where it is the node's own."""
    build = order.engine.spec.build
    resources = resources_or(build.resources, order.runtime.spec.pod_defaults.build_resources)
    scratch = build.scratch
    if scratch is None or scratch.size is None or scratch.storage_class_name is not None:
        return resources
    requests = {"ephemeral-storage": scratch.size, **resources.get("requests", {})}
    return {**resources, "requests": requests}


def _model_secret(order: Order, config: Config) -> str | None:
    """The user's own Secret; else, for a model that all may read, the admin's."""
    model = order.engine.spec.model
    if model.secret_name:
        return model.secret_name
    endpoint = model_endpoint(model.uri, config)
    if endpoint is not None and order.target.scope.is_cluster:
        return endpoint.secret_name or None
    return None


def _volumes(order: Order) -> list[dict[str, Any]]:
    volumes = [
        _scratch(order.engine.spec.build.scratch),
        {"name": "tmp", "emptyDir": {}},
    ]
    if claim := claim_name(order.engine.spec.model.uri):
        volumes.append(
            {"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        )
    return volumes


def _scratch_bytes(scratch: Scratch | None) -> int | None:
    return whole_bytes(scratch.size) if scratch and scratch.size is not None else None


def _scratch(scratch: Scratch | None) -> dict[str, Any]:
    if scratch is None or scratch.size is None:
        return {"name": "scratch", "emptyDir": {}}
    if scratch.storage_class_name is None:
        return {"name": "scratch", "emptyDir": {"sizeLimit": scratch.size}}
    return {
        "name": "scratch",
        "ephemeral": {
            "volumeClaimTemplate": {
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "storageClassName": scratch.storage_class_name,
                    "resources": {"requests": {"storage": scratch.size}},
                }
            }
        },
    }
