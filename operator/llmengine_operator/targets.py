"""What an engine wants: one target for each architecture, with its scope and its key.

Pure. Answers with the targets, or with the one reason why there can be none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from llmengine.api.schema import Resources
from llmengine.api.v1alpha1 import ServingStatus
from llmengine.architecture import Architecture
from llmengine.capability import unsupported
from llmengine.key import CLUSTER, Factor, Scope, engine_factors, readable_keys
from llmengine_operator.architectures import Candidate, Landscape, Skipped, choose
from llmengine_operator.config import Config, ModelEndpoint
from llmengine_operator.labels import GPU
from llmengine_operator.observation import (
    Engine,
    Found,
    Node,
    NotFound,
    Read,
    Runtime,
    Unreadable,
)
from llmengine_operator.reasons import Reason

# Claims and Services are not watched: what is done about them is noticed by looking.
UNWATCHED_POLL = timedelta(seconds=30)


@dataclass(frozen=True)
class Problem:
    """Why nothing can be built or switched now.

    `stalled`: no progress is expected until somebody changes something. `look_again`: for what
    no watch tells of.
    """

    reason: str
    message: str
    stalled: bool = True
    look_again: timedelta | None = None


@dataclass(frozen=True)
class Target:
    """One architecture of an engine. `keys`: where its engine may lie, the one to build first.

    `unsupported` is a sentence when this architecture can never be built as asked.
    """

    candidate: Candidate
    factors: Mapping[str, Factor]
    keys: tuple[str, ...]
    scope: Scope
    unsupported: str = ""

    @property
    def key(self) -> str:
        return self.keys[0]

    @property
    def architecture(self) -> Architecture:
        return self.candidate.architecture

    @property
    def required(self) -> bool:
        return self.candidate.required


def claim_name(uri: str) -> str:
    """The PersistentVolumeClaim that a `pvc://` model lies on; empty for other models."""
    return uri.removeprefix("pvc://").partition("/")[0] if uri.startswith("pvc://") else ""


def model_endpoint(uri: str, config: Config) -> ModelEndpoint | None:
    """The S3 service that an `s3://` model lies on; None for other models, or when unknown."""
    if not uri.startswith("s3://"):
        return None
    return config.models.endpoint_for(uri.removeprefix("s3://").partition("/")[0])


def targets(
    engine: Engine,
    runtime: Read[Runtime],
    nodes: Sequence[Node],
    claim: Read[str] | None,
    config: Config,
    *,
    now: datetime,
) -> tuple[Target, ...] | Problem:
    """The targets of an engine, in order of architecture; or why there are none."""
    if not isinstance(runtime, Found):
        return _runtime_problem(engine, runtime)
    uri = engine.spec.model.uri
    endpoint = model_endpoint(uri, config)
    if uri.startswith("s3://") and endpoint is None:
        return Problem(
            Reason.MODEL_ENDPOINT_UNKNOWN,
            f"no S3 service is configured for the bucket of {uri}: ask the platform's admin to"
            " add it to models.s3 of the operator's values",
        )
    scope = _scope(engine, claim, config)
    if isinstance(scope, Problem):
        return scope
    if (conflict := _conflict(engine, runtime.value)) is not None:
        return conflict
    landscape = Landscape(engine, runtime.value, nodes, config)
    candidates = choose(landscape, engine, now)
    if not candidates:
        return _nowhere(runtime.value, landscape)
    endpoint_name = endpoint.name if endpoint else None
    return tuple(
        _target(engine, runtime.value, candidate, endpoint=endpoint_name, scope=scope)
        for candidate in candidates
    )


def skipped_nodes(
    engine: Engine, runtime: Read[Runtime], nodes: Sequence[Node], config: Config
) -> tuple[Skipped, ...]:
    """Nodes that the engine could have used, and why it cannot."""
    if not isinstance(runtime, Found):
        return ()
    return Landscape(engine, runtime.value, nodes, config).skipped()


def small_nodes(
    engine: Engine,
    runtime: Runtime,
    nodes: Sequence[Node],
    config: Config,
    served: Iterable[ServingStatus],
) -> tuple[Skipped, ...]:
    """Nodes of served architectures that pods keep off, for their GPUs are too small."""
    needed = {
        Architecture.parse(row.architecture): row.gpu_memory_bytes
        for row in served
        if row.gpu_memory_bytes
    }
    # For most engines nothing is known, and every pass asks.
    return Landscape(engine, runtime, nodes, config).too_small(needed) if needed else ()


def _nowhere(runtime: Runtime, landscape: Landscape) -> Problem:
    accelerator = runtime.spec.accelerator
    reasons = [skipped.message for skipped in landscape.skipped()]
    why = f": {'; '.join(reasons)}" if reasons else ""
    return Problem(
        Reason.NO_NODE,
        f"no node has an architecture for accelerator {accelerator} that the nodeSelectors and"
        f" tolerations of the engine and its runtime allow{why}",
        stalled=False,
    )


def _target(
    engine: Engine, runtime: Runtime, candidate: Candidate, *, endpoint: str | None, scope: Scope
) -> Target:
    factors = engine_factors(
        backend=runtime.spec.backend,
        backend_version=runtime.spec.version,
        uri=engine.spec.model.uri,
        revision=engine.spec.model.revision,
        endpoint=endpoint,
        scope=scope,
        options=engine.spec.engine,
        architecture=candidate.architecture,
    )
    return Target(
        candidate=candidate,
        factors=factors,
        keys=tuple(readable_keys(factors)),
        scope=scope,
        unsupported=_unsupported(engine, runtime, candidate.architecture) or "",
    )


def _unsupported(engine: Engine, runtime: Runtime, architecture: Architecture) -> str | None:
    """What the backend cannot compile, or the runtime's admin has ruled out."""
    spec = runtime.spec
    if sentence := unsupported(spec.backend, architecture, engine.spec.engine):
        return sentence
    capability = architecture.compute_capability
    if capability is None or spec.knows(capability):
        return None
    known = ", ".join(spec.compute_capabilities or ())
    return (
        f'EngineRuntime "{runtime.name}" is for {known}, and {architecture} is not among them: use'
        " another runtime for it, or leave it out with spec.architectures"
    )


