"""What clients lose when something breaks under load: a bad engine, a full cluster, evicted pods, a
drained node, a killed server, a killed operator, a dead node.

Run `python -m tests.bench.faults`, as root. A tiny model on a real node, or two, and two pods; many
clients stream from its Service all the while, each request on a connection of its own and none sent
twice. Only requests that a killed pod had may be lost, and their clients have to know.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmengine.quantity import whole_bytes
from llmengine_operator.pods import is_ready
from tests.bench.rollouts import deployment
from tests.cluster.api import ApiError
from tests.cluster.cluster import Cluster
from tests.cluster.node import NODE
from tests.cluster.waiting import wait_for
from tests.demo.platform import RUNTIME, Images, Platform
from tests.e2e.engines import TEAMS, Engine, Engines
from tests.e2e.kills import Killed, kill_operator, kill_server
from tests.e2e.load import Fate, Loss, Tally, loaded
from tests.faults.bad_images import CRASHES, DIES_SOON, NEVER_STARTS, Fault, make_runtime
from tests.models.tiny import TinyModel

CLIENTS, TOKENS, REPLICAS = 16, 64, 2
SERVING: dict[str, Any] = {
    "replicas": REPLICAS,
    "terminationGracePeriodSeconds": 30,
    "rollout": {"progressDeadlineSeconds": 30},
}
PATIENCE = 300.0
SEED = 20261124


@dataclass(frozen=True)
class Unplugged:
    """The end of a node without a word to anybody, and between which moments it went on."""

    began: float
    ended: float

    def took(self, loss: Loss) -> bool:
        """Whether the lost answer's request was with the node: nothing is ever heard of it."""
        return loss.fate is Fate.HANGS and loss.connected <= self.ended


@dataclass
class Episode:
    """One fault under load: what it did, and which servers or nodes it killed."""

    says: str = ""
    killed: list[Killed | Unplugged] = field(default_factory=list)
    alone: bool = False
    """There was one pod, and nobody to ask between its end and the next one's start."""


