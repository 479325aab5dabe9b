"""Which architectures an engine is for now: by its spec, or else by the nodes that may serve it.

Pure. What has to outlast the process (since when an architecture is seen, or gone) stands in the
rows of the engine's status.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from llmengine.api.v1alpha1 import Accelerator, EngineStatus, Portability
from llmengine.architecture import Architecture
from llmengine.quantity import readable
from llmengine_operator.config import Config, ExpectedNodes
from llmengine_operator.observation import Engine, Gpu, Node, Runtime, Taint
from llmengine_operator.reasons import Reason
from llmengine_operator.scheduling import allows

# The daemons that label GPU nodes drop their labels for a minute at every restart.
SETTLE = timedelta(minutes=2)
FORGET = timedelta(hours=24)
# Node names in a sentence.
_SHOWN = 4
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Lack:
    """Why there is no node to build on: a reason and a sentence."""

    reason: str
    message: str


@dataclass(frozen=True)
class Candidate:
    """One architecture that an engine is for.

    `nodes` may serve it now, `builders` are the names of those that may build it; `expected`: a
    pool that may build it grows when a pod asks. `seen` is set while it has to settle, `gone`
    while it has neither nodes nor ready pods.
    """

    architecture: Architecture
    required: bool
    nodes: int
    builders: tuple[str, ...]
    expected: bool = False
    seen: datetime | None = None
    gone: datetime | None = None
    lack: Lack | None = None


@dataclass(frozen=True)
class Skipped:
    """Nodes that the engine's constraints allow and that cannot run it, for one reason."""

    reason: str
    count: int
    message: str


