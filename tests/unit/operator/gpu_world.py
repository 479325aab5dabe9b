"""A world of nodes with GPUs, and an engine for them, for tests of the pure core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmengine.api.v1alpha1 import EngineStatus, LLMEngineStatus
from llmengine.artifact import Footprint
from llmengine_operator.decision import ApplyDeployment
from llmengine_operator.observation import AttemptState, Found, Node, NotFound, Verdict
from llmengine_operator.report import report
from tests.unit.operator.gpu_nodes import A10, H100, L4, T4, gpu_node
from tests.unit.operator.world import (
    NOW,
    World,
    as_observed,
    make_runtime,
    make_stored,
    server_pod,
)

H, L, A, T = f"sm_90/{H100}", f"sm_89/{L4}", f"sm_86/{A10}", f"sm_75/{T4}"
NODES = {H: gpu_node("h", H100), L: gpu_node("l", L4), A: gpu_node("a", A10), T: gpu_node("t", T4)}


class Gpus(World):
    """A world of nodes with GPUs and an engine of a tensorrt runtime."""

    def __init__(self, *names: str, runtime: Mapping[str, Any] | None = None, **spec: Any) -> None:
        super().__init__(**spec)
        gpu = {"backend": "tensorrt", "version": "10.6.0", "accelerator": "nvidia"}
        self.but(runtime=Found(make_runtime(**{**gpu, **(runtime or {})})))
        self.on(*(NODES[name] for name in names)).missing()

    def on(self, *nodes: Node) -> Gpus:
        self.but(nodes=nodes)
        return self

    def missing(self) -> Gpus:
        """Nothing is in the store of what is wanted and was not put there."""
        known = self.observation.manifests
        self.but(manifests={**{key: NotFound() for key in self._keys()}, **known})
        return self

    def stored(self, *names: str, warnings: tuple[str, ...] = (), memory: int = 0) -> Gpus:
        """These are in the store as they are wanted now, and take so many bytes to serve."""
        self.missing()
        found: dict[str, Any] = {}
        for target in self._targets():
            if str(target.architecture) in names:
                stored = make_stored(target.key, target.factors)
                footprint = Footprint(serving_device_bytes=memory)
                said = {"warnings": warnings, "footprint": footprint}
                manifest = stored.manifest.model_copy(update=said)
                found[target.key] = Found(replace(stored, manifest=manifest))
        self.but(manifests={**self.observation.manifests, **found})
        return self

    def failed(self, name: str, **fields: Any) -> Gpus:
        """The build of one ended so that it is given up."""
        target = next(t for t in self._targets() if str(t.architecture) == name)
        wish = next(w for w in self.decide().wishes if w.order.target.key == target.key)
        self.tried(
            AttemptState.FAILED,
            **{
                "key": target.key,
                "architecture": name,
                "verdict": Verdict.FINAL,
                "reason": "VerificationFailed",
                "message": "wrong",
                "options": wish.order.options,
                **fields,
            },
        )
        return self

    def rolled_out(self) -> Gpus:
        """What is planned is carried out, and ready."""
        decision = self.decide()
        rows = [p.serving for p in decision.plans if p.serving is not None] + list(
            decision.retiring
        )
        ready = [row.model_copy(update={"replicas": 1, "ready_replicas": 1}) for row in rows]
        status = self.status().model_copy(update={"serving": ready})
        children, pods = dict(self.observation.children), list(self.observation.pods)
        for action in decision.actions:
            if isinstance(action, ApplyDeployment):
                name = action.object["metadata"]["name"]
                children["Deployment", name] = Found(
                    as_observed(action.object, ready=1, replicas=1)
                )
                pods.append(server_pod(action.object, ready=True))
        self.with_engine(status=status).but(children=children, pods=tuple(pods))
        return self

    def seen(self) -> Gpus:
        """The status is written."""
        self.with_engine(status=self.status())
        return self

    def status(self) -> LLMEngineStatus:
        return report(self.observation, self.decide(), applied=frozenset(), refused=None, now=NOW)

    def row(self, name: str) -> EngineStatus:
        return next(row for row in self.status().engines if row.architecture == name)

    @property
    def served(self) -> dict[str, str]:
        """What each architecture serves: the revision of its model."""
        revisions = {
            key: str(read.value.manifest.factors["model.revision"])
            for key, read in self.observation.manifests.items()
            if isinstance(read, Found)
        }
        return {row.architecture: revisions[row.key] for row in self.status().serving}

    @property
    def ready(self) -> tuple[str, str]:
        return next((c.status, c.reason) for c in self.status().conditions if c.type == "Ready")

    @property
    def built(self) -> tuple[str, str]:
        conditions = self.status().conditions
        return next((c.status, c.reason) for c in conditions if c.type == "EnginesBuilt")
