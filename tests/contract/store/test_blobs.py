"""Blobs against a real S3 server: kept once, whole, and only with the bytes of their digest."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from llmengine.artifact import CHUNK_BYTES, Layout
from llmengine.key import Scope
from llmengine.store import Contents, CorruptObjectError, ObjectMissingError, StoreUnreachableError
from tests.cluster.toxiproxy import Proxy
from tests.contract.store.place import IMPATIENT, Place
from tests.engines import PREFIX


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of two chunks and a bit."""
    return _random_file(tmp_path_factory.mktemp("large") / "weights", 2 * CHUNK_BYTES + 12345)


def _random_file(path: Path, size: int) -> Path:
    path.write_bytes(hashlib.shake_128(path.name.encode()).digest(size))
    return path


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(0, id="empty"),
        pytest.param(1, id="one byte"),
        pytest.param(3_000_000, id="3 MB"),
    ],
)
def test_a_blob_lies_under_its_digest(any_place: Place, tmp_path: Path, size: int) -> None:
    path = _random_file(tmp_path / "blob", size)
    contents = Contents.of(path)
    assert any_place.store().put_blob(path, contents)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()
    stored = any_place.on_disk(f"{PREFIX}/v1/blobs/sha256/{digits[:2]}/{digits}")
    assert stored.read_bytes() == path.read_bytes()


def test_a_large_blob_arrives_whole_and_leaves_no_parts(any_place: Place, large: Path) -> None:
    contents = Contents.of(large)
    sent: list[int] = []
    assert any_place.store().put_blob(large, contents, progress=sent.append)
    stored = any_place.on_disk(Layout(PREFIX).blob(contents.digest))
    assert Contents.of(stored) == contents
    assert any_place.unfinished_uploads() == []
    assert sum(sent) == contents.size


def test_a_blob_that_is_there_is_not_sent_again(place: Place, large: Path) -> None:
    contents = Contents.of(large)
    sent: list[int] = []
    store = place.store()
    assert store.put_blob(large, contents)
    assert not store.put_blob(large, contents, progress=sent.append)
    assert sent == []


def test_a_blob_of_another_size_is_replaced(place: Place, tmp_path: Path) -> None:
    path = _random_file(tmp_path / "blob", 1000)
    contents = Contents.of(path)
    store = place.store()
    store.put_blob(path, contents)
    stored = place.on_disk(Layout(PREFIX).blob(contents.digest))
    stored.write_bytes(b"cut off")
    assert store.put_blob(path, contents)
    assert stored.read_bytes() == path.read_bytes()


def test_a_scope_keeps_blobs_of_its_own(place: Place, tmp_path: Path) -> None:
    path = _random_file(tmp_path / "blob", 10)
    contents = Contents.of(path)
    assert place.store().put_blob(path, contents, Scope("team-a"))
    assert place.store().put_blob(path, contents)
    assert all("/scopes/team-a/" in key or "/scopes/" not in key for key in place.objects())
    assert len(place.objects()) == 2


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(5, id="in the first part"),
        pytest.param(2 * CHUNK_BYTES + 5, id="in the last part"),
    ],
)
def test_a_file_that_changed_after_it_was_hashed_is_refused(
    any_place: Place, large: Path, tmp_path: Path, at: int
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(large.read_bytes())
    contents = Contents.of(path)
    _flip(path, at)
    with pytest.raises(CorruptObjectError, match="the file changed while it was read"):
        any_place.store(IMPATIENT).put_blob(path, contents)
    assert any_place.objects() == []
    assert any_place.unfinished_uploads() == []


def test_a_small_file_that_changed_after_it_was_hashed_is_refused(
    any_place: Place, tmp_path: Path
) -> None:
    path = _random_file(tmp_path / "blob", 1000)
    contents = Contents.of(path)
    _flip(path, 5)
    with pytest.raises(CorruptObjectError, match="the file changed while it was read"):
        any_place.store(IMPATIENT).put_blob(path, contents)
    assert any_place.objects() == []


def test_an_upload_that_breaks_off_leaves_no_object(
    place: Place, proxy: Proxy, large: Path
) -> None:
    store = place.at(proxy.address).store(IMPATIENT)
    with (
        proxy.toxic("limit_data", stream="upstream", bytes=CHUNK_BYTES // 2),
        pytest.raises(StoreUnreachableError, match=r"cannot be reached for s3://.*/blobs/"),
    ):
        store.put_blob(large, Contents.of(large))
    assert place.objects() == []
    assert place.unfinished_uploads() == []


def test_a_builder_that_is_stopped_gives_its_parts_back(place: Place, large: Path) -> None:
    store = place.store(IMPATIENT)
    once = threading.Lock()
    left: list[int] = []

    def stopped(count: int) -> None:
        if once.acquire(blocking=False):
            left.append(len(place.unfinished_uploads()))
            store.abort_uploads()
            left.append(len(place.unfinished_uploads()))

    with pytest.raises(ObjectMissingError):
        store.put_blob(large, Contents.of(large), progress=stopped)
    assert left == [1, 0]


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
