"""Engines fetched from a real S3 server: whole and verified, or refused by name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmengine.artifact import CHUNK_BYTES
from llmengine.key import Scope
from llmengine.store import (
    Bucket,
    CorruptObjectError,
    DiskFullError,
    Fetched,
    ObjectMissingError,
    StoreUnreachableError,
)
from tests.cluster.s3 import S3Server
from tests.cluster.toxiproxy import Proxy
from tests.contract.store.place import IMPATIENT, Place
from tests.engines import Engine, make_engine

FILES = {"graph.onnx": 150_000, "model/weights": 2 * CHUNK_BYTES + 777, "model/empty": 0}
SIZE = sum(FILES.values())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return make_engine(tmp_path_factory.mktemp("engine"), FILES)


@pytest.fixture(scope="module")
def shelf(s3_server: S3Server, engine: Engine) -> Place:
    """A place that holds the engine; tests leave it as it is."""
    place = Place.new(s3_server)
    engine.publish(place.store())
    return place


@pytest.fixture(autouse=True)
def without_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmengine.store.downloads._LONGEST_PAUSE", 0.05)


def test_an_engine_arrives_as_it_was_published(
    any_place: Place, engine: Engine, tmp_path: Path
) -> None:
    store = any_place.store()
    engine.publish(store, Scope("team-a"))
    counted: list[int] = []
    fetched = store.fetch(engine.manifest, tmp_path, Scope("team-a"), progress=counted.append)
    assert fetched == Fetched(fetched=SIZE, reused=0)
    assert sum(counted) == SIZE
    assert_same(engine.folder, tmp_path)


def test_what_an_earlier_run_left_whole_is_kept(
    shelf: Place, engine: Engine, tmp_path: Path
) -> None:
    store = shelf.store()
    store.fetch(engine.manifest, tmp_path)
    (tmp_path / "graph.onnx").unlink()
    assert store.fetch(engine.manifest, tmp_path) == Fetched(150_000, SIZE - 150_000)
    assert_same(engine.folder, tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: flip(path, CHUNK_BYTES + 9), id="a flipped bit"),
        pytest.param(lambda path: os.truncate(path, CHUNK_BYTES + 9), id="a lost tail"),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes() + b"more"), id="a longer tail"
        ),
    ],
)
def test_what_an_earlier_run_left_damaged_is_repaired(
    shelf: Place, engine: Engine, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    store = shelf.store()
    store.fetch(engine.manifest, tmp_path)
    damage(tmp_path / "model/weights")
    again = store.fetch(engine.manifest, tmp_path)
    assert_same(engine.folder, tmp_path)
    assert again.fetched < SIZE


def test_a_fetch_that_was_broken_off_goes_on_where_it_was(
    shelf: Place, proxy: Proxy, engine: Engine, tmp_path: Path
) -> None:
    arrived = 0

    def cut(count: int) -> None:
        nonlocal arrived
        arrived += count
        if arrived > CHUNK_BYTES + 1_000_000:
            proxy.disable()

    # One connection, so that whole chunks have arrived when the line is cut.
    store = shelf.at(proxy.address).store(IMPATIENT)
    with pytest.raises(StoreUnreachableError):
        store.fetch(engine.manifest, tmp_path, connections=1, progress=cut)
    assert not (tmp_path / "model/weights").exists()
    proxy.enable()
    again = store.fetch(engine.manifest, tmp_path)
    assert again.reused >= CHUNK_BYTES
    assert_same(engine.folder, tmp_path)


def test_a_line_that_breaks_every_3_megabytes_delivers_all_the_same(
    shelf: Place, proxy: Proxy, engine: Engine, tmp_path: Path
) -> None:
    with proxy.toxic("limit_data", bytes=3_000_000):
        shelf.at(proxy.address).store(IMPATIENT).fetch(engine.manifest, tmp_path)
    assert_same(engine.folder, tmp_path)


def test_a_line_that_stays_dead_is_given_up(
    shelf: Place, proxy: Proxy, engine: Engine, tmp_path: Path
) -> None:
    with proxy.down(), pytest.raises(StoreUnreachableError) as caught:
        shelf.at(proxy.address).store(IMPATIENT).fetch(engine.manifest, tmp_path)
    assert proxy.address in str(caught.value)
    assert "check the endpoint, the network policies" in str(caught.value)


def test_bytes_that_are_damaged_on_their_way_are_fetched_again(
    shelf: Place, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = damage_first_answers(monkeypatch, 1)
    shelf.store().fetch(engine.manifest, tmp_path)
    assert damaged == [1]
    assert_same(engine.folder, tmp_path)


def test_a_blob_that_is_damaged_in_the_store_is_refused_by_name_and_range(
    shelf: Place, engine: Engine, tmp_path: Path
) -> None:
    key = engine.blob("model/weights")
    with changed(shelf.on_disk(key)) as stored:
        flip(stored, CHUNK_BYTES + 9)
        with pytest.raises(CorruptObjectError) as caught:
            shelf.store().fetch(engine.manifest, tmp_path)
    bucket = shelf.location.bucket
    assert str(caught.value) == (
        f"s3://{bucket}/{key} is damaged: its bytes {CHUNK_BYTES} to {2 * CHUNK_BYTES - 1}, fetched"
        f" twice, are not those that were published. Delete it and"
        f" s3://{bucket}/{engine.manifest_key()}, then set the annotation"
        " llmengine.io/requested-at to have the engine built again"
    )
    assert not (tmp_path / "model/weights").exists()


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(CHUNK_BYTES + 100, id="in the middle of a chunk"),
        pytest.param(CHUNK_BYTES, id="between two chunks"),
        pytest.param(0, id="to nothing"),
    ],
)
def test_a_blob_that_is_cut_in_the_store_is_refused_by_name(
    shelf: Place, engine: Engine, tmp_path: Path, size: int
) -> None:
    key = engine.blob("model/weights")
    with changed(shelf.on_disk(key)) as stored:
        os.truncate(stored, size)
        with pytest.raises(CorruptObjectError, match=f"{key} is damaged: it ends"):
            shelf.store().fetch(engine.manifest, tmp_path)
    assert not (tmp_path / "model/weights").exists()


def test_a_blob_that_is_gone_is_named(shelf: Place, engine: Engine, tmp_path: Path) -> None:
    key = engine.blob("graph.onnx")
    with changed(shelf.on_disk(key)) as stored:
        stored.unlink()
        with pytest.raises(ObjectMissingError, match=f"{key} does not exist. Delete it and"):
            shelf.store().fetch(engine.manifest, tmp_path)


def test_a_disk_that_is_too_small_is_named_before_anything_is_fetched(
    shelf: Place, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFullError) as caught:
        shelf.store().fetch(engine.manifest, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} has 100 MiB free, but 128 MiB are still to be fetched: give the pod more disk"
    )


def assert_same(expected: Path, found: Path) -> None:
    """`found` holds the files of `expected`, and nothing else."""
    assert {p.relative_to(found) for p in found.rglob("*") if p.is_file()} == {
        Path(f) for f in FILES
    }
    for path in FILES:
        assert (found / path).read_bytes() == (expected / path).read_bytes(), path


@contextmanager
def changed(stored: Path) -> Iterator[Path]:
    """A file of the server, to be put back as it was."""
    before = stored.with_name(stored.name + ".before")
    shutil.copy(stored, before)
    attributes = {name: os.getxattr(stored, name) for name in os.listxattr(stored)}
    try:
        yield stored
    finally:
        before.replace(stored)
        for name, value in attributes.items():
            os.setxattr(stored, name, value)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def damage_first_answers(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Flip a bit in the first piece of the first answers; returns a counter of one element."""
    open_range, count = Bucket.open_range, [0]

    class Damaged:
        def __init__(self, body: object) -> None:
            self._body = body

        def read(self, amount: int) -> bytes:
            data: bytes = self._body.read(amount)  # type: ignore[attr-defined]
            if count[0] < times:
                count[0] += 1
                data = bytes([data[0] ^ 1]) + data[1:]
            return data

        def __enter__(self) -> Damaged:
            return self

        def __exit__(self, *error: object) -> None:
            self._body.close()  # type: ignore[attr-defined]

    monkeypatch.setattr(
        Bucket, "open_range", lambda self, *args, **more: Damaged(open_range(self, *args, **more))
    )
    return count
