"""An operator that dies at any write of an engine's life is followed by one that ends where it
would have: nothing is lost, done twice, or left behind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from llmengine_operator.kinds import LLMENGINE
from tests.cluster.cluster import Cluster
from tests.cluster.s3 import S3Server
from tests.contract.operator.builder import Builder, request_of
from tests.contract.operator.crashing import CrashError, CrashingKube
from tests.contract.operator.running import Stepper
from tests.contract.operator.stage import Stage
from tests.contract.store.place import Place

pytestmark = pytest.mark.controlplane

# Lives that are led side by side: most of their time is the cluster's.
LIVES_AT_A_TIME = 10


class Life:
    """An engine's whole life, in phases, of each of which the operator dies at the same write."""

    def __init__(self, stage: Stage, crash_at: int = 0) -> None:
        self.stage = stage
        self.builder = Builder(stage)
        self.crash_at = crash_at
        self.kube = CrashingKube(stage.connect())
        self.operator = Stepper(stage, kube=self.kube)
        self.crashes: dict[str, str] = {}
        self.seen: dict[str, Any] = {}
        self.writes: dict[str, list[str]] = {}

    def lead(self) -> Life:
        for phase in (self.born, self.edited, self.autoscaled, self.deleted):
            self.kube.arm(self.crash_at)
            before = len(self.kube.written)
            phase()
            self.writes[phase.__name__] = self.kube.written[before:]
        return self

    def born(self) -> None:
        tolerations = [{"key": "a", "operator": "Exists"}]
        self.stage.create(serving={"replicas": 2, "tolerations": tolerations})
        self.build("v1")
        self.rest("born")

    def edited(self) -> None:
        self.stage.edit(model={"revision": "v2"}, serving={"replicas": 3, "tolerations": None})
        self.build("v2")
        self.rest("edited")

    def autoscaled(self) -> None:
        scaling = {"minReplicas": 3, "maxReplicas": 5}
        cpu = {"requests": {"cpu": "100m"}}
        serving = {"replicas": None, "autoscaling": scaling, "resources": cpu}
        self.stage.edit(serving=serving)
        self.rest("autoscaled")

    def deleted(self) -> None:
        self.stage.edit(model={"revision": "v3"})
        self.until("a third build", lambda: len(self.stage.jobs()) == 1)
        self.stage.remove(LLMENGINE, "chat")
        self.until("nothing to be left", lambda: self.stage.left() == [])

    def build(self, revision: str) -> None:
        def job() -> dict[str, Any] | None:
            jobs = [j for j in self.stage.jobs() if request_of(j).revision == revision]
            assert len(jobs) <= 1
            return jobs[0] if jobs else None

        self.builder.finish(self.until(f"a build of {revision}", job))

    def rest(self, phase: str) -> None:
        """Passes until the engine is ready and nothing more is written."""

        def ready() -> bool:
            engine = self.stage.get(LLMENGINE, "chat")
            assert engine is not None
            current = engine["status"].get("observedGeneration") == engine["metadata"]["generation"]
            return current and self.stage.conditions().get("Ready") == ("True", "Serving")

        self.until(phase, ready)
        self.kube.arm(0)
        before = len(self.kube.written)
        self.operator.run()
        assert self.kube.written[before:] == []
        self.seen[phase] = picture(self.stage)

    def until(self, what: str, predicate: Any) -> Any:
        def after_a_pass() -> Any:
            try:
                self.operator.run()
            except CrashError as crash:
                self.crashes[what] = str(crash)
                self.operator = Stepper(self.stage, kube=self.kube)
                self.operator.run()
            return predicate()

        return self.stage.until(what, after_a_pass, interval=0.3)


_FLEETING = (
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "generation",
    "time",
    "lastTransitionTime",
    "clusterIP",
    "clusterIPs",
    "llmengine.io/applied",
)


def picture(stage: Stage) -> Any:
    """All that users, and later passes, can see of an engine and its objects."""
    jobs = [job["metadata"]["annotations"] for job in stage.jobs()]
    children = {
        name: {
            "labels": o["metadata"]["labels"],
            "annotations": o["metadata"].get("annotations"),
            "owners": o["metadata"]["ownerReferences"],
            "spec": o["spec"],
            "managers": [
                m for m in o["metadata"]["managedFields"] if m["manager"].startswith("llmengine")
            ],
        }
        for name, o in stage.children().items()
    }
    text = json.dumps({"status": stage.status(), "children": children, "jobs": jobs})
    engine = stage.get(LLMENGINE, "chat")
    assert engine is not None
    suffix = stage.team.removeprefix("team")
    for own in (suffix, stage.place.location.bucket, engine["metadata"]["uid"]):
        text = text.replace(own, "")
    return _steady(json.loads(re.sub("sha256:[0-9a-f]{64}", "sha256:", text)))


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _steady(v) for k, v in value.items() if k not in _FLEETING}
    if isinstance(value, list):
        return sorted((_steady(v) for v in value), key=lambda v: json.dumps(v, sort_keys=True))
    return value


def _differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from _differences(one.get(key), other.get(key), f"{place}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _differences(a, b, f"{place}[{number}]")
    elif one != other:
        yield f"{place} is {one!r}, not {other!r}"


@pytest.fixture
def stages(
    core_cluster: Cluster, s3_server: S3Server, identity: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """Makes stages, which end with the test."""
    # Threads connect while others read the environment: a variable that goes is an error there.
    monkeypatch.setenv("KUBECONFIG", str(identity))
    with ExitStack() as stack:

        def make() -> Stage:
            place = Place.new(s3_server)
            stage = Stage.new(core_cluster, place, identity, roles=("team", "builds"))
            stack.callback(stage.close)
            return stage

        yield make


def test_a_crash_at_any_write_changes_nothing_in_the_end(stages: Any) -> None:
    whole = Life(stages()).lead()
    longest = max(len(written) for written in whole.writes.values())
    lives = [Life(stages(), number) for number in range(1, longest + 1)]
    with ThreadPoolExecutor(LIVES_AT_A_TIME) as pool:
        led = list(pool.map(Life.lead, lives))
    # How often a status is written depends on what a pass happens to see.
    writes = sum(len(written) for written in whole.writes.values())
    assert sum(len(life.crashes) for life in led) > 0.8 * writes > 20
    found = [
        f"{phase}, after {life.crashes}: {difference}"
        for life in led
        for phase, seen in whole.seen.items()
        for difference in _differences(life.seen[phase], seen)
    ]
    assert found == []
