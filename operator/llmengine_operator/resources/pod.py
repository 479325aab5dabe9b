"""What every pod of ours has: no privilege, no API token, credentials by environment only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmengine.api.schema import ApiModel, Resources, Toleration
from llmengine.api.v1alpha1 import API_VERSION, EngineRuntimeSpec, PodDefaults
from llmengine.architecture import Architecture
from llmengine_operator.labels import GPU, MANAGED, QUEUE
from llmengine_operator.observation import Engine
from llmengine_operator.resources.placement import place
from llmengine_operator.scheduling import accepted_taints

# The image's user. Volumes are given to its group.
USER = 65532


def owner_reference(engine: Engine, *, controller: bool = True) -> dict[str, Any]:
    """Makes the garbage collector delete the object with its engine."""
    reference: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": "LLMEngine",
        "name": engine.name,
        "uid": engine.uid,
    }
    if controller:
        reference |= {"controller": True, "blockOwnerDeletion": False}
    return reference


def metadata(
    name: str,
    namespace: str,
    labels: Mapping[str, str],
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Object metadata with our managed-by label."""
    result: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "labels": {**labels, **MANAGED},
    }
    if annotations:
        result["annotations"] = dict(annotations)
    return result


def queued(engine: Engine) -> dict[str, str]:
    """The label by which Kueue knows a Job or a Deployment of an engine that has a queue."""
    return {QUEUE: engine.queue} if engine.queue else {}


def container_security() -> dict[str, Any]:
    """Passes the `restricted` pod security standard."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def pod_spec(
    runtime: EngineRuntimeSpec,
    architecture: Architecture,
    *,
    node_selector: Mapping[str, str],
    tolerations: Sequence[Toleration],
    priority_class_name: str | None,
    gpu_memory: int = 0,
) -> dict[str, Any]:
    """A pod's spec without containers and volumes, on nodes of `architecture`. See `place`."""
    defaults = runtime.pod_defaults
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **place(runtime, architecture, {**node_selector, **defaults.node_selector}, gpu_memory),
    }
    if accepted := accepted_taints(runtime, tolerations):
        spec["tolerations"] = [wire(toleration) for toleration in accepted]
    if priority_class_name:
        spec["priorityClassName"] = priority_class_name
    if runtime.image.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in runtime.image.pull_secrets]
    if runtime.runtime_class_name:
        spec["runtimeClassName"] = runtime.runtime_class_name
    if defaults.service_account_name:
        spec["serviceAccountName"] = defaults.service_account_name
    return spec


def env_from(prefix: str, secret_name: str | None) -> list[dict[str, Any]]:
    """All keys of a Secret as variables; a missing Secret shows in the pod's state."""
    return [{"prefix": prefix, "secretRef": {"name": secret_name}}] if secret_name else []


def environment(defaults: PodDefaults, **variables: str) -> list[dict[str, str]]:
    """The admin's variables, then ours, which win."""
    merged = {entry.name: entry.value for entry in defaults.env} | variables
    return [{"name": name, "value": value} for name, value in merged.items()]


def resources_or(chosen: Resources | None, default: Resources | None) -> dict[str, Any]:
    """The user's requests and limits, else the runtime's, else none."""
    picked = chosen or default
    return wire(picked) if picked else {}


def with_gpu(resources: dict[str, Any], architecture: Architecture) -> dict[str, Any]:
    """The same with one GPU where the architecture is one. A limit is a request, too."""
    if architecture.is_cpu:
        return resources
    return {**resources, "limits": {**resources.get("limits", {}), GPU: "1"}}


def wire(model: ApiModel) -> dict[str, Any]:
    """A model as the API server stores it: camelCase, no nulls, no empty maps."""
    dumped = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {key: value for key, value in dumped.items() if value != {}}
