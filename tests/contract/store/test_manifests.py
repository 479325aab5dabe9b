"""Manifests against a real S3 server: the first one of a key stands, and is believed by digest."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from llmengine.artifact import Verification, digest_of
from llmengine.key import CLUSTER, Scope
from llmengine.store import (
    Bucket,
    CorruptObjectError,
    ManifestMismatchError,
    ManifestUnsupportedError,
    ObjectMissingError,
    Store,
    StoreUnreachableError,
)
from tests.cluster.toxiproxy import Proxy
from tests.contract.store.place import IMPATIENT, Place
from tests.engines import make_engine, make_manifest


def test_an_engine_that_was_never_published_is_not_there(any_place: Place) -> None:
    assert any_place.store().get_manifest(make_manifest().key) is None


def test_a_published_manifest_is_read_back_with_its_digest(any_place: Place) -> None:
    store, manifest = any_place.store(), make_manifest()
    published = store.publish_manifest(manifest)
    found = store.get_manifest(manifest.key)
    assert published.created
    assert found is not None
    assert found.manifest == manifest
    assert found.digest == published.digest == digest_of(manifest.serialize())


def test_a_scope_does_not_see_the_engines_of_another(place: Place) -> None:
    store, manifest = place.store(), make_manifest()
    store.publish_manifest(manifest, Scope("team-a"))
    assert store.get_manifest(manifest.key, Scope("team-a")) is not None
    assert store.get_manifest(manifest.key, Scope("team-b")) is None
    assert store.get_manifest(manifest.key, CLUSTER) is None


# Over TLS this server answers 412 before it has read the body, which breaks the connection the
# more surely the longer the body is.
@pytest.mark.parametrize(
    "length",
    [
        pytest.param(10, id="a short manifest"),
        pytest.param(300_000, id="a manifest of 300 kB"),
    ],
)
def test_the_first_manifest_of_a_key_stands(any_place: Place, length: int) -> None:
    first = any_place.store().publish_manifest(make_manifest(builder="a" * length))
    store = any_place.store()
    for _ in range(3):
        second = store.publish_manifest(make_manifest(builder="b" * length))
        assert not second.created
        assert second.manifest.builder_version[0] == "a"
        assert second.digest == first.digest


def test_builders_that_publish_at_once_agree_on_one_manifest(any_place: Place) -> None:
    store = any_place.store()

    def publish(number: int) -> tuple[bool, str]:
        published = store.publish_manifest(make_manifest(builder=f"builder-{number}"))
        return published.created, published.digest

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(publish, range(16)))
    assert [created for created, _ in results].count(True) == 1
    assert len({digest for _, digest in results}) == 1


@pytest.mark.parametrize(
    "attempts", [pytest.param(1, id="without retries"), pytest.param(3, id="with boto3's retries")]
)
def test_a_write_whose_answer_is_lost_is_known_as_ones_own(
    place: Place, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    # 25 bytes are "100 Continue"; after 29 the server has the object and the client no answer.
    _disturb_writes(monkeypatch, proxy, lost_after=29)
    store = _store_through(place, proxy, attempts)
    assert store.publish_manifest(make_manifest()).created
    assert place.store().get_manifest(make_manifest().key) is not None


def test_a_lost_answer_does_not_hide_that_another_was_first(
    place: Place, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = make_manifest(builder="theirs")

    def another_is_faster() -> None:
        place.store().publish_manifest(theirs)

    store = _store_through(place, proxy, attempts=3)
    _disturb_writes(monkeypatch, proxy, lost_after=29, before=another_is_faster)
    published = store.publish_manifest(make_manifest(builder="ours"))
    assert not published.created
    assert published.manifest == theirs


def test_a_write_that_never_arrives_is_an_unreachable_store(
    place: Place, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    _disturb_writes(monkeypatch, proxy, lost_after=1)
    store = _store_through(place, proxy, attempts=1)
    with pytest.raises(StoreUnreachableError, match="3 writes got no answer"):
        store.publish_manifest(make_manifest())
    assert place.store().get_manifest(make_manifest().key) is None


def test_a_write_is_repeated_until_it_arrives(
    place: Place, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store_through(place, proxy, attempts=1)
    _disturb_writes(monkeypatch, proxy, lost_after=1, times=2)
    assert store.publish_manifest(make_manifest()).created


def test_a_store_that_ignores_conditions_still_shows_whose_manifest_stands(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ignore_conditions(monkeypatch)
    first = place.store().publish_manifest(make_manifest(builder="first"))
    second = place.store().publish_manifest(make_manifest(builder="second"))
    assert first.created
    assert not second.created
    assert second.digest == first.digest


def test_a_damaged_manifest_is_refused_with_the_way_out(place: Place, tmp_path: Path) -> None:
    engine = make_engine(tmp_path, {})
    engine.publish(place.store())
    file = place.on_disk(engine.manifest_key())
    file.write_bytes(file.read_bytes().replace(b'"vocabulary": 64', b'"vocabulary": "x'))
    url = f"s3://{place.location.bucket}/{engine.manifest_key()}"
    with pytest.raises(CorruptObjectError) as caught:
        place.store().get_manifest(engine.manifest.key)
    assert str(caught.value).startswith(f"{url}: the manifest cannot be read")
    assert str(caught.value).endswith("Delete it to have the engine built again")


def test_a_manifest_under_another_key_is_refused(place: Place) -> None:
    mine, other = make_manifest(seed=1), make_manifest(seed=2)
    place.store().publish_manifest(mine)
    client = place.server.client()
    place_of = f"{place.location.prefix}/v1/engines/{{}}/manifest.json".format
    client.copy_object(
        Bucket=place.location.bucket,
        Key=place_of(other.key),
        CopySource={"Bucket": place.location.bucket, "Key": place_of(mine.key)},
    )
    with pytest.raises(CorruptObjectError, match=f"is the manifest of another engine .{mine.key}"):
        place.store().get_manifest(other.key)


def test_a_manifest_of_a_later_contract_is_not_called_damaged(place: Place) -> None:
    manifest = make_manifest().model_copy(update={"contract": 2})
    place.server.client().put_object(
        Bucket=place.location.bucket,
        Key=f"{place.location.prefix}/v1/engines/{manifest.key}/manifest.json",
        Body=manifest.serialize(),
    )
    with pytest.raises(ManifestUnsupportedError, match="contract 2, this release reads contract 1"):
        place.store().get_manifest(manifest.key)


def test_a_pinned_manifest_is_served_only_as_it_was(place: Place) -> None:
    store, manifest = place.store(), make_manifest()
    digest = store.publish_manifest(manifest).digest
    assert store.pinned_manifest(manifest.key, digest) == manifest
    better = Verification(tokens=8, mean_relative_error=0.0, max_logit_gap=0.0)
    changed = manifest.model_copy(update={"verification": better})
    place.server.client().put_object(
        Bucket=place.location.bucket,
        Key=f"{place.location.prefix}/v1/engines/{manifest.key}/manifest.json",
        Body=changed.serialize(),
    )
    with pytest.raises(ManifestMismatchError) as caught:
        store.pinned_manifest(manifest.key, digest)
    assert digest in str(caught.value)
    assert digest_of(changed.serialize()) in str(caught.value)


def test_a_pinned_engine_that_is_gone_is_named(place: Place) -> None:
    manifest = make_manifest()
    with pytest.raises(ObjectMissingError, match=f"{manifest.key}/manifest.json does not exist"):
        place.store().pinned_manifest(manifest.key, digest_of(b""))


def _store_through(place: Place, proxy: Proxy, attempts: int) -> Store:
    return place.at(proxy.address).store(replace(IMPATIENT, attempts=attempts))


def _disturb_writes(
    monkeypatch: pytest.MonkeyPatch,
    proxy: Proxy,
    *,
    lost_after: int,
    times: int = 1000,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Cut the answers to the first writes off, and none of the reads."""
    write, left = Bucket.write, times

    def disturbed(self: Bucket, key: str, data: bytes, *, only_new: bool = False) -> None:
        nonlocal left
        if self.endpoint.endpoint.endswith(proxy.address) and left > 0:
            left -= 1
            before()
            with proxy.toxic("limit_data", bytes=lost_after):
                write(self, key, data, only_new=only_new)
        else:
            write(self, key, data, only_new=only_new)

    monkeypatch.setattr(Bucket, "write", disturbed)


def _ignore_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    write = Bucket.write
    monkeypatch.setattr(
        Bucket, "write", lambda self, key, data, only_new=False: write(self, key, data)
    )
