"""Builders of observations for tests of the pure core: a world in which everything is well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from llmengine.api.v1alpha1 import EngineRuntimeSpec, LLMEngineSpec, LLMEngineStatus
from llmengine.architecture import Architecture
from llmengine.artifact import (
    Cache,
    Device,
    File,
    Limits,
    Manifest,
    Speed,
    Verification,
    digest_of,
)
from llmengine_operator.config import Config
from llmengine_operator.decision import ApplyDeployment, Decision
from llmengine_operator.observation import (
    Attempt,
    AttemptState,
    Engine,
    Found,
    Node,
    NotFound,
    Observation,
    Runtime,
    StoredEngine,
    Taint,
    Verdict,
)
from llmengine_operator.plan import decide
from llmengine_operator.targets import Problem, Target, targets

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
AMD64 = Architecture(cpu="amd64")
CONFIG = Config.model_validate(
    {
        "namespace": "llmengine-system",
        "store": {"endpoint": "http://s3.test", "bucket": "engines"},
        "models": {
            "s3": [{"name": "main", "endpoint": "http://s3.test", "secretName": "model-reader"}],
            "shared": ["s3://models/"],
        },
    }
)


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def engine_spec(**spec: Any) -> dict[str, Any]:
    return {
        "runtime": "onnxruntime-1.32.0",
        "model": {"uri": "s3://models/smollm2", "revision": "v1"},
        **spec,
    }


def make_engine(
    name: str = "chat", namespace: str = "team", *, status: Any = None, **spec: Any
) -> Engine:
    return Engine(
        namespace=namespace,
        name=name,
        uid=f"uid-{namespace}-{name}",
        generation=1,
        created=NOW - seconds(60),
        spec=LLMEngineSpec.model_validate(engine_spec(**spec)),
        status=status or LLMEngineStatus(),
    )


def make_runtime(image: str = "v1", **spec: Any) -> Runtime:
    return Runtime(
        "onnxruntime-1.32.0",
        EngineRuntimeSpec.model_validate(
            {
                "backend": "onnxruntime",
                "version": "1.32.0",
                "accelerator": "cpu",
                "image": {"repository": "registry.test/engine", "tag": image},
                **spec,
            }
        ),
    )


def make_node(
    name: str = "node-1",
    architecture: str = "amd64",
    labels: Mapping[str, str] | None = None,
    taints: tuple[Taint, ...] = (),
) -> Node:
    return Node(
        name, Architecture.parse(architecture), labels or {}, NOW - seconds(3600), taints=taints
    )


def make_stored(
    key: str, factors: Mapping[str, str | int], speed: Speed | None = None
) -> StoredEngine:
    digest = digest_of(b"weights")
    manifest = Manifest(
        key=key,
        factors=factors,
        created="2026-11-24T11:00:00Z",
        builder_version="0.1.0",
        model_type="llama",
        vocabulary=100,
        limits=Limits(max_batch_size=8, max_sequence_length=4096, max_batch_tokens=512),
        cache=Cache(
            layout="plain", dtype="float32", layers=2, kv_heads=1, head_dim=8, buckets=(4096,)
        ),
        device=Device(name="cpu"),
        seconds={"Compile": 3.0},
        verification=Verification(tokens=10, mean_relative_error=1e-7, max_logit_gap=0.0),
        speed=speed,
        model_files=(),
        files=(
            File(path="model/model.safetensors", digest=digest, size=10 << 20, chunks=("0" * 64,)),
        ),
    )
    return StoredEngine(manifest, digest_of(manifest.serialize()))


class World:
    """One engine and its surroundings, changed step by step; `decide()` plans for it."""

    def __init__(self, **spec: Any) -> None:
        self.engine = make_engine(**spec)
        self.observation = Observation(
            engine=self.engine, runtime=Found(make_runtime()), nodes=(make_node(),)
        )
        self.observation = replace(
            self.observation, manifests={key: NotFound() for key in self._keys()}
        )

    def _targets(self) -> tuple[Target, ...]:
        o = self.observation
        found = targets(o.engine, o.runtime, o.nodes, o.claim, CONFIG, now=NOW)
        return () if isinstance(found, Problem) else found

    def _keys(self) -> list[str]:
        return [key for target in self._targets() for key in target.keys]

    @property
    def target(self) -> Target:
        return self._targets()[0]

    def but(self, **changes: Any) -> World:
        """The same world with other observations."""
        self.observation = replace(self.observation, **changes)
        return self

    def with_engine(self, **changes: Any) -> World:
        return self.but(engine=replace(self.observation.engine, **changes))

    def with_spec(self, **spec: Any) -> World:
        """The spec was edited: a new generation."""
        engine = self.observation.engine
        self.with_engine(
            spec=LLMEngineSpec.model_validate(engine_spec(**spec)),
            generation=engine.generation + 1,
        )
        known = dict(self.observation.manifests)
        return self.but(manifests={key: NotFound() for key in self._keys()} | known)

    def cached(self, speed: Speed | None = None) -> World:
        target = self.target
        stored = make_stored(target.key, target.factors, speed)
        return self.but(manifests={**self.observation.manifests, target.key: Found(stored)})

    def on_both(self) -> World:
        """Nodes of two architectures, and an engine in the store for either."""
        self.but(nodes=(make_node(), make_node("node-2", "arm64")))
        stored = {t.key: Found(make_stored(t.key, t.factors)) for t in self._targets()}
        return self.but(manifests={**self.observation.manifests, **stored})

    def tried(self, state: AttemptState, **fields: Any) -> World:
        attempt = Attempt(
            **{
                "namespace": "llmengine-builds",
                "name": f"build-{self.target.key[:20]}-1",
                "uid": "uid-job",
                "key": self.target.key,
                "architecture": "amd64",
                "number": 1,
                "tries_left": 2,
                "options": self.options(),
                "request": "",
                "created": NOW - seconds(100),
                "state": state,
                "finished": NOW - seconds(1) if state in _ENDED else None,
                "verdict": Verdict.NONE,
                **fields,
            }
        )
        return self.but(attempts=(*self.observation.attempts, attempt))

    def options(self) -> str:
        """The digest of build options that a wish of this world carries."""
        wishes = decide(replace(self.observation, attempts=()), CONFIG, NOW).wishes
        return wishes[0].order.options if wishes else ""

    def decide(self, now: datetime = NOW) -> Decision:
        return decide(self.observation, CONFIG, now)

    def serving(self, *, ready: int = 1, replicas: int = 1) -> World:
        """Carry out what is planned: status written, Deployment made and rolled out."""
        decision = self.decide()
        rows = [p.serving for p in decision.plans if p.serving is not None]
        status = LLMEngineStatus(
            observed_generation=self.observation.engine.generation,
            engines=[p.row for p in decision.plans],
            serving=[
                r.model_copy(update={"replicas": replicas, "ready_replicas": ready}) for r in rows
            ],
        )
        self.with_engine(status=status)
        children: dict[tuple[str, str], Any] = {}
        pods = []
        for action in decision.actions:
            if isinstance(action, ApplyDeployment):
                children["Deployment", action.object["metadata"]["name"]] = Found(
                    as_observed(action.object, ready=ready, replicas=replicas)
                )
                pods += [server_pod(action.object, ready=i < ready) for i in range(replicas)]
            elif hasattr(action, "object"):
                metadata = {**action.object["metadata"], "uid": "uid-child"}
                children[action.object["kind"], metadata["name"]] = Found(
                    {**action.object, "metadata": metadata}
                )
        return self.but(children=children, pods=tuple(pods))


_ENDED = (AttemptState.SUCCEEDED, AttemptState.FAILED)


def as_observed(obj: Mapping[str, Any], *, ready: int, replicas: int) -> dict[str, Any]:
    """A Deployment as the API server shows it once it has rolled out so far."""
    return {
        **obj,
        "metadata": {**obj["metadata"], "uid": "uid-deployment", "generation": 1},
        "spec": {**obj["spec"], "replicas": replicas},
        "status": {
            "observedGeneration": 1,
            "replicas": replicas,
            "updatedReplicas": replicas,
            "readyReplicas": ready,
            "availableReplicas": ready,
        },
    }


def server_pod(deployment: Mapping[str, Any], *, ready: bool) -> dict[str, Any]:
    template = deployment["spec"]["template"]["metadata"]
    return {
        "metadata": {
            "name": "chat-amd64-abc",
            "creationTimestamp": "2026-11-24T11:59:00Z",
            "labels": template["labels"],
            "annotations": template["annotations"],
        },
        "spec": deployment["spec"]["template"]["spec"],
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }
