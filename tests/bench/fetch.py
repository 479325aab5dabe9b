"""How fast an engine is fetched, verified, beside the fastest clients that verify nothing.

Run `python -m tests.bench.fetch`. All fetch the same file from the same server on loopback, in
turns and in a new order each round: the machine's own speed swings.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from boto3.s3.transfer import TransferConfig

from llmengine.store import Contents, Store
from tests.cluster.s3 import S3Server
from tests.contract.store.place import Place
from tests.engines import Engine, make_manifest

MIB = 1 << 20
OURS = "llmengine, hashing"
Fetch = Callable[[], None]


def boto3_with(place: Place, key: str, target: Path, part: int, threads: int) -> Fetch:
    """boto3's download_file with parts of so many MiB."""
    client = place.server.client(
        max_pool_connections=threads,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    config = TransferConfig(
        multipart_chunksize=part * MIB,
        multipart_threshold=part * MIB,
        max_concurrency=threads,
        io_chunksize=MIB,
    )
    bucket = place.location.bucket
    return lambda: client.download_file(bucket, key, str(target), Config=config)


def s5cmd_with(place: Place, key: str, target: Path, part: int, threads: int) -> Fetch:
    """s5cmd, a Go program, started anew like a pod would."""
    program = Path(sys.executable).with_name("s5cmd")
    command = [str(program), "--endpoint-url", place.location.endpoint, "cp"]
    command += ["--part-size", str(part), "--concurrency", str(threads)]
    command += [f"s3://{place.location.bucket}/{key}", str(target)]
    environment = {**os.environ, **place.user.environment()}

    def fetch() -> None:
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)

    return fetch


def clients(place: Place, engine: Engine, folder: Path) -> Mapping[str, Fetch]:
    """All that are compared, by name; each leaves its file in `folder`."""
    key, target = engine.blob("weights"), folder / "other"
    store = Store(place.location, place.credentials)

    def ours() -> None:
        store.fetch(engine.manifest, folder / "ours")

    return {
        OURS: ours,
        "boto3 8 MiB x 10 (its defaults)": boto3_with(place, key, target, 8, 10),
        "boto3 16 MiB x 8": boto3_with(place, key, target, 16, 8),
        "boto3 64 MiB x 4": boto3_with(place, key, target, 64, 4),
        "s5cmd 50 MiB x 5 (its defaults)": s5cmd_with(place, key, target, 50, 5),
        "s5cmd 16 MiB x 8": s5cmd_with(place, key, target, 16, 8),
        "s5cmd 64 MiB x 4": s5cmd_with(place, key, target, 64, 4),
    }


def measure(size: int, rounds: int) -> Mapping[str, list[float]]:
    """Bytes a second of each client, a number for each round, after one that does not count."""
    with tempfile.TemporaryDirectory(prefix="fetch-") as temporary, S3Server() as server:
        folder = Path(temporary)
        engine = _publish(Place.new(server), folder, size)
        found: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            runs = list(clients(engine[0], engine[1], folder).items())
            random.shuffle(runs)
            for name, fetch in runs:
                for left in (folder / "other", folder / "ours/weights"):
                    left.unlink(missing_ok=True)
                began = time.perf_counter()
                fetch()
                seconds = time.perf_counter() - began
                if number:
                    found.setdefault(name, []).append(size / seconds)
        return found


def _publish(place: Place, folder: Path, size: int) -> tuple[Place, Engine]:
    """An engine of one file that no compression and no hole in a disk makes smaller."""
    weights = folder / "weights"
    with weights.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    lines = (Contents.of(weights).file("weights"),)
    engine = Engine(folder, make_manifest().model_copy(update={"files": lines}))
    engine.publish(place.store())
    return place, engine


def report(found: Mapping[str, list[float]]) -> str:
    """A table in Markdown, the fastest first, and the ratio that counts."""
    order = sorted(found, key=lambda name: -statistics.median(found[name]))
    lines = ["| client | median MiB/s | best MiB/s |", "|---|---|---|"]
    for name in order:
        rates = [rate / MIB for rate in found[name]]
        lines.append(f"| {name} | {statistics.median(rates):.0f} | {max(rates):.0f} |")
    others = {name: rates for name, rates in found.items() if name != OURS}
    best = max(statistics.median(rates) for rates in others.values())
    by_round = [
        mine / max(rates[number] for rates in others.values())
        for number, mine in enumerate(found[OURS])
    ]
    lines += [
        "",
        f"ours / best other, medians: {statistics.median(found[OURS]) / best:.2f} (wanted: 0.8)",
        f"ours / fastest other of each round, median: {statistics.median(by_round):.2f}",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=1024, help="size of the file")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(report(measure(options.mebibytes * MIB, options.rounds)))


if __name__ == "__main__":
    main()