class Stand:
    """One engine, and what is done to it."""

    def __init__(self, platform: Platform, engine: Engine, seed: int) -> None:
        self.platform = platform
        self.engine = engine
        self.random = random.Random(seed)
        self._length = 128
        self._replicas = REPLICAS

    def scale(self, replicas: int) -> None:
        self._replicas = replicas
        self.engine.edit({"serving": {"replicas": replicas}})
        self.settle()

    def change(self) -> None:
        """To another engine, which has to be built."""
        self._length += 1
        self.engine.edit({"engine": {"maxSequenceLength": self._length}})

    def settle(self) -> None:
        """Wait until the newest spec serves in full, and nothing else does.

        The status alone may be of before: what kills or evicts a pod leaves the generation alone.
        """

        def settled() -> bool:
            pods = self.engine.pods()
            return len(pods) == self._replicas and all(map(is_ready, pods))

        wait_for(settled, PATIENCE, "every pod to be ready")
        self.engine.wait_ready(PATIENCE)
        wait_for(settled, PATIENCE, "no other pod")

    def bad_engine(self, fault: Fault) -> Episode:
        """Rolled out until it stalls, and taken back."""
        self.engine.edit({"runtime": f"bad-{fault.name}", "engine": {"maxSequenceLength": 96}})
        began = time.monotonic()
        self.engine.wait("Stalled", "True", timeout=PATIENCE)
        stalled = time.monotonic() - began
        self.engine.edit({"runtime": RUNTIME, "engine": {"maxSequenceLength": self._length}})
        began = time.monotonic()
        self.settle()
        back = time.monotonic() - began
        return Episode(f"Stalled after {stalled:.0f} s, back in {back:.1f} s")

    def full_cluster(self) -> Episode:
        """No room for a pod more: old ones make room, one at a time."""
        (node,) = self.platform.cluster.api.items("/api/v1/nodes")
        memory = whole_bytes(node["status"]["allocatable"]["memory"])
        share = f"{memory * 4 // 10 >> 20}Mi"
        self.engine.edit({"serving": {"resources": {"requests": {"memory": share}}}})
        self.settle()
        self.change()
        surge = wait_for(self._makes_room, PATIENCE, "old pods to make room", interval=0.05)
        self.settle()
        self.engine.edit({"serving": {"resources": None}})
        self.settle()
        return Episode(f"maxSurge {surge['maxSurge']}, maxUnavailable {surge['maxUnavailable']}")

    def _makes_room(self) -> dict[str, Any]:
        found = deployment(self.engine)["spec"]["strategy"]["rollingUpdate"]
        return dict(found) if found["maxSurge"] == 0 else {}

    def evictions(self) -> Episode:
        """What a drain does: every pod is evicted, as soon as the budget allows it."""
        refused = 0
        before = self.engine.pods()
        for pod in before:
            meta = {key: pod["metadata"][key] for key in ("name", "namespace")}
            refused += self._evict(meta)
        old = {pod["metadata"]["uid"] for pod in before}
        wait_for(
            lambda: not old & {pod["metadata"]["uid"] for pod in self.engine.pods()},
            PATIENCE,
            "other pods",
        )
        self.settle()
        return Episode(f"{len(before)} evicted; the budget said no {refused} times")

    def spread(self) -> None:
        """A rollout, which puts one pod on each of two nodes."""
        self.change()
        self.settle()
        if len({pod["spec"]["nodeName"] for pod in self.engine.pods()}) != REPLICAS:
            raise RuntimeError("the pods do not lie on different nodes")

    def drained_node(self, name: str) -> Episode:
        """`kubectl drain`, and back when all pods serve elsewhere."""
        began = time.monotonic()
        with self.platform.cluster.drained(name):
            drained = time.monotonic() - began
            self.settle()
            whole = time.monotonic() - began
        says = f"drained after {drained:.1f} s, served in full after {whole:.1f} s"
        return Episode(says, alone=self._replicas == 1)

    def drained_only_pod(self) -> Episode:
        (pod,) = self.engine.pods()
        return self.drained_node(pod["spec"]["nodeName"])

    def dead_node(self, name: str) -> Episode:
        """A power cut, of which the cluster learns by itself; then an admin removes the node."""
        cluster = self.platform.cluster
        began = time.monotonic()
        cluster.kill_node(name)
        killed = Unplugged(began, time.monotonic())
        wait_for(lambda: self._pods_in_service() == 1, PATIENCE, "the Service to forget the pod")
        cluster.remove_node(name)
        removed = time.monotonic()
        self.settle()
        back = time.monotonic() - removed
        return Episode(f"removed from the cluster; in full {back:.1f} s later", [killed])

    def _pods_in_service(self) -> int:
        """To how many pods the Service leads."""
        selector = f"labelSelector=kubernetes.io%2Fservice-name%3D{self.engine.name}"
        path = f"/apis/discovery.k8s.io/v1/namespaces/{self.engine.namespace}/endpointslices"
        slices = self.platform.cluster.api.items(f"{path}?{selector}")
        endpoints = [endpoint for it in slices for endpoint in it["endpoints"] or ()]
        return sum(endpoint["conditions"]["ready"] for endpoint in endpoints)

    def _evict(self, meta: dict[str, str]) -> int:
        """How often the budget forbade it."""
        path = "/api/v1/namespaces/{namespace}/pods/{name}/eviction".format(**meta)
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta}
        refused = 0

        def evicted() -> bool:
            nonlocal refused
            try:
                self.platform.cluster.api.request("POST", path, body)
            except ApiError as error:
                if error.status != 429:
                    raise
                refused += 1
                return False
            return True

        wait_for(evicted, PATIENCE, f"the budget to let {meta['name']} go", interval=1)
        return refused

    def killed_server(self) -> Episode:
        """kill -9 for all processes of one pod, in the middle of many generations."""
        pod = self.random.choice(self.engine.pods())
        killed = kill_server(pod)
        began = time.monotonic()
        count = pod["status"]["containerStatuses"][0]["restartCount"]
        wait_for(lambda: self._restarts(pod) > count, PATIENCE, "the container to be started anew")
        self.settle()
        back = time.monotonic() - began
        return Episode(f"serves in full again after {back:.1f} s", [killed])

    def _restarts(self, pod: dict[str, Any]) -> int:
        name = pod["metadata"]["name"]
        now = next(p for p in self.engine.pods() if p["metadata"]["name"] == name)
        return int(now["status"]["containerStatuses"][0]["restartCount"])

    def killed_operator(self, rollouts: int, kills: int) -> Episode:
        """At random moments of rollouts; each has to come to its end."""
        moments = []
        for _ in range(rollouts):
            self.change()
            for _ in range(kills):
                moment = self.random.uniform(0, 8)
                time.sleep(moment)  # the moment is what is tried out
                kill_operator(self.platform)
                moments.append(f"{moment:.1f}")
            self.settle()
        return Episode(f"{rollouts} rollouts, killed after {', '.join(moments)} s")


