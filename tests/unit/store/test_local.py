"""What the store does without a network: credentials, digests of files, amounts, sentences."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from llmengine.artifact import CHUNK_BYTES
from llmengine.quantity import enough, readable
from llmengine.requests import S3Endpoint
from llmengine.store import (
    Bucket,
    Contents,
    Credentials,
    DamagedUploadError,
    DiskFullError,
    IncompleteCredentialsError,
    StoreDeniedError,
    StoreError,
    StoreRefusedError,
    StoreUnreachableError,
    Wanted,
    download,
)
from llmengine.store.explain import Attempted, explain

PAIR = {"STORE_AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "STORE_AWS_SECRET_ACCESS_KEY": "geheim"}


def test_credentials_come_from_variables_with_a_prefix() -> None:
    found = Credentials.from_environment("STORE_", PAIR | {"STORE_AWS_SESSION_TOKEN": "token"})
    assert found == Credentials("AKIAEXAMPLE", "geheim", "token")
    assert Credentials.from_environment("MODEL_", PAIR) is None


def test_no_variables_mean_workload_identity() -> None:
    unprefixed = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "x"}
    assert Credentials.from_environment("STORE_", unprefixed) is None


@pytest.mark.parametrize(
    ("lost", "kept"),
    [
        ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_half_a_key_pair_is_named(lost: str, kept: str) -> None:
    half = {name: value for name, value in PAIR.items() if name != f"STORE_{lost}"}
    with pytest.raises(IncompleteCredentialsError, match=f"has {kept} but no {lost}: it needs"):
        Credentials.from_environment("STORE_", half)


def test_a_line_end_after_a_key_does_not_matter() -> None:
    lines = {name: value + "\n" for name, value in PAIR.items()}
    assert Credentials.from_environment("STORE_", lines) == Credentials("AKIAEXAMPLE", "geheim")


def test_secrets_are_not_shown() -> None:
    shown = repr(Credentials("AKIAEXAMPLE", "geheim", "a-session"))
    assert "geheim" not in shown
    assert "a-session" not in shown


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_the_contents_of_a_file_are_its_digest_and_that_of_each_chunk(
    tmp_path: Path, size: int
) -> None:
    data = hashlib.shake_128(b"seed").digest(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    contents = Contents.of(path)
    assert contents.digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert contents.size == size
    assert contents.chunks == tuple(
        hashlib.sha256(data[start : start + CHUNK_BYTES]).hexdigest()
        for start in range(0, size, CHUNK_BYTES)
    )
    assert contents.file("graph").size == size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.50 KiB"),
        (538 << 20, "538 MiB"),
        (1 << 40, "1.00 TiB"),
    ],
)
def test_bytes_are_readable(size: int, text: str) -> None:
    assert readable(size) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(1, "1Mi"), (300 << 20, "300Mi"), ((300 << 20) + 1, "301Mi"), ((5 << 30) + 1, "6Gi")],
)
def test_a_quantity_is_enough(size: int, text: str) -> None:
    assert enough(size) == text


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        pytest.param(
            403, "AccessDenied", StoreDeniedError, "give it s3:PutObject there", id="not allowed"
        ),
        pytest.param(
            400, "ExpiredToken", StoreDeniedError, "its session has expired", id="expired"
        ),
        pytest.param(
            403,
            "RequestTimeTooSkewed",
            StoreDeniedError,
            "the clock of this node",
            id="wrong clock",
        ),
        pytest.param(503, "SlowDown", StoreUnreachableError, "answered 503", id="overloaded"),
        pytest.param(500, "InternalError", StoreUnreachableError, "in trouble", id="broken"),
        pytest.param(429, "TooManyRequests", StoreUnreachableError, "in trouble", id="rate limit"),
        pytest.param(
            400, "BadDigest", DamagedUploadError, "the network damages data", id="damaged"
        ),
        pytest.param(
            301, "PermanentRedirect", StoreRefusedError, "check endpoint, region", id="elsewhere"
        ),
        pytest.param(
            501, "NotImplemented", StoreRefusedError, "refused put_object", id="no such call"
        ),
    ],
)
def test_an_answer_has_a_sentence(
    status: int, code: str, kind: type[StoreError], words: str
) -> None:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = ClientError(answer, "PutObject")
    found = explain(
        error, Attempted("put_object", "s3://bucket/key", "http://store", "AKIAEXAMPLE")
    )
    assert type(found) is kind
    assert words in str(found)
    assert "s3://bucket/key" in str(found)
    assert "AKIAEXAMPLE" not in str(found)


def test_a_disk_that_fills_up_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: Any, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskFullError, match=f"{tmp_path} has .* free, but 1.00 KiB are still"):
        download(_OneObject(b"x" * 1024), [Wanted("key", tmp_path / "file", 1024)])
    assert not (tmp_path / "file").exists()


class _OneObject(Bucket):
    """A bucket whose every object is `data`."""

    def __init__(self, data: bytes) -> None:
        super().__init__(S3Endpoint(), "bucket", Credentials("a", "b"))
        self._data = data

    def open_range(self, key: str, first: int, last: int, *, etag: str | None = None) -> Any:
        return io.BytesIO(self._data[first : last + 1])