class Landscape:
    """The nodes of a cluster, as one engine with its runtime sees them."""

    def __init__(
        self, engine: Engine, runtime: Runtime, nodes: Iterable[Node], config: Config
    ) -> None:
        self._engine = engine
        self._runtime = runtime
        self._gpus = runtime.spec.accelerator is Accelerator.NVIDIA
        self._any_device = engine.spec.engine.portability is Portability.COMPUTE_CAPABILITY
        self.nodes = [node for node in nodes if node.offers_gpus or not self._gpus]
        serving, build = engine.spec.serving, engine.spec.build
        self._serving = [
            node
            for node in self.nodes
            if allows(node, serving.node_selector, serving.tolerations, runtime.spec)
        ]
        self._building = [
            node
            for node in self.nodes
            if allows(node, build.node_selector, build.tolerations, runtime.spec)
        ]
        pools = [_as_node(pool) for pool in config.architectures.expected]
        self.may_come = {
            architecture
            for pool in pools
            if allows(pool, serving.node_selector, serving.tolerations, runtime.spec)
            and (architecture := self.architecture(pool)) is not None
        }
        self.may_build = {
            architecture
            for pool in pools
            if allows(pool, build.node_selector, build.tolerations, runtime.spec)
            and (architecture := self.architecture(pool)) is not None
        }
        self.servers = self._by_architecture(self._serving)
        self.builders = self._by_architecture(self._building)

    def fits(self, architecture: Architecture) -> bool:
        """Whether engines of this runtime and portability have architectures of such a form."""
        if architecture.is_cpu:
            return not self._gpus
        return self._gpus and (architecture.device is None) == self._any_device

    def architecture(self, node: Node) -> Architecture | None:
        """What the node is to such an engine, whether or not it can run it."""
        if not self._gpus:
            return node.architecture
        if node.gpu is None:
            return None
        device = None if self._any_device else node.gpu.device
        return Architecture(compute_capability=node.gpu.compute_capability, device=device)

    def obstacle(self, node: Node) -> str | None:
        """The reason why a node that may run the engine cannot, or None."""
        if not self._gpus:
            return None
        if node.gpu is None:
            return Reason.GPU_UNLABELLED
        if node.gpu.slices:
            return Reason.MIG_UNSUPPORTED
        if self._any_device and node.architecture.cpu != "amd64":
            # An engine is tied to the host's CPU too, which a device's name implies.
            return Reason.HOST_UNSUPPORTED
        needed = self._runtime.spec.driver
        if needed is not None and (node.gpu.driver is None or node.gpu.driver < needed):
            return Reason.DRIVER_TOO_OLD
        return None

    def skipped(self) -> tuple[Skipped, ...]:
        """Nodes that could serve but for an obstacle, by reason."""
        return self._obstacles(self._serving)

    def too_small(self, needed: Mapping[Architecture, int]) -> tuple[Skipped, ...]:
        """Nodes that could serve, were their GPUs not smaller than these bytes."""
        if not self._any_device:
            return ()
        found = [
            (node, size)
            for architecture, size in needed.items()
            for node in self.servers.get(architecture, ())
            if node.gpu is not None and 0 < node.gpu.memory_bytes < size
        ]
        if not found:
            return ()
        nodes = [node for node, _ in found]
        sizes = {node.gpu.memory_bytes for node in nodes if node.gpu is not None}
        has = ", ".join(map(readable, sorted(sizes)))
        takes = ", ".join(map(readable, sorted({size for _, size in found})))
        sentence = (
            f"{_names(nodes)} {_has(nodes)} GPUs of {has}, and the engine takes one of {takes}: its"
            " pods keep off; set spec.engine.maxBatchSize or maxSequenceLength lower to use them"
        )
        return (Skipped(Reason.GPU_TOO_SMALL, len(nodes), sentence),)

    def lack(self, architecture: Architecture) -> Lack | None:
        """Why no node can build for this architecture; None if one can, or may come."""
        if architecture in self.builders or architecture in self.may_build:
            return None
        if "-MIG-" in (architecture.device or ""):
            return Lack(
                Reason.MIG_UNSUPPORTED,
                "slices of a GPU are not supported: name the whole GPU, on a node without MIG",
            )
        having = [node for node in self.nodes if self.architecture(node) == architecture]
        if not having:
            return Lack(
                Reason.NO_NODE,
                f"no node of the cluster is {architecture}: the build starts when one joins; for"
                " a pool that is scaled to zero, name it in architectures.expected of the"
                " operator's values",
            )
        allowed = [node for node in self._building if self.architecture(node) == architecture]
        if obstacles := self._obstacles(allowed):
            return Lack(obstacles[0].reason, obstacles[0].message)
        part = "serving" if architecture not in self.servers else "build"
        return Lack(
            Reason.NO_NODE,
            f"{_names(having)} {_is(having)} {architecture}, but spec.{part}.nodeSelector and"
            f' tolerations, with those of EngineRuntime "{self._runtime.name}", allow none for'
            " builds: correct them",
        )

    def _by_architecture(self, nodes: Iterable[Node]) -> dict[Architecture, list[Node]]:
        found: dict[Architecture, list[Node]] = defaultdict(list)
        for node in nodes:
            architecture = self.architecture(node)
            if architecture is not None and self.obstacle(node) is None:
                found[architecture].append(node)
        return dict(found)

    def _obstacles(self, nodes: Iterable[Node]) -> tuple[Skipped, ...]:
        by_reason: dict[str, list[Node]] = defaultdict(list)
        for node in nodes:
            if (reason := self.obstacle(node)) is not None:
                by_reason[reason].append(node)
        return tuple(
            Skipped(reason, len(found), self._sentence(reason, found))
            for reason, found in sorted(by_reason.items())
        )

    def _sentence(self, reason: str, nodes: Sequence[Node]) -> str:
        names, has = _names(nodes), _has(nodes)
        gpus = [node.gpu for node in nodes if node.gpu is not None]
        match reason:
            case Reason.GPU_UNLABELLED:
                return (
                    f"{names} {has} GPUs, but not the labels nvidia.com/gpu.product and"
                    " nvidia.com/gpu.compute.*: run NVIDIA's GPU Feature Discovery there"
                )
            case Reason.MIG_UNSUPPORTED:
                slices = ", ".join(sorted({gpu.slices for gpu in gpus}))
                return (
                    f"{names} {has} GPUs that MIG divides ({slices}), and engines take whole ones:"
                    " switch MIG off there, or use other nodes"
                )
            case Reason.HOST_UNSUPPORTED:
                return (
                    f"{names} {has} arm64 CPUs, and engines of portability ComputeCapability are"
                    " for amd64: use portability Device for them"
                )
        drivers = ", ".join(sorted({_version(gpu.driver) for gpu in gpus}))
        return (
            f"{names} {has} NVIDIA driver {drivers}, and EngineRuntime"
            f' "{self._runtime.name}" needs {self._runtime.spec.minimum_driver}: update the'
            " driver, or use another runtime"
        )


