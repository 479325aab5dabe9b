"""Whole builds from each source, against a real store, as a pod runs them."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llmengine.artifact import Manifest
from llmengine.key import Scope
from llmengine.requests import BuildRequest, S3Endpoint
from llmengine_server.session.opening import open_session
from tests.cluster.s3 import S3Server
from tests.cluster.toxiproxy import Toxiproxy
from tests.cluster.waiting import wait_for
from tests.contract.builder.hub import TOKEN, Hub
from tests.contract.builder.run import OPTIONS, Bench, Run
from tests.contract.store.place import Place
from tests.models.tiny import TinyModel

PHASES = ["Resolve", "Download", "Graph", "Compile", "Verify", "Publish"]
ARTIFACT = {
    "config.json",
    "generation_config.json",
    "graph.onnx",
    "model/model-00001-of-00002.safetensors",
    "model/model-00002-of-00002.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
# Big enough to be interrupted while it is on its way, at the speed that a test gives the line.
SLOW = 300  # KB/s


def on_s3(bench: Bench, tiny: Path, hub: Hub) -> BuildRequest:
    return bench.request(bench.put_model(tiny))


def on_the_hub(bench: Bench, tiny: Path, hub: Hub) -> BuildRequest:
    return bench.request("hf://acme/tiny", hf_endpoint=hub.endpoint)


def behind_a_token(bench: Bench, tiny: Path, hub: Hub) -> BuildRequest:
    bench.environment["MODEL_HF_TOKEN"] = TOKEN
    scope = Scope("team-a")
    return bench.request("hf://acme/gated", hf_endpoint=hub.endpoint, scope=scope)


def on_a_claim(bench: Bench, tiny: Path, hub: Hub) -> BuildRequest:
    shutil.copytree(tiny, bench.folder / "claim/models/tiny")
    return bench.request("pvc://weights/models/tiny", scope=Scope("team-a", "a-claims-uid"))


def in_a_cache_of_links(bench: Bench, tiny: Path, hub: Hub) -> BuildRequest:
    snapshot, blobs = bench.folder / "claim/snapshots/rev", bench.folder / "claim/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in tiny.iterdir():
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return bench.request("pvc://weights/snapshots/rev", scope=Scope("team-a", "a-claims-uid"))


@pytest.mark.parametrize(
    "model", [on_s3, on_the_hub, behind_a_token, on_a_claim, in_a_cache_of_links]
)
def test_a_model_is_built_published_and_fetched(
    bench: Bench, tiny: Path, hub: Hub, model: Callable[[Bench, Path, Hub], BuildRequest]
) -> None:
    request = model(bench, tiny, hub)
    built = bench.build(request)
    assert built.code == 0, built
    assert built.phases == PHASES
    assert built.last == built.lines[-1]
    manifest = stored(bench, request, built)
    assert {file.path for file in manifest.files} == ARTIFACT
    assert built.last["sizeBytes"] == manifest.size_bytes
    assert list(manifest.seconds) == PHASES
    assert manifest.verification.tokens > 0
    assert manifest.speed is not None
    assert manifest.speed.slots == manifest.limits.max_batch_size
    assert all(0 < step.seconds < 10 for step in manifest.speed.steps)
    read = {file.path: file.digest for file in manifest.model_files}
    assert read == {
        path.name: "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
        for path in tiny.iterdir()
        if path.name != "model.safetensors.index.json"
    }
    fetched = bench.fetch(request, built.last["manifestDigest"])
    assert fetched.code == 0, fetched
    engine = bench.folder / "engine"
    session = open_session(engine, Manifest.parse((engine / "manifest.json").read_bytes()))
    assert session.prefill(0, [1, 2, 3], 0).finite()
    assert (bench.folder / "models/tiny/config.pbtxt").exists()


def test_a_claim_is_read_where_it_lies_and_never_written_to(
    bench: Bench, tiny: Path, hub: Hub
) -> None:
    request = on_a_claim(bench, tiny, hub)
    before = sorted((path, path.stat().st_mtime_ns) for path in bench.folder.glob("claim/**/*"))
    assert bench.build(request).code == 0
    after = sorted((path, path.stat().st_mtime_ns) for path in bench.folder.glob("claim/**/*"))
    assert after == before
    full = [path for path in bench.folder.glob("build/**/*.safetensors") if path.stat().st_blocks]
    assert sum(path.stat().st_blocks * 512 for path in full) < 100_000


def test_the_second_build_of_a_key_finds_the_first(bench: Bench, tiny: Path, hub: Hub) -> None:
    request = on_the_hub(bench, tiny, hub)
    first = bench.build(request)
    before = bench.place.objects()
    hub.asked.clear()
    second = bench.build(request)
    assert second.code == 0
    assert second.phases == ["Resolve"]
    assert second.last["manifestDigest"] == first.last["manifestDigest"]
    assert bench.place.objects() == before
    assert hub.asked == []


def test_other_options_share_the_weights_in_the_store(bench: Bench, tiny: Path, hub: Hub) -> None:
    request = on_the_hub(bench, tiny, hub)
    more = OPTIONS.model_copy(update={"max_batch_size": 4})
    other = bench.request("hf://acme/tiny", hf_endpoint=hub.endpoint, options=more)
    assert bench.build(request).code == bench.build(other).code == 0
    weights = {
        file.digest for file in stored(bench, request).files if file.path.endswith(".safetensors")
    }
    assert weights <= {file.digest for file in stored(bench, other).files}
    assert sum("/blobs/" in key for key in bench.place.objects()) == len(ARTIFACT)


def test_two_builders_of_one_key_publish_one_engine(bench: Bench, tiny: Path, hub: Hub) -> None:
    request = on_s3(bench, tiny, hub)
    started = [bench.start_build(request, name=f"build-{number}") for number in range(2)]
    runs = [bench.finish(*one) for one in started]
    assert [run.code for run in runs] == [0, 0], runs
    assert len({run.last["manifestDigest"] for run in runs}) == 1
    assert stored(bench, request, runs[0]) is not None


def test_a_build_over_tls_trusts_the_ca_that_it_is_given(tmp_path: Path, tiny: Path) -> None:
    with S3Server(name="s3-build-tls", tls=True) as server:
        bench = Bench(Place.new(server), tmp_path)
        request = bench.request(
            bench.put_model(tiny),
            model_endpoint=S3Endpoint(endpoint=server.endpoint, ca_pem=bench.place.location.ca_pem),
        )
        run = bench.build(request)
        assert run.code == 0, run
        assert stored(bench, request, run)


def test_what_a_killed_container_left_in_the_scratch_folder_does_not_matter(
    bench: Bench, tiny: Path, hub: Hub
) -> None:
    leftover = bench.folder / "build/build/model/config.json"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("half a fi")
    assert bench.build(on_s3(bench, tiny, hub)).code == 0


def test_progress_stands_in_the_store(bench: Bench, tiny: Path, hub: Hub) -> None:
    request = on_s3(bench, tiny, hub)
    assert bench.build(request).code == 0
    said = bench.place.store().get_progress(request.key)
    assert said is not None
    assert said.job == "builds/build-1"
    assert said.phase in PHASES


def test_a_store_that_takes_no_progress_fails_no_build(bench: Bench, tiny: Path, hub: Hub) -> None:
    bucket = bench.place.location.bucket
    user = bench.place.server.add_user(f"engines-only-{bucket}")
    for tree in ("engines", "blobs"):
        prefix = f"{bench.place.location.prefix}/v1/{tree}/"
        bench.place.server.allow(user, bucket, ["s3:GetObject", "s3:PutObject"], prefix)
    bench.place.server.allow_list(user, bucket)
    run = bench.build(
        on_s3(bench, tiny, hub),
        STORE_AWS_ACCESS_KEY_ID=user.access_key,
        STORE_AWS_SECRET_ACCESS_KEY=user.secret_key,
    )
    assert run.code == 0, run
    warnings = [line["warning"] for line in run.lines if "warning" in line]
    assert len(warnings) == 1
    assert "progress cannot be told" in warnings[0]


def test_a_store_that_goes_away_before_the_end_is_worth_another_try(
    bench: Bench, tiny: Path, hub: Hub, toxiproxy: Toxiproxy
) -> None:
    server = bench.place.server
    proxy = toxiproxy.add("failing-store", f"{server.host}:{server.port}")
    request = bench.request("hf://acme/tiny", hf_endpoint=hub.endpoint)
    away = request.model_copy(update={"store": bench.place.at(proxy.address).location})
    try:
        process, last = bench.start_build(away)
        read_until(process, "Download")
        proxy.disable()
        run = bench.finish(process, last)
    finally:
        proxy.remove()
    assert (run.code, run.last["reason"]) == (20, "StoreUnreachable"), run
    assert bench.build(request).code == 0


def test_sigterm_during_a_download_ends_the_build_at_once(
    bench: Bench, tiny: Path, hub: Hub, toxiproxy: Toxiproxy
) -> None:
    uri = bench.put_model(tiny)
    server = bench.place.server
    proxy = toxiproxy.add("slow-model", f"{server.host}:{server.port}")
    try:
        proxy.add_toxic("bandwidth", rate=SLOW // 10)
        endpoint = S3Endpoint(endpoint=f"http://{proxy.address}")
        run, seconds = interrupted(bench, bench.request(uri, model_endpoint=endpoint), "Download")
    finally:
        proxy.remove()
    assert run.code == 20
    assert run.last["reason"] == "Interrupted"
    assert run.last["message"].startswith("the build was stopped by SIGTERM: its pod was deleted")
    assert seconds < 5


def test_sigterm_during_an_upload_gives_the_parts_back(
    bench: Bench, tmp_path: Path, hub: Hub, toxiproxy: Toxiproxy
) -> None:
    # More than one chunk, so that it goes up in parts.
    model = TinyModel(vocab_size=300_000, tied=True, layers=1).write(tmp_path / "large")
    server = bench.place.server
    proxy = toxiproxy.add("slow-store", f"{server.host}:{server.port}")
    request = bench.request(bench.put_model(model))
    store = bench.place.at(proxy.address).location
    try:
        proxy.add_toxic("bandwidth", stream="upstream", rate=SLOW)
        slow = request.model_copy(update={"store": store})
        run, seconds = interrupted(bench, slow, "Publish", until=bench.place.unfinished_uploads)
    finally:
        proxy.remove()
    assert run.code == 20, run
    assert run.last["reason"] == "Interrupted"
    assert seconds < 5
    assert bench.place.unfinished_uploads() == []


def stored(bench: Bench, request: BuildRequest, run: Run | None = None) -> Manifest:
    """The manifest in the store; that of the run's digest."""
    found = bench.place.store().get_manifest(request.key, request.scope)
    assert found is not None
    assert run is None or found.digest == run.last["manifestDigest"]
    return found.manifest


def interrupted(
    bench: Bench, request: BuildRequest, phase: str, until: Callable[[], object] = lambda: True
) -> tuple[Run, float]:
    """A build that gets SIGTERM in a phase, and the seconds that it took to end."""
    process, last = bench.start_build(request)
    read_until(process, phase)
    wait_for(lambda: bool(until()), 20)
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    run = bench.finish(process, last)
    return run, time.monotonic() - begun


def read_until(process: subprocess.Popen[str], phase: str) -> None:
    """Read what a build says until it says that a phase has begun."""
    assert process.stdout is not None
    while f'"phase": "{phase}"' not in (line := process.stdout.readline()):
        assert line, process.communicate()
