"""Reads one engine's world into an Observation; decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime

from pydantic import ValidationError

from llmengine.artifact import BuildProgress
from llmengine.key import Scope
from llmengine_operator.build_queue import BuildQueue
from llmengine_operator.catalog import Catalog
from llmengine_operator.config import Config
from llmengine_operator.kinds import DEPLOYMENT, HPA, PDB, PVC, RUNTIME, SERVICE, Kind
from llmengine_operator.kube import Kube
from llmengine_operator.kube_errors import NotFoundError
from llmengine_operator.labels import MANAGED, Label, key_label
from llmengine_operator.node_book import NodeBook
from llmengine_operator.observation import (
    Attempt,
    AttemptState,
    Engine,
    Found,
    KubeObject,
    NotFound,
    Observation,
    Read,
    Runtime,
    StoredEngine,
    Unreadable,
)
from llmengine_operator.parse import parse_runtime
from llmengine_operator.read_builds import read_builds
from llmengine_operator.read_pods import read_complaints, read_pods
from llmengine_operator.reasons import Reason
from llmengine_operator.resources.build_job import build_namespace
from llmengine_operator.resources.deployment import deployment_name
from llmengine_operator.resources.service import service_names
from llmengine_operator.targets import Problem, Target, claim_name, targets

_CHILDREN = (DEPLOYMENT, SERVICE, HPA, PDB)


class Observer:
    """Shared by all workers."""

    def __init__(
        self,
        kube: Kube,
        *,
        catalog: Catalog,
        queue: BuildQueue,
        nodes: NodeBook,
        config: Config,
        now: Callable[[], datetime],
    ) -> None:
        self._kube = kube
        self._catalog = catalog
        self._queue = queue
        self._config = config
        self._nodes = nodes
        self._now = now

    def observe(self, engine: Engine) -> Observation:
        """Everything that a plan for this engine looks at. Raises KubeError."""
        runtime = self._runtime(engine.spec.runtime)
        nodes = self._nodes.all()
        claim = self._claim(engine)
        wanted = targets(engine, runtime, nodes, claim, self._config, now=self._now())
        if isinstance(wanted, Problem):
            pods = read_pods(self._kube, engine) if engine.status.serving else ()
            return Observation(engine, runtime, nodes, claim, pods=pods)
        manifests = self._manifests(engine, wanted)
        missing = [t for t in wanted if all(manifests[k] == NotFound() for k in t.keys)]
        attempts = tuple(a for target in missing for a in self._attempts(engine, target))
        children = self._children(engine, wanted)
        deployments = _deployments(children)
        pods = read_pods(self._kube, engine) if deployments else ()
        return Observation(
            engine=engine,
            runtime=runtime,
            nodes=nodes,
            claim=claim,
            manifests=manifests,
            attempts=attempts,
            progress=self._progress(missing, attempts),
            children=children,
            pods=pods,
            complaints=read_complaints(self._kube, deployments, pods, self._now()),
            queue=self._queue.waiting() if missing else {},
            unsafe_store=self._catalog.unsafe() if missing else None,
        )

    def _runtime(self, name: str) -> Read[Runtime]:
        try:
            return Found(parse_runtime(self._kube.get(RUNTIME, None, name)))
        except NotFoundError:
            return NotFound()
        except ValidationError as error:
            return Unreadable(
                Reason.SPEC_INVALID,
                f'EngineRuntime "{name}" cannot be read by this release: {error}',
            )

    def _claim(self, engine: Engine) -> Read[str] | None:
        name = claim_name(engine.spec.model.uri)
        if not name:
            return None
        try:
            return Found(str(self._kube.get(PVC, engine.namespace, name)["metadata"]["uid"]))
        except NotFoundError:
            return NotFound()

    def _manifests(self, engine: Engine, wanted: Iterable[Target]) -> dict[str, Read[StoredEngine]]:
        """Of every key that is wanted, and of what serves now: that says why a build runs."""
        places = {key: target.scope for target in wanted for key in target.keys}
        for row in engine.status.serving:
            places.setdefault(row.key, Scope(row.scope_namespace))
        # Who asks for another try may have deleted a damaged engine from the store a moment ago.
        fresh = bool(engine.unhandled_request)
        return {key: self._catalog.find(key, scope, fresh=fresh) for key, scope in places.items()}

    def _attempts(self, engine: Engine, target: Target) -> list[Attempt]:
        place = build_namespace(engine, target, self._config)
        labels: dict[str, str] = {Label.KEY: key_label(target.key)}
        builds = read_builds(self._kube, place, labels, self._now())
        return [build.attempt for build in builds if build.attempt.key == target.key]

    def _progress(
        self, missing: Iterable[Target], attempts: Iterable[Attempt]
    ) -> dict[str, BuildProgress]:
        running = {a.key for a in attempts if a.state is AttemptState.RUNNING}
        said = {
            target.key: self._catalog.progress(target.key, target.scope)
            for target in missing
            if target.key in running
        }
        return {key: progress for key, progress in said.items() if progress is not None}

    def _children(
        self, engine: Engine, wanted: Iterable[Target]
    ) -> dict[tuple[str, str], Read[KubeObject]]:
        """What carries our labels, and what has a name that we need whoever made it."""
        labels = {**MANAGED, Label.ENGINE: engine.name}
        children: dict[tuple[str, str], Read[KubeObject]] = {
            (kind.kind, obj["metadata"]["name"]): Found(obj)
            for kind in _CHILDREN
            for obj in self._kube.list(kind, engine.namespace, labels=labels)
        }
        architectures = [target.architecture for target in wanted]
        names = [(SERVICE, name) for name in service_names(engine, architectures)]
        names += [(DEPLOYMENT, deployment_name(engine.name, a)) for a in architectures]
        for kind, name in names:
            if (kind.kind, name) not in children:
                children[kind.kind, name] = self._child(kind, engine.namespace, name)
        listed = (PDB, HPA) if engine.spec.serving.autoscaling else (PDB,)
        for kind in listed:
            for architecture in architectures:
                name = deployment_name(engine.name, architecture)
                if (kind.kind, name) not in children:
                    children[kind.kind, name] = self._listed(kind, engine.namespace, name)
        return children

    def _child(self, kind: Kind, namespace: str, name: str) -> Read[KubeObject]:
        try:
            return Found(self._kube.get(kind, namespace, name))
        except NotFoundError:
            return NotFound()

    def _listed(self, kind: Kind, namespace: str, name: str) -> Read[KubeObject]:
        """One that somebody else made, as `kubectl autoscale` does, is no reason to read others by
        name: the right to list them is there.
        """
        found = self._kube.list(kind, namespace, fields=f"metadata.name={name}")
        return Found(found[0]) if found else NotFound()


def _deployments(children: dict[tuple[str, str], Read[KubeObject]]) -> list[KubeObject]:
    return [
        child.value
        for (kind, _), child in children.items()
        if kind == DEPLOYMENT.kind and isinstance(child, Found)
    ]
