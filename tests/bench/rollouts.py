"""Rollouts under load: answers that were lost, and how long a revert takes beside kubectl's.

Run `python -m tests.bench.rollouts`, as root. A tiny model (or, with `--model smollm2`, a real one)
on a real node; many clients stream short answers from it all the while. A plain `kubectl rollout
undo` of the engine's own Deployment is what a revert is compared with, in turns: its operator is
stopped for as long as that takes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from llmengine_operator.strategy import rolled_out
from tests.cluster.cluster import Cluster
from tests.cluster.waiting import wait_for
from tests.demo.platform import OPERATOR_NAMESPACE, RUNTIME, Images, Platform
from tests.e2e.engines import TEAMS, Engine, Engines
from tests.e2e.load import loaded
from tests.models import smollm2
from tests.models.tiny import TinyModel

CLIENTS = 16
REPLICAS = 2
SERVING = {"replicas": REPLICAS, "terminationGracePeriodSeconds": 30}
PATIENCE = 300.0
RUNTIME_PATH = f"/apis/llmengine.io/v1alpha1/engineruntimes/{RUNTIME}"
OPERATOR = "deployment/llmengine-operator"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=20)
    parser.add_argument("--answers", type=int, default=20000, help="at the least")
    parser.add_argument("--reverts", type=int, default=3, help="of each kind, without load")
    parser.add_argument("--model", choices=("tiny", "smollm2"), default="tiny")
    options = parser.parse_args()
    built = Images.build()
    with (
        tempfile.TemporaryDirectory(prefix="bench-rollouts-") as folder,
        Cluster.claim("bench", images=built.all(), tied=True) as cluster,
    ):
        platform = Platform(cluster, built, TEAMS)
        platform.install()
        real = options.model == "smollm2"
        model = smollm2.directory() if real else TinyModel(family="llama").write(Path(folder))
        uri = platform.put_model(model, options.model)
        engines = Engines(platform, "rollouts")
        engine = engines.apply("rolling", uri, serving=SERVING)
        engine.wait_ready(PATIENCE)
        changes = Changes(engine, engines.revision)
        under_load(engine, changes, options.rollouts, options.answers)
        if options.reverts:
            reverts(engine, options.reverts)


class Changes:
    """What a user or an admin changes about an engine, kind by kind, again and again."""

    def __init__(self, engine: Engine, revision: str) -> None:
        self._engine = engine
        self._revision = revision
        self._api = engine.platform.cluster.api

    def make(self, number: int) -> str:
        """The next change; what it is called."""
        kinds = (self._model, self._option, self._runtime, self._revert)
        return kinds[number % len(kinds)](number)

    def _model(self, number: int) -> str:
        self._engine.edit({"model": {"revision": f"{self._revision}-{number}"}})
        return "another model"

    def _option(self, number: int) -> str:
        self._engine.edit({"engine": {"maxSequenceLength": 128 + number}})
        return "another option"

    def _runtime(self, number: int) -> str:
        annotations = {"example.com/edit": str(number)}
        self._api.merge(RUNTIME_PATH, {"spec": {"podDefaults": {"annotations": annotations}}})

        def rolling() -> bool:
            pods = self._engine.pods()
            return any(p["metadata"]["annotations"].items() >= annotations.items() for p in pods)

        # The engine's own generation does not tell of this edit.
        wait_for(rolling, PATIENCE, "a pod of the edited runtime")
        return "another runtime"

    def _revert(self, number: int) -> str:
        self._engine.edit({"engine": {"maxSequenceLength": 128}})
        return "back again"


def under_load(engine: Engine, changes: Changes, rollouts: int, answers: int) -> None:
    """Print what clients lost while an engine was changed again and again."""
    began = time.monotonic()
    options = ("--clients", str(CLIENTS), "--answers", str(answers))
    with loaded(engine.platform.cluster, engine.host, engine.name, *options) as end:
        for number in range(rollouts):
            started = time.monotonic()
            what = changes.make(number)
            engine.wait_ready(PATIENCE)
            wait_for(lambda: len(engine.pods()) == REPLICAS, PATIENCE, "no old pod")
            seconds = time.monotonic() - started
            print(f"rollout {number + 1:2}: {what:16} {seconds:5.1f} s", flush=True)
        tally = end()
    seconds = time.monotonic() - began
    row("answers", f"{tally.whole} ({tally.whole / seconds:.0f} a second)")
    row("lost or cut short", str(len(tally.losses)), "0")
    row("the slowest answer", f"{tally.slowest:.2f} s")
    for what, count in Counter(f"{loss.fate}: {loss.text}" for loss in tally.losses).items():
        print(f"  {count} x {what}")


def reverts(engine: Engine, rounds: int) -> None:
    """Print how long a revert takes, beside an undo of the same Deployment by kubectl."""
    there, back = {"maxSequenceLength": 200}, {"maxSequenceLength": 128}
    keys = {}
    for name, options in (("there", there), ("back", back)):
        engine.edit({"engine": options})
        engine.wait_ready(PATIENCE)
        keys[name] = engine.key
    ours, theirs = [], []
    for number in range(rounds):
        forth = number % 2 == 0
        options = there if forth else back
        key, other = (keys["there"], keys["back"]) if forth else (keys["back"], keys["there"])
        ours.append(timed(partial(engine.edit, {"engine": options}), engine, key))
        engine.wait_ready(PATIENCE)
        theirs.append(undone(engine, other))
        wait_for(partial(rolled, engine, key), PATIENCE, "the operator's own idea of it")
        engine.wait_ready(PATIENCE)
    mine, kubectl = statistics.median(ours), statistics.median(theirs)
    row("a revert, to the last pod", f"{mine:.1f} s")
    row("kubectl rollout undo", f"{kubectl:.1f} s")
    row("revert : undo", f"{mine / kubectl:.2f}", "1.2")


def undone(engine: Engine, key: str) -> float:
    """Seconds of an undo that leads to `key`, while no operator looks."""
    cluster = engine.platform.cluster
    scale = ("scale", OPERATOR, "--namespace", OPERATOR_NAMESPACE)
    cluster.kubectl(*scale, "--replicas=0")
    wait_for(lambda: not operators(cluster), PATIENCE, "no operator")
    name = deployment(engine)["metadata"]["name"]
    undo = ("rollout", "undo", f"deployment/{name}", "--namespace", engine.namespace)
    seconds = timed(partial(cluster.kubectl, *undo), engine, key)
    cluster.kubectl(*scale, "--replicas=1")
    return seconds


def timed(change: Callable[[], Any], engine: Engine, key: str) -> float:
    """Seconds from a change to a Deployment that serves `key` in full."""
    began = time.monotonic()
    change()
    wait_for(lambda: rolled(engine, key), PATIENCE, f"a rollout of {key[:12]}", interval=0.05)
    return time.monotonic() - began


def rolled(engine: Engine, key: str) -> bool:
    found = deployment(engine)
    template = found["spec"]["template"]["metadata"]["annotations"]
    return template["llmengine.io/engine-key"] == key and rolled_out(found)


def deployment(engine: Engine) -> dict[str, Any]:
    (found,) = engine.platform.cluster.api.items(
        f"/apis/apps/v1/namespaces/{engine.namespace}/deployments"
    )
    return dict(found)


def operators(cluster: Cluster) -> list[Any]:
    return cluster.api.items(f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods")


def row(what: str, value: str, wanted: str = "") -> None:
    limit = f"   (wanted: at most {wanted})" if wanted else ""
    print(f"{what:40} {value:>20}{limit}", flush=True)


if __name__ == "__main__":
    main()