@dataclass(frozen=True)
class Row:
    """What became of the answers of one episode.

    `taken`: with a killed server. `refused`: connections that found none, for the Service had not
    forgotten it yet, until `seconds` after its end; or, for as many seconds, requests that the only
    pod no longer took. `others`: what must not be.
    """

    whole: int
    taken: int
    refused: int
    seconds: float
    others: Sequence[Loss]

    @classmethod
    def of(cls, tally: Tally, episode: Episode, *, may_die: bool) -> Row:
        refused = tally.of(Fate.REFUSED) if episode.killed or episode.alone or may_die else []
        if episode.alone:
            refused += [it for it in tally.of(Fate.SAID) if "shutting down" in it.text]
        taken = [loss for loss in tally.losses if any(k.took(loss) for k in episode.killed)]
        if may_die:  # when the bad engine dies only its container knows
            taken = tally.of(Fate.BROKEN)
        blamed = {id(loss) for loss in (*refused, *taken)}
        others = [loss for loss in tally.losses if id(loss) not in blamed]
        last = max((loss.ended for loss in refused), default=0.0)
        began = [it.began for it in episode.killed]
        if episode.alone:
            began = [min((loss.connected for loss in refused), default=last)]
        seconds = max((last - it for it in began), default=0.0)
        return cls(tally.whole, len(taken), len(refused), seconds, others)


def measure(what: str, stand: Stand, act: Callable[[], Episode], *, may_die: bool = False) -> int:
    """Do it under load and print what was lost. Returns how many answers nobody may lose."""
    engine = stand.engine
    options = ("--clients", str(CLIENTS), "--tokens", str(TOKENS))
    with loaded(stand.platform.cluster, engine.host, engine.name, *options) as end:
        episode = act()
        tally = end()
    row = Row.of(tally, episode, may_die=may_die)
    counts = f"{row.whole:7} {row.taken:6} {row.refused:8} {len(row.others):7}"
    away = "turned away for" if episode.alone else "the Service forgot it after"
    forgotten = f"; {away} {row.seconds:.1f} s" if row.seconds else ""
    print(f"{what:34} {counts} {tally.slowest:6.1f} s  {episode.says}{forgotten}", flush=True)
    for text, count in Counter(f"{loss.fate}: {loss.text}" for loss in row.others).items():
        print(f"    {count} x {text}")
    return len(row.others)


def run(stand: Stand, rollouts: int, kills: int) -> int:
    """Every episode. Returns how many answers were lost that nobody may lose."""
    print(f"{'':34} {'whole':>7} {'killed':>6} {'refused':>8} {'others':>7} slowest")
    lost = measure("nothing, for comparison", stand, lambda: stand.killed_operator(2, 0))
    for fault in (CRASHES, NEVER_STARTS, DIES_SOON):
        what = f"a bad engine: {fault.name}"
        dies = fault is DIES_SOON
        lost += measure(what, stand, lambda f=fault: stand.bad_engine(f), may_die=dies)  # type: ignore[misc]
    lost += measure("a full cluster", stand, stand.full_cluster)
    lost += measure("all pods evicted", stand, stand.evictions)
    with joined(stand) as node:
        lost += measure("a node drained", stand, lambda: stand.drained_node(node))
        stand.spread()
        lost += measure("the operator's node drained", stand, lambda: stand.drained_node(NODE))
        stand.scale(1)
        lost += measure("the only pod's node drained", stand, stand.drained_only_pod)
        stand.scale(REPLICAS)
    for number in range(3):
        lost += measure(f"a server killed, {number + 1}", stand, stand.killed_server)
    lost += measure("the operator killed", stand, lambda: stand.killed_operator(rollouts, kills))
    with joined(stand) as node:
        lost += measure("a node dead", stand, lambda: stand.dead_node(node))
    return lost


@contextmanager
def joined(stand: Stand) -> Iterator[str]:
    """A second node with one of the two pods; it may be gone at the end."""
    cluster = stand.platform.cluster
    node = cluster.add_node()
    stand.spread()
    yield node
    if node in cluster.kubectl("get", "nodes"):
        cluster.remove_node(node)
        stand.settle()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--rollouts", type=int, default=5, help="in which the operator is killed")
    parser.add_argument("--kills", type=int, default=2, help="of the operator in each")
    options = parser.parse_args()
    built = Images.build()
    with (
        tempfile.TemporaryDirectory(prefix="bench-faults-") as folder,
        Cluster.claim("bench", images=built.all(), tied=True) as cluster,
    ):
        platform = Platform(cluster, built, TEAMS)
        platform.install()
        for fault in (CRASHES, NEVER_STARTS, DIES_SOON):
            make_runtime(platform, fault)
        uri = platform.put_model(TinyModel(family="llama").write(Path(folder)), "tiny")
        engine = Engines(platform, "faults").apply("broken", uri, serving=SERVING)
        stand = Stand(platform, engine, options.seed)
        stand.settle()
        return 1 if run(stand, options.rollouts, options.kills) else 0


if __name__ == "__main__":
    raise SystemExit(main())