def _runtime_problem(engine: Engine, runtime: NotFound | Unreadable) -> Problem:
    if isinstance(runtime, Unreadable):
        return Problem(runtime.reason, runtime.message, stalled=False)
    return Problem(
        Reason.RUNTIME_NOT_FOUND,
        f'there is no EngineRuntime "{engine.spec.runtime}": "kubectl get engineruntimes" lists'
        " those of this cluster",
    )


def _conflict(engine: Engine, runtime: Runtime) -> Problem | None:
    """What the spec says that its runtime contradicts: it would have no effect."""
    defaults = runtime.spec.pod_defaults
    for part, selector in (
        ("build", engine.spec.build.node_selector),
        ("serving", engine.spec.serving.node_selector),
    ):
        for label, value in selector.items():
            given = defaults.node_selector.get(label, value)
            if given != value:
                return Problem(
                    Reason.SELECTOR_CONFLICT,
                    f"spec.{part}.nodeSelector wants {label}={value}, but EngineRuntime"
                    f' "{runtime.name}" wants {label}={given}: remove it, or take another runtime',
                )
    if (gpus := _gpu_count(engine)) is not None:
        return gpus
    asked = engine.spec.serving.resources or defaults.serving_resources
    scaled = engine.spec.serving.autoscaling
    if scaled and scaled.cpu_utilization is not None and not _requests_cpu(asked):
        return Problem(
            Reason.CPU_REQUEST_MISSING,
            "spec.serving.autoscaling scales on CPU utilization, a share of what pods request:"
            " set spec.serving.resources.requests.cpu, or give targetRequestsPerSlot and no"
            " targetCPUUtilization",
        )
    return None


def _gpu_count(engine: Engine) -> Problem | None:
    """The operator asks for the one GPU that an engine uses; more would lie idle."""
    parts = ("build", engine.spec.build.resources), ("serving", engine.spec.serving.resources)
    for part, resources in parts:
        asked = {**resources.requests, **resources.limits} if resources else {}
        if any(name == GPU and str(count) != "1" for name, count in asked.items()):
            return Problem(
                Reason.GPU_COUNT_UNSUPPORTED,
                f"spec.{part}.resources asks for {asked[GPU]} of {GPU}, and an engine uses one"
                " GPU, which is asked for without it: remove it",
            )
    return None


def _requests_cpu(resources: Resources | None) -> bool:
    """A limit counts as a request where there is none."""
    return resources is not None and "cpu" in {*resources.requests, *resources.limits}


def _scope(engine: Engine, claim: Read[str] | None, config: Config) -> Scope | Problem:
    """Who may share the engine: nobody may get at a model through the cache that he cannot read."""
    model = engine.spec.model
    if name := claim_name(model.uri):
        if isinstance(claim, Unreadable):
            return Problem(claim.reason, claim.message, stalled=False)
        if not isinstance(claim, Found):
            return Problem(
                Reason.CLAIM_NOT_FOUND,
                f"there is no PersistentVolumeClaim {name} in namespace {engine.namespace}:"
                " create it, or correct spec.model.uri",
                look_again=UNWATCHED_POLL,
            )
        return Scope(engine.namespace, claim.value)
    if model.secret_name:
        return Scope(engine.namespace)
    if model.uri.startswith("s3://") and not model.uri.startswith(config.models.shared):
        return Scope(engine.namespace)
    return CLUSTER
