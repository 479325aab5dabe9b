"""What a user reads when the store cannot be used: which object, which key, what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmengine.key import Scope
from llmengine.store import (
    BucketMissingError,
    Contents,
    Credentials,
    Store,
    StoreDeniedError,
    StoreError,
    StoreRefusedError,
    StoreUnreachableError,
    Timeouts,
)
from llmengine.store.bucket import _session
from tests.cluster.ports import free_port
from tests.cluster.s3 import S3Server
from tests.cluster.toxiproxy import Proxy
from tests.contract.store.place import IMPATIENT, Place
from tests.engines import make_engine, make_manifest

MANIFEST = f"engines/test/v1/engines/{make_manifest().key}/manifest.json"


@pytest.fixture
def no_ambient_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """boto3 finds nothing by itself, and remembers nothing that it found before or after."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    _session.cache_clear()
    yield
    _session.cache_clear()


def look(store: Store) -> None:
    store.get_manifest(make_manifest().key)


def publish(store: Store) -> None:
    store.publish_manifest(make_manifest())


@pytest.mark.parametrize("act", [look, publish])
def test_a_wrong_secret_key_is_named_without_being_shown(
    any_place: Place, act: Callable[[Store], None]
) -> None:
    wrong = Credentials(any_place.user.access_key, "not-the-secret-key-at-all")
    store = Store(any_place.location, wrong, timeouts=IMPATIENT)
    with pytest.raises(StoreDeniedError) as caught:
        act(store)
    message = str(caught.value)
    assert message == (
        f"{any_place.location.endpoint} denied s3:GetObject on"
        f" s3://{any_place.location.bucket}/{MANIFEST} to access key root..."
        " (SignatureDoesNotMatch): the secret key does not belong to it; correct"
        " AWS_SECRET_ACCESS_KEY in the Secret"
    )
    assert "not-the-secret" not in repr((caught.value, wrong, store))


def test_an_unknown_access_key_is_named_by_its_beginning(place: Place) -> None:
    nobody = Credentials("NOBODYKNOWSME", "a-secret-key-of-nobody")
    with pytest.raises(StoreDeniedError) as caught:
        look(Store(place.location, nobody, timeouts=IMPATIENT))
    message = str(caught.value)
    assert "to access key NOBO... (InvalidAccessKeyId): the service does not know this" in message
    assert "NOBODY" not in message


def test_a_reader_that_writes_is_told_which_permission_it_lacks(place: Place) -> None:
    reader = place.server.read_only_user(f"reader-{place.location.bucket}", place.location.bucket)
    store = replace(place, user=reader).store(IMPATIENT)
    with pytest.raises(StoreDeniedError) as caught:
        publish(store)
    assert (
        f"denied s3:PutObject on s3://{place.location.bucket}/{MANIFEST} to access key read..."
        in str(caught.value)
    )
    assert "give it s3:PutObject there" in str(caught.value)


def test_a_reader_fetches_what_a_writer_has_published(place: Place, tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "built", {"graph.onnx": 1000})
    bucket = place.location.bucket
    writer = place.server.read_write_user(f"writer-{bucket}", bucket, "engines/test/v1/")
    reader = place.server.read_only_user(f"reader-{bucket}", bucket, "engines/test/v1/")
    digest = engine.publish(replace(place, user=writer).store())
    store = replace(place, user=reader).store()
    manifest = store.pinned_manifest(engine.manifest.key, digest)
    store.fetch(manifest, tmp_path / "served")
    assert (tmp_path / "served/graph.onnx").read_bytes() == (
        tmp_path / "built/graph.onnx"
    ).read_bytes()


def test_a_writer_of_one_scope_may_not_write_another(place: Place, tmp_path: Path) -> None:
    bucket = place.location.bucket
    scope_only = place.server.read_write_user(
        f"team-a-{bucket}", bucket, "engines/test/v1/scopes/team-a/"
    )
    engine = make_engine(tmp_path, {"graph.onnx": 1000})
    store = replace(place, user=scope_only).store(IMPATIENT)
    engine.publish(store, Scope("team-a"))
    with pytest.raises(StoreDeniedError):
        store.publish_manifest(engine.manifest, Scope("team-b"))
    with pytest.raises(StoreDeniedError):
        engine.publish(store)


