"""The probe tells a store that honours conditional writes from one that only seems to."""

from __future__ import annotations

import pytest

from llmengine.artifact import BuildProgress
from llmengine.key import Scope
from llmengine.store import AlreadyThereError, Bucket, StoreUnreachableError
from tests.cluster.toxiproxy import Proxy
from tests.contract.store.place import IMPATIENT, Place
from tests.engines import PREFIX, make_manifest


def test_a_store_that_honours_conditions_is_told(any_place: Place) -> None:
    conditions = any_place.store().probe()
    assert conditions.honoured
    assert conditions.winners == 1
    assert str(conditions) == "the store honours If-None-Match"
    assert any_place.objects() == []


def test_a_store_that_ignores_conditions_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Bucket.write
    monkeypatch.setattr(
        Bucket, "write", lambda self, key, data, only_new=False: write(self, key, data)
    )
    conditions = place.store().probe()
    assert not conditions.honoured
    assert str(conditions).startswith("the store ignores If-None-Match")


def test_a_store_that_looks_first_and_then_writes_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Bucket.write

    def check_then_write(self: Bucket, key: str, data: bytes, *, only_new: bool = False) -> None:
        if only_new and self.size(key) is not None:
            raise AlreadyThereError(key)
        write(self, key, data)

    monkeypatch.setattr(Bucket, "write", check_then_write)
    conditions = place.store().probe()
    assert conditions.refuses
    assert not conditions.honoured
    assert "simultaneous writes through" in str(conditions)


def test_a_probe_that_may_not_delete_still_answers(place: Place) -> None:
    bucket = place.location.bucket
    user = place.server.add_user(f"probe-{bucket}")
    place.server.allow(user, bucket, ["s3:GetObject", "s3:PutObject"], f"{PREFIX}/v1/")
    limited = Place(place.server, place.location, user)
    assert limited.store(IMPATIENT).probe().honoured
    assert all(key.startswith(f"{PREFIX}/v1/probe/") for key in place.objects())


def test_a_probe_of_a_dead_store_says_so(place: Place, proxy: Proxy) -> None:
    with proxy.down(), pytest.raises(StoreUnreachableError):
        place.at(proxy.address).store(IMPATIENT).probe()


def test_progress_is_read_back_until_it_is_replaced(any_place: Place) -> None:
    store, scope = any_place.store(), Scope("team-a")
    key = make_manifest().key
    assert store.get_progress(key, scope) is None
    for phase, percent in (("Download", 40), ("Compile", 5)):
        said = BuildProgress(
            key=key, phase=phase, percent=percent, heartbeat="2026-11-24T12:00:00Z", job="ns/job"
        )
        store.put_progress(said, scope)
        assert store.get_progress(key, scope) == said
    assert store.get_progress(key) is None


def test_progress_that_cannot_be_read_is_none(place: Place) -> None:
    key = make_manifest().key
    place.server.client().put_object(
        Bucket=place.location.bucket, Key=f"{PREFIX}/v1/builds/{key}.json", Body=b"{"
    )
    assert place.store().get_progress(key) is None
