"""The init container of a server pod: the pinned engine arrives whole, or the pod says why not."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from llmengine.artifact import Manifest
from tests.cluster.ports import free_port
from tests.cluster.s3 import S3Server
from tests.cluster.toxiproxy import Toxiproxy
from tests.cluster.waiting import wait_for
from tests.contract.builder.run import Bench
from tests.contract.store.place import Place
from tests.engines import Engine, make_engine

FILES = {"graph.onnx": 50_000, "tokenizer.json": 1000, "model/model.safetensors": 3_000_000}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return make_engine(tmp_path_factory.mktemp("engine"), FILES, backend_version="installed")


@pytest.fixture
def digest(bench: Bench, engine: Engine) -> str:
    """The engine lies in the store; its manifest has this digest."""
    return engine.publish(bench.place.store())


def test_a_fetch_leaves_the_engine_its_manifest_and_a_model_repository(
    bench: Bench, engine: Engine, digest: str
) -> None:
    run = bench.fetch(engine.manifest, digest)
    assert run.code == 0, run
    assert run.last["manifestDigest"] == digest
    assert run.last["sizeBytes"] == engine.manifest.size_bytes
    folder = bench.folder / "engine"
    for path in FILES:
        assert (folder / path).read_bytes() == (engine.folder / path).read_bytes()
    assert Manifest.parse((folder / "manifest.json").read_bytes()) == engine.manifest
    assert (bench.folder / "models/tiny/1/model.py").exists()


def test_a_container_that_starts_again_fetches_nothing_twice(
    bench: Bench, engine: Engine, digest: str
) -> None:
    assert bench.fetch(engine.manifest, digest).lines[0]["reused"] == 0
    again = bench.fetch(engine.manifest, digest)
    assert again.code == 0
    assert again.lines[0]["fetched"] == 0
    assert again.lines[0]["reused"] == engine.manifest.size_bytes


def test_a_file_that_was_damaged_between_two_starts_is_repaired(
    bench: Bench, engine: Engine, digest: str
) -> None:
    bench.fetch(engine.manifest, digest)
    weights = bench.folder / "engine/model/model.safetensors"
    os.truncate(weights, 1_000_000)
    assert bench.fetch(engine.manifest, digest).code == 0
    assert weights.read_bytes() == (engine.folder / "model/model.safetensors").read_bytes()


def test_a_damaged_blob_is_refused_by_name(bench: Bench, engine: Engine, digest: str) -> None:
    key = engine.blob("model/model.safetensors")
    stored = bench.place.on_disk(key)
    data = bytearray(stored.read_bytes())
    data[2_000_000] ^= 1
    stored.write_bytes(data)
    run = bench.fetch(engine.manifest, digest)
    assert run.code == 10
    assert run.last["reason"] == "EngineCorrupted"
    assert f"{key} is damaged: its bytes 0 to 2999999, fetched twice" in run.last["message"]
    assert not (bench.folder / "engine/manifest.json").exists()
    assert not (bench.folder / "models").exists()


def test_a_damaged_manifest_is_refused(bench: Bench, engine: Engine, digest: str) -> None:
    stored = bench.place.on_disk(engine.manifest_key())
    stored.write_bytes(stored.read_bytes().replace(b"a CPU", b"b CPU"))
    run = bench.fetch(engine.manifest, digest)
    assert (run.code, run.last["reason"]) == (10, "EngineCorrupted")
    assert f"but this pod was told to serve {digest}" in run.last["message"]
    assert not (bench.folder / "engine").exists()


def test_an_engine_that_was_deleted_is_named(bench: Bench, engine: Engine, digest: str) -> None:
    bench.place.on_disk(engine.manifest_key()).unlink()
    run = bench.fetch(engine.manifest, digest)
    assert (run.code, run.last["reason"]) == (10, "EngineMissing")
    assert "somebody deleted the engine from the store" in run.last["message"]


def test_an_image_with_another_version_of_the_backend_is_refused(
    bench: Bench, tmp_path: Path
) -> None:
    engine = make_engine(tmp_path / "old", {"graph.onnx": 10}, backend_version="1.0.0")
    run = bench.fetch(engine.manifest, engine.publish(bench.place.store()))
    assert (run.code, run.last["reason"]) == (10, "BackendMismatch")
    assert "built with onnxruntime 1.0.0, but this image has 1." in run.last["message"]
    assert not (bench.folder / "engine").exists()


def test_an_engine_of_another_cpu_is_refused(bench: Bench, tmp_path: Path) -> None:
    engine = make_engine(
        tmp_path / "arm", {"graph.onnx": 10}, backend_version="installed", cpu="arm64"
    )
    run = bench.fetch(engine.manifest, engine.publish(bench.place.store()))
    assert (run.code, run.last["reason"]) == (13, "WrongDevice")
    assert "the engine is for arm64, but this node is a x86_64" in run.last["message"]


def test_wrong_credentials_are_named(bench: Bench, engine: Engine, digest: str) -> None:
    run = bench.fetch(engine.manifest, digest, STORE_AWS_SECRET_ACCESS_KEY="wrong-secret-key")
    assert (run.code, run.last["reason"]) == (10, "StoreDenied")


def test_a_store_that_does_not_run_is_named(bench: Bench, engine: Engine) -> None:
    nowhere = bench.place.at(f"127.0.0.1:{free_port('127.0.0.1')}")
    run = Bench(nowhere, bench.folder).fetch(engine.manifest, "sha256:" + "0" * 64)
    assert (run.code, run.last["reason"]) == (20, "StoreUnreachable")


def test_a_fetch_without_a_request_says_who_starts_it(bench: Bench, engine: Engine) -> None:
    run = bench.fetch(engine.manifest, "sha256:" + "0" * 64, LLMENGINE_SERVE_REQUEST="{}")
    assert (run.code, run.last["reason"]) == (10, "RequestInvalid")


def test_sigterm_ends_a_fetch_at_once(
    bench: Bench, engine: Engine, digest: str, toxiproxy: Toxiproxy
) -> None:
    server = bench.place.server
    proxy = toxiproxy.add("slow-fetch", f"{server.host}:{server.port}")
    try:
        proxy.add_toxic("bandwidth", rate=100)
        slow = Bench(bench.place.at(proxy.address), bench.folder)
        process, last = slow.start_fetch(engine.manifest, digest)
        part = bench.folder / "engine/model/model.safetensors.part"
        wait_for(lambda: part.exists() and part.stat().st_blocks > 0, 20)
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        run = slow.finish(process, last)
    finally:
        proxy.remove()
    assert (run.code, run.last["reason"]) == (20, "Interrupted")
    assert time.monotonic() - begun < 3


def test_an_engine_comes_over_tls(tmp_path: Path, engine: Engine) -> None:
    with S3Server(name="s3-fetch-tls", tls=True) as server:
        bench = Bench(Place.new(server), tmp_path)
        run = bench.fetch(engine.manifest, engine.publish(bench.place.store()))
        assert run.code == 0, run


def test_a_pod_with_the_platforms_identity_needs_no_secret(
    bench: Bench, engine: Engine, digest: str
) -> None:
    run = bench.fetch(
        engine.manifest,
        digest,
        STORE_AWS_ACCESS_KEY_ID="",
        STORE_AWS_SECRET_ACCESS_KEY="",
        **bench.place.user.environment(),
    )
    assert run.code == 0, run


def test_credentials_of_the_store_do_not_come_from_the_pods_own_variables(
    bench: Bench, engine: Engine, digest: str
) -> None:
    run = bench.fetch(
        engine.manifest,
        digest,
        AWS_ACCESS_KEY_ID="someone",
        AWS_SECRET_ACCESS_KEY="elses-secret-key",
    )
    assert run.code == 0, run
