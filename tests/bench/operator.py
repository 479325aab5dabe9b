"""What the operator costs: time and requests of a pass, memory, writes at rest, time to a Job.

Run `python -m tests.bench.operator`. A real API server, S3 server and operator process, with fake
nodes. A pass is measured beside the reads that it makes at least, in turns: the API server's
speed swings with the machine's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llmengine_operator.kinds import DEPLOYMENT, HPA, JOB, LLMENGINE, PDB, POD, RUNTIME, SERVICE
from llmengine_operator.strategy import rolled_out
from tests.cluster.cluster import Cluster
from tests.cluster.s3 import S3Server
from tests.cluster.waiting import wait_for
from tests.contract.operator.builder import Builder
from tests.contract.operator.command import OperatorCommand
from tests.contract.operator.gpu_pool import A10, H100, L4, T4, GpuPool
from tests.contract.operator.running import Clock, Stepper
from tests.contract.operator.setting import Identities, prepare
from tests.contract.operator.stage import Stage
from tests.contract.store.place import Place

ENGINES = 100
QUIET_ENGINES = 50
GPU_ENGINES = 10
GPU_NODES = 100
QUIET_SECONDS = 120
RESYNC_SECONDS = 50
# Several engines may come to be ready at once, on two cores.
PATIENCE = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", type=int, default=100)
    parser.add_argument("--quiet-seconds", type=float, default=QUIET_SECONDS)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="bench-operator-") as folder,
        S3Server() as store,
        Cluster.claim("bench-operator", mode="control-plane", tied=True) as cluster,
    ):
        prepare(cluster)
        identities = Identities(cluster, Path(folder))
        identity = identities.make()
        stage = Stage.new(cluster, Place.new(store), identity)
        measure(stage, Path(folder), options.passes, options.quiet_seconds)
        gpus(Stage.new(cluster, Place.new(store), identity), options.passes)


def measure(stage: Stage, folder: Path, passes: int, quiet: float) -> None:
    builder = Builder(stage)
    config = stage.config(
        watchNamespaces=[], resyncSeconds=RESYNC_SECONDS, leaderElection={"enabled": True}
    )
    with OperatorCommand(folder, config, stage.identity, stage.place) as operator:
        row("memory at the start", f"{memory(operator.pid):.0f} MiB")
        first = stage.manifest("engine-0")
        stage.api.request("POST", LLMENGINE.path(stage.team), first)
        builder.finish(stage.until_job())
        serve(stage, 1, QUIET_ENGINES)
        writes = writes_at_rest(operator, quiet)
        row(
            f"writes in {quiet:.0f} s of rest, {QUIET_ENGINES} engines",
            str(sum(writes.values())),
            "0",
        )
        if writes:
            print(dict(writes))
        row("time from apply to Job", f"{time_to_job(stage) * 1000:.0f} ms")
        serve(stage, QUIET_ENGINES, ENGINES)
        resync(operator)
        row(f"memory with {ENGINES} engines", f"{memory(operator.pid):.0f} MiB", "150 MiB")
        row("its highest", f"{memory(operator.pid, 'VmHWM'):.0f} MiB")
        new_image(stage)
    one_pass(stage, passes)


def serve(stage: Stage, first: int, end: int) -> None:
    """Engines of one key, until all of them are ready."""
    for number in range(first, end):
        stage.create(f"engine-{number}")
    began = time.monotonic()

    def ready() -> bool:
        engines = stage.items(LLMENGINE)
        return all(
            any(c["type"] == "Ready" and c["status"] == "True" for c in conditions(engine))
            for engine in engines
        )

    def conditions(engine: Mapping[str, Any]) -> Sequence[Mapping[str, str]]:
        found: Sequence[Mapping[str, str]] = engine["status"].get("conditions", ())
        return found

    wait_for(ready, PATIENCE, "all engines to be ready", interval=0.5)
    row(f"{end - first} more engines are ready after", f"{time.monotonic() - began:.1f} s")


def new_image(stage: Stage) -> None:
    """The runtime's image is edited under all engines: how many move at a time, and for how long.

    A look at all Deployments is one moment of the API server.
    """
    stage.set_image("v2")
    began = time.monotonic()
    most = 0

    def moved() -> bool:
        nonlocal most
        found = stage.items(DEPLOYMENT)
        told = [d for d in found if _image(d).endswith(":v2")]
        most = max(most, sum(not rolled_out(d) for d in told))
        return len(told) == len(found) and all(map(rolled_out, found))

    wait_for(moved, 2 * PATIENCE, "every engine to move", interval=0.1)
    row(f"a new image moves {ENGINES} engines in", f"{time.monotonic() - began:.0f} s")
    row("of these at the same moment, at most", str(most), "1")


def _image(obj: Mapping[str, Any]) -> str:
    return str(obj["spec"]["template"]["spec"]["containers"][0]["image"])


def writes_at_rest(operator: OperatorCommand, seconds: float) -> Counter[tuple[str, str]]:
    """Requests that could change something, over a time with two resyncs of every engine.

    Without the renewals of the lease, of which there is one every two seconds.
    """
    time.sleep(5)  # what was begun ends; the rest is measured, not waited for
    before = operator.requests()
    time.sleep(seconds)
    after = operator.requests()
    passes = after["get", "LLMEngine"] - before["get", "LLMEngine"]
    row("passes in that time", str(passes))
    changed = Counter(after) - Counter(before)
    return Counter(
        {
            (verb, kind): count
            for (verb, kind), count in changed.items()
            if verb not in ("get", "list") and kind != "Lease"
        }
    )


def time_to_job(stage: Stage, rounds: int = 10) -> float:
    """Seconds, the median: from the answer to a create to a Job that a list shows."""
    found = []
    for number in range(rounds):
        name = f"new-{number}"
        began = time.perf_counter()
        stage.create(name, revision=name)
        wait_for(partial(_jobs_of, stage, name), 60, "a Job", interval=0.005)
        found.append(time.perf_counter() - began)
        stage.remove(LLMENGINE, name)
        wait_for(partial(_no_job_of, stage, name), 60, "no Job", interval=0.05)
    return statistics.median(found)


def _jobs_of(stage: Stage, name: str) -> bool:
    asked = f"{stage.team}/{name}"
    jobs = stage.items(JOB, stage.builds)
    notes = [job["metadata"]["annotations"]["llmengine.io/requested-by"] for job in jobs]
    return asked in notes


def _no_job_of(stage: Stage, name: str) -> bool:
    return not _jobs_of(stage, name)


def resync(operator: OperatorCommand) -> None:
    """Waits until every engine was passed over once more."""
    before = operator.requests()["get", "LLMEngine"]

    def passed() -> bool:
        return operator.requests()["get", "LLMEngine"] >= before + 2 * ENGINES

    wait_for(passed, 4 * RESYNC_SECONDS, "two resyncs", interval=1)


def memory(pid: int, which: str = "VmRSS") -> float:
    """MiB of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{which}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no {which}")