@pytest.mark.usefixtures("no_ambient_credentials")
def test_no_credentials_at_all_say_where_to_put_them(place: Place) -> None:
    with pytest.raises(StoreDeniedError, match="name a Secret with AWS_ACCESS_KEY_ID and"):
        look(Store(place.location, None, timeouts=IMPATIENT))


@pytest.mark.usefixtures("no_ambient_credentials")
def test_without_a_secret_boto3s_own_chain_is_used(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in place.user.environment().items():
        monkeypatch.setenv(name, value)
    assert Store(place.location, None, timeouts=IMPATIENT).probe().honoured


@pytest.mark.parametrize("act", [look, publish])
def test_a_missing_bucket_is_named(any_place: Place, act: Callable[[Store], None]) -> None:
    location = any_place.location.model_copy(update={"bucket": "no-such-bucket"})
    with pytest.raises(BucketMissingError) as caught:
        act(Store(location, any_place.credentials, timeouts=IMPATIENT))
    assert str(caught.value) == (
        f"the bucket s3://no-such-bucket does not exist on {location.endpoint}: create it, or"
        " correct the bucket's name"
    )


def test_a_missing_bucket_is_named_by_a_blob(place: Place, tmp_path: Path) -> None:
    location = place.location.model_copy(update={"bucket": "no-such-bucket"})
    store = Store(location, place.credentials, timeouts=IMPATIENT)
    path = tmp_path / "blob"
    path.write_bytes(b"x")
    with pytest.raises(BucketMissingError, match="s3://no-such-bucket does not exist"):
        store.put_blob(path, Contents.of(path))


@pytest.mark.parametrize("act", [look, publish])
def test_a_store_that_does_not_run_is_named(place: Place, act: Callable[[Store], None]) -> None:
    nowhere = place.at(f"127.0.0.1:{free_port('127.0.0.1')}")
    with pytest.raises(StoreUnreachableError) as caught:
        act(nowhere.store(IMPATIENT))
    assert str(caught.value) == (
        f"{nowhere.location.endpoint} cannot be reached for s3://{place.location.bucket}/{MANIFEST}"
        " (no connection): check the endpoint, the network policies and whether the service runs"
    )


def test_a_store_that_does_not_answer_is_given_up(place: Place, proxy: Proxy) -> None:
    with (
        proxy.toxic("timeout", timeout=0),
        pytest.raises(StoreUnreachableError, match="no answer in time"),
    ):
        look(place.at(proxy.address).store(Timeouts(1, 1, 1)))


def test_a_slow_store_is_no_error(place: Place, proxy: Proxy) -> None:
    with proxy.toxic("latency", latency=500):
        look(place.at(proxy.address).store(IMPATIENT))


def test_a_certificate_of_an_unknown_ca_is_no_mere_connection_problem(
    tls_server: S3Server,
) -> None:
    place = Place.new(tls_server)
    location = place.location.model_copy(update={"ca_pem": ""})
    with pytest.raises(StoreUnreachableError, match="is not trusted") as caught:
        look(Store(location, place.credentials, timeouts=IMPATIENT))
    assert "give the PEM text of its CA as caPem" in str(caught.value)


def test_an_address_that_is_none_is_refused(place: Place) -> None:
    location = place.location.model_copy(update={"endpoint": "minio:9000/nonsense"})
    with pytest.raises(StoreRefusedError, match="write it as https://HOST"):
        Store(location, place.credentials)


def test_a_store_in_trouble_may_be_asked_again_later() -> None:
    assert StoreUnreachableError.retry
    assert not any(
        kind.retry for kind in StoreError.__subclasses__() if kind is not StoreUnreachableError
    )