def choose(landscape: Landscape, engine: Engine, now: datetime) -> tuple[Candidate, ...]:
    """What the engine is for, in order of architecture."""
    if engine.spec.architectures is not None:
        listed = {Architecture.parse(text) for text in engine.spec.architectures}
        return tuple(_candidate(landscape, a, required=True) for a in sorted(listed))
    rows = {Architecture.parse(row.architecture): row for row in engine.status.engines}
    ready = {
        Architecture.parse(row.architecture): row.ready_replicas for row in engine.status.serving
    }
    known = _known(rows, ready.keys())
    # A new spec takes at once what is there; who has just been seen may be gone in a minute.
    edited = engine.generation != engine.status.observed_generation
    found = [
        _candidate(
            landscape,
            architecture,
            seen=None
            if architecture in known | landscape.may_come
            or architecture not in landscape.servers
            or architecture.is_cpu  # told by the node's own kubelet, once and for all
            else _settling(landscape.servers[architecture], rows.get(architecture), edited, now),
        )
        for architecture in landscape.servers.keys() | landscape.may_come
    ]
    missing = [
        a for a in known - landscape.servers.keys() - landscape.may_come if landscape.fits(a)
    ]
    excluded = {
        landscape.architecture(node)
        for node in landscape.nodes
        if edited and landscape.obstacle(node) is None
    }
    absent = [
        _candidate(
            landscape,
            architecture,
            gone=None if ready.get(architecture) else _gone(rows.get(architecture), now),
        )
        for architecture in missing
        if architecture not in excluded  # the new spec's selectors leave it out
    ]
    lasting = [c for c in absent if c.gone is None or now - c.gone < FORGET]
    # An engine for nothing at all would lose even what may come back.
    kept = [*found, *lasting] or absent
    return tuple(sorted(kept, key=lambda c: c.architecture))


def _known(
    rows: Mapping[Architecture, EngineStatus], serving: Collection[Architecture]
) -> set[Architecture]:
    """Architectures that counted before. One that serves without a row is on its way out, unless
    there are no rows at all: then nobody could tell what was wanted.
    """
    if not rows:
        return set(serving)
    return {
        architecture
        for architecture, row in rows.items()
        # What was required and never had a node has neither of these.
        if not row.seen_time and (row.node_count or row.gone_time or architecture in serving)
    }


def _candidate(
    landscape: Landscape,
    architecture: Architecture,
    *,
    required: bool = False,
    seen: datetime | None = None,
    gone: datetime | None = None,
) -> Candidate:
    return Candidate(
        architecture=architecture,
        required=required,
        nodes=len(landscape.servers.get(architecture, ())),
        builders=tuple(sorted(node.name for node in landscape.builders.get(architecture, ()))),
        expected=architecture in landscape.may_build,
        seen=seen,
        gone=gone,
        lack=landscape.lack(architecture),
    )


def _settling(
    nodes: Sequence[Node], row: EngineStatus | None, edited: bool, now: datetime
) -> datetime | None:
    """Since when a new architecture is seen, while that is not long enough."""
    since = now
    if row is not None and row.seen_time is not None:
        since = datetime.fromisoformat(row.seen_time)
    if edited:
        since = min(since, *(node.created for node in nodes))
    return None if now - since >= SETTLE else since


def _gone(row: EngineStatus | None, now: datetime) -> datetime:
    return datetime.fromisoformat(row.gone_time) if row and row.gone_time else now


def _as_node(pool: ExpectedNodes) -> Node:
    architecture = Architecture.parse(pool.architecture)
    labels: Mapping[str, str] = pool.labels
    gpu = None
    if architecture.compute_capability is not None and architecture.device is not None:
        gpu = Gpu(architecture.compute_capability, architecture.device)
    return Node(
        name="",
        architecture=architecture if architecture.is_cpu else Architecture(cpu="amd64"),
        labels=labels,
        created=_LONG_AGO,
        taints=tuple(Taint(t.key, t.value, t.effect) for t in pool.taints),
        gpu=gpu,
        offers_gpus=gpu is not None,
    )


def _names(nodes: Sequence[Node]) -> str:
    names = sorted(node.name for node in nodes)
    rest = len(names) - _SHOWN
    shown = ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
    return f"node {shown}" if len(names) == 1 else f"nodes {shown}"


def _has(nodes: Sequence[Node]) -> str:
    return "has" if len(nodes) == 1 else "have"


def _is(nodes: Sequence[Node]) -> str:
    return "is" if len(nodes) == 1 else "are"


def _version(driver: tuple[int, int, int] | None) -> str:
    return "{}.{}.{:02}".format(*driver) if driver else "(unknown)"