def gpus(stage: Stage, passes: int) -> None:
    """Engines that serve on each of the kinds of GPUs of many nodes."""
    pool, builder = GpuPool(stage), Builder(stage)
    pool.make_runtime()
    for product in (H100, L4, A10, T4):
        for _ in range(GPU_NODES // 4):
            pool.add(product)
    clock = Clock()
    clock.advance(minutes=3)  # the nodes are new
    operator = Stepper(stage, config=stage.config(watchNamespaces=[stage.team]), clock=clock)
    for number in range(GPU_ENGINES):
        stage.create(f"engine-{number}")
    operator.run(1000)
    for job in stage.jobs():
        builder.finish(job)

    def ready() -> bool:
        operator.run(1000)
        return all(
            stage.conditions(f"engine-{n}")["Ready"][0] == "True" for n in range(GPU_ENGINES)
        )

    wait_for(ready, PATIENCE, "all engines to be ready", interval=0.5)
    print(f"{GPU_ENGINES} engines on 4 kinds of GPUs, {GPU_NODES} nodes:")
    timed(stage, operator, passes)


def one_pass(stage: Stage, passes: int) -> None:
    """A pass over an engine that is as it should be, in this process."""
    operator = Stepper(stage, config=stage.config(watchNamespaces=[stage.team]))
    operator.run(most=10 * ENGINES)
    timed(stage, operator, passes)


def timed(stage: Stage, operator: Stepper, passes: int) -> None:
    key = (stage.team, "engine-0")
    before = operator.client.requests
    operator.reconciler.reconcile(key)
    requests = Counter(operator.client.requests) - Counter(before)
    kube = operator.client
    labels = {"llmengine.io/engine": "engine-0"}

    def reads() -> None:
        kube.get(LLMENGINE, *key)
        kube.get(RUNTIME, None, stage.runtime)
        for kind in (DEPLOYMENT, SERVICE, HPA, PDB, POD):
            kube.list(kind, stage.team, labels=labels)

    def whole() -> None:
        operator.reconciler.reconcile(key)

    times = in_turns({"pass": whole, "reads": reads}, passes)
    median = {name: statistics.median(each) * 1000 for name, each in times.items()}
    worst = statistics.quantiles(times["pass"], n=20)[-1] * 1000
    row("a pass over an unchanged engine", f"{median['pass']:.1f} ms", "50 ms")
    row("one in twenty takes longer than", f"{worst:.1f} ms")
    row("its reads alone", f"{median['reads']:.1f} ms")
    row("pass : reads", f"{median['pass'] / median['reads']:.2f}")
    shown = ", ".join(f"{verb} {kind}" for verb, kind in sorted(requests))
    row(f"requests of a pass ({shown})", str(sum(requests.values())))


def in_turns(what: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, a number for each round, after one that does not count."""
    found: dict[str, list[float]] = {name: [] for name in what}
    for number in range(rounds + 1):
        for name, call in what.items():
            began = time.perf_counter()
            call()
            if number:
                found[name].append(time.perf_counter() - began)
    return found


def row(what: str, value: str, wanted: str = "") -> None:
    limit = f"   (wanted: at most {wanted})" if wanted else ""
    print(f"{what:52} {value:>10}{limit}", flush=True)


if __name__ == "__main__":
    main()
