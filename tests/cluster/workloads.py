"""Manifests for the tests of the cluster itself, as objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

RESTRICTED: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def namespace(name: str, **labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def container(image: str, command: Sequence[str], **more: Any) -> dict[str, Any]:
    return {"name": "main", "image": image, "command": list(command), **more}


def pod_spec(*containers: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "containers": list(containers),
        "terminationGracePeriodSeconds": 5,
        "automountServiceAccountToken": False,
        **more,
    }


def pod(name: str, space: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    spec = {"restartPolicy": "Never", **spec}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": space},
        "spec": spec,
    }


def job(name: str, space: str, spec: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": space},
        "spec": {
            "backoffLimit": 0,
            "template": {"spec": {"restartPolicy": "Never", **spec}},
            **more,
        },
    }


def deployment(name: str, space: str, replicas: int, spec: Mapping[str, Any]) -> dict[str, Any]:
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": space},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def service(name: str, space: str, target_port: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": space},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": target_port}]},
    }
