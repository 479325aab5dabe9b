"""What a user waits for on one node: the cluster, the first answer, and the second namespace.

Run `python -m tests.bench.cluster`, as root. SmolLM2, with images and model at hand; each row is
one event of one run, so repeat it to see how far this machine swings.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.cluster.cluster import Cluster
from tests.demo.platform import Images, Platform
from tests.e2e.engines import TEAMS, Engine, Engines
from tests.models import smollm2

SPEC = {"maxBatchSize": 8, "maxSequenceLength": 2048}


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    built, model = Images.build(), smollm2.directory()
    with Cluster.claim("bench", images=built.all(), tied=True) as cluster:
        # The first start of a claimed name imports images; the second is what a user repeats.
        cluster.down()
    began = time.monotonic()
    with Cluster.claim("bench", images=built.all(), tied=True) as cluster:
        row("cluster up, images imported before", time.monotonic() - began, "10 s")
        measure(cluster, Platform(cluster, built, TEAMS), model)
        began = time.monotonic()
    row("cluster down", time.monotonic() - began, "3 s")


def measure(cluster: Cluster, platform: Platform, model: Path) -> None:
    began = time.monotonic()
    platform.install()
    row("store and charts installed", time.monotonic() - began, "")
    uri = platform.put_model(model, "smollm2")
    engines = Engines(platform, "bench")

    began = time.monotonic()
    first = engines.apply("first", uri, namespace=TEAMS[0], engine=SPEC)
    first_token(cluster, first)
    row("kubectl apply to first token, nothing cached", time.monotonic() - began, "90 s")

    began = time.monotonic()
    second = engines.apply("second", uri, namespace=TEAMS[1], engine=SPEC)
    first_token(cluster, second)
    row("the same engine from another namespace", time.monotonic() - began, "25 s")
    if len(first.jobs()) != 1:
        raise SystemExit("the second engine was built again")


def first_token(cluster: Cluster, engine: Engine) -> None:
    """Wait until the engine is ready, then for one token of an answer."""
    engine.wait_ready(300)
    command = [sys.executable, "-m", "tests.demo.ask", f"{engine.host}:8001", engine.name]
    cluster.exec(*command, "Hello", "--max-tokens", "1", capture_output=True)


def row(what: str, seconds: float, wanted: str) -> None:
    limit = f"   (wanted: at most {wanted})" if wanted else ""
    print(f"{what:48} {seconds:6.1f} s{limit}", flush=True)


if __name__ == "__main__":
    main()
