"""Services of an engine: one over all architectures, one for each, one headless."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llmengine.architecture import Architecture
from llmengine_operator.labels import Label
from llmengine_operator.observation import Engine
from llmengine_operator.resources.deployment import GRPC, HTTP, METRICS, deployment_name, selector
from llmengine_operator.resources.pod import metadata, owner_reference

_PORTS = [
    {"name": "http", "port": HTTP, "targetPort": "http", "protocol": "TCP"},
    {"name": "grpc", "port": GRPC, "targetPort": "grpc", "protocol": "TCP"},
    {"name": "metrics", "port": METRICS, "targetPort": "metrics", "protocol": "TCP"},
]


def services(engine: Engine, architectures: list[Architecture]) -> list[dict[str, Any]]:
    """All Services of an engine that serves these architectures."""
    everything: dict[str, str] = {Label.ENGINE: engine.name, Label.TRACK: "stable"}
    return [
        _service(engine, engine.name, everything),
        # Clients keep connections: a headless Service lets them balance over pods themselves.
        _service(engine, f"{engine.name}-headless", everything, headless=True),
        *(
            _service(engine, deployment_name(engine.name, a), selector(engine.name, a))
            for a in architectures
        ),
    ]


def service_names(engine: Engine, architectures: Iterable[Architecture]) -> list[str]:
    """The names that `services` takes."""
    slugs = [deployment_name(engine.name, architecture) for architecture in architectures]
    return [engine.name, f"{engine.name}-headless", *slugs]


def url(engine: Engine) -> str:
    """Where clients in the cluster find the engine over HTTP."""
    return f"http://{engine.name}.{engine.namespace}.svc:{HTTP}"


def _service(
    engine: Engine, name: str, pods: dict[str, str], *, headless: bool = False
) -> dict[str, Any]:
    meta = metadata(name, engine.namespace, {Label.ENGINE: engine.name})
    meta["ownerReferences"] = [owner_reference(engine)]
    spec: dict[str, Any] = {"type": "ClusterIP", "selector": pods, "ports": _PORTS}
    if headless:
        spec["clusterIP"] = "None"
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}
