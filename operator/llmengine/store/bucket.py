"""One bucket of an S3 service: the few requests that we make, with errors that say what to do.

Names no engine and knows no layout; models are read through it as well as engines.
"""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, cast

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from llmengine import __version__
from llmengine.requests import S3Endpoint
from llmengine.store.credentials import Credentials
from llmengine.store.errors import (
    ObjectMissingError,
    StoreError,
    StoreRefusedError,
)
from llmengine.store.explain import Attempted, explain

# boto3 leaves what the wire does to a body to these; they come out of `read` as they are.
WIRE_ERRORS = (BotoCoreError, HTTPError, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class Timeouts:
    """Patience with one request: seconds to connect, seconds without a byte, and attempts."""

    connect_seconds: float = 5
    read_seconds: float = 30
    attempts: int = 4


class Body(AbstractContextManager["Body"], Protocol):
    """The bytes of an object, as they arrive."""

    def read(self, amount: int, /) -> bytes:
        """At most `amount` bytes; none at the end. Raises one of WIRE_ERRORS."""
        ...


@dataclass(frozen=True)
class StoredObject:
    """One line of a listing; `size` in bytes."""

    key: str
    size: int
    etag: str


class Bucket:
    """Requests on one bucket. Safe to share between threads.

    All methods raise StoreError; those that name one object raise ObjectMissingError when it is
    not there, unless they say otherwise.
    """

    def __init__(
        self,
        endpoint: S3Endpoint,
        name: str,
        credentials: Credentials | None = None,
        *,
        timeouts: Timeouts | None = None,
        connections: int = 16,
    ) -> None:
        """`credentials` None: whatever boto3 finds, which is how workload identity arrives.

        `connections`: how many requests may be under way at a time. Asks nothing of the service.
        """
        self.name = name
        self.endpoint = endpoint
        self._credentials = credentials
        self._client = _connect(endpoint, credentials, timeouts or Timeouts(), connections)

    def url(self, key: str = "") -> str:
        """How messages name an object, or the bucket."""
        return f"s3://{self.name}/{key}" if key else f"s3://{self.name}"

    def read(self, key: str) -> bytes:
        """A small object."""
        body = self._call("get_object", key)["Body"]
        try:
            with body:
                return cast(bytes, body.read())
        except WIRE_ERRORS as error:
            raise self.explain(error, "get_object", key) from error

    def size(self, key: str) -> int | None:
        """Bytes of an object; None when there is none."""
        try:
            return int(self._call("head_object", key)["ContentLength"])
        except ObjectMissingError:
            return None

    def write(self, key: str, data: bytes, *, only_new: bool = False) -> None:
        """Write a small JSON object; the store checks the digest of what arrives.

        `only_new` asks the store to refuse when there is an object already, which raises
        AlreadyThereError. It may do so for one's own write: a lost answer makes boto3 try again.
        """
        condition = {"IfNoneMatch": "*"} if only_new else {}
        self._call(
            "put_object",
            key,
            Body=data,
            ContentType="application/json",
            ChecksumSHA256=base64_digest(hashlib.sha256(data).hexdigest()),
            **condition,
        )

    def delete(self, key: str) -> None:
        """Remove an object; that there is none is no error."""
        self._call("delete_object", key)

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        """All objects whose key begins with `prefix`."""
        more: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", "", Prefix=prefix, **more)
            for entry in page.get("Contents", []):
                yield StoredObject(entry["Key"], int(entry["Size"]), entry["ETag"])
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def open_range(self, key: str, first: int, last: int, *, etag: str | None = None) -> Body:
        """The bytes `first` to `last`, both included; fewer when the object ends before.

        With `etag` the store refuses to mix in bytes of another version. Raises
        StoreRefusedError when the store ignores ranges.
        """
        wanted = {"Range": f"bytes={first}-{last}"} | ({"IfMatch": etag} if etag else {})
        response = self._call("get_object", key, **wanted)
        if not response.get("ContentRange", "").startswith(f"bytes {first}-"):
            raise StoreRefusedError(
                f"the store at {self.address} does not serve ranges of {self.url(key)}: use a"
                " store that supports the Range header"
            )
        return cast(Body, response["Body"])

    def read_range(self, key: str, first: int, last: int, *, etag: str | None = None) -> bytes:
        """A short range, in one piece."""
        with self.open_range(key, first, last, etag=etag) as body:
            try:
                return body.read(last - first + 1)
            except WIRE_ERRORS as error:
                raise self.explain(error, "get_object", key) from error

    def put_file(self, key: str, body: Any, sha256: str) -> None:
        """Write an object from an open file; the store refuses other bytes than `sha256` (hex)."""
        self._call("put_object", key, Body=body, ChecksumSHA256=base64_digest(sha256))

    def start_upload(self, key: str) -> str:
        """Begin an object of several parts. Returns the upload's id."""
        answer = self._call("create_multipart_upload", key, ChecksumAlgorithm="SHA256")
        return str(answer["UploadId"])

    def put_part(self, key: str, upload: str, number: int, body: Any, sha256: str) -> str:
        """Write part `number` (from 1); returns its ETag, which `finish_upload` needs."""
        answer = self._call(
            "upload_part",
            key,
            UploadId=upload,
            PartNumber=number,
            Body=body,
            ChecksumSHA256=base64_digest(sha256),
        )
        return str(answer["ETag"])

    def finish_upload(self, key: str, upload: str, parts: list[tuple[str, str]]) -> None:
        """Make the object of its parts, given as (ETag, SHA-256 in hex) in order."""
        entries = [
            {"PartNumber": number, "ETag": etag, "ChecksumSHA256": base64_digest(sha256)}
            for number, (etag, sha256) in enumerate(parts, start=1)
        ]
        self._call(
            "complete_multipart_upload", key, UploadId=upload, MultipartUpload={"Parts": entries}
        )

    def abort_upload(self, key: str, upload: str) -> None:
        """Give the parts of an unfinished object back."""
        self._call("abort_multipart_upload", key, UploadId=upload)

    def explain(self, error: Exception, operation: str, key: str) -> StoreError:
        """What to raise for an exception of boto3, or of the wire under a Body."""
        attempted = Attempted(operation, self.url(key), self.address, self._access_key)
        return explain(error, attempted)

    def _call(self, operation: str, key: str, **parameters: Any) -> dict[str, Any]:
        named = {"Key": key} if key else {}
        try:
            method = getattr(self._client, operation)
            return cast(dict[str, Any], method(Bucket=self.name, **named, **parameters))
        except (ClientError, *WIRE_ERRORS) as error:
            raise self.explain(error, operation, key) from error

    @property
    def address(self) -> str:
        """How messages name the service."""
        return self.endpoint.endpoint or f"AWS S3 in {self.endpoint.region}"

    @property
    def _access_key(self) -> str:
        if self._credentials is not None:
            return self._credentials.access_key_id
        found = _session().get_credentials()
        return str(found.access_key) if found is not None else ""


@cache
def _session() -> Any:
    """One for all buckets: each session holds a description of S3 of its own, 13 MB of memory."""
    return boto3.session.Session()


# Sessions are not safe to share between threads, the clients that they make are.
_connecting = threading.Lock()


def _connect(
    endpoint: S3Endpoint,
    credentials: Credentials | None,
    timeouts: Timeouts,
    connections: int,
) -> Any:
    static = {}
    if credentials is not None:
        static = {
            "aws_access_key_id": credentials.access_key_id,
            "aws_secret_access_key": credentials.secret_access_key,
            "aws_session_token": credentials.session_token,
        }
    try:
        with _connecting:
            return _session().client(
                "s3",
                region_name=endpoint.region,
                endpoint_url=endpoint.endpoint or None,
                verify=_ca_file(endpoint.ca_pem) if endpoint.ca_pem else None,
                config=_config(endpoint, timeouts, connections),
                **static,
            )
    except ValueError as error:
        raise StoreRefusedError(
            f'"{endpoint.endpoint}" is not the address of an S3 service: write it as'
            " https://HOST or https://HOST:PORT"
        ) from error


def _config(endpoint: S3Endpoint, timeouts: Timeouts, connections: int) -> Config:
    return Config(
        user_agent_extra=f"llmengine/{__version__}",
        signature_version="s3v4",
        connect_timeout=timeouts.connect_seconds,
        read_timeout=timeouts.read_seconds,
        retries={"mode": "standard", "total_max_attempts": timeouts.attempts},
        max_pool_connections=connections,
        # Every body that we send carries our own SHA-256, and every body that we get is hashed
        # by us: boto3's own CRC trailers break some stores and protect no range.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={
            "addressing_style": "path" if endpoint.path_style else "virtual",
            "payload_signing_enabled": False,
        },
    )


def base64_digest(sha256: str) -> str:
    """A hex SHA-256 as S3's checksum headers spell it."""
    return base64.b64encode(bytes.fromhex(sha256)).decode()


@cache
def _ca_file(pem: str) -> str:
    """A path for PEM text, without a disk: pods of ours have a read-only root.

    The descriptor stays open as long as the process, since OpenSSL reads the file again for each
    new connection.
    """
    descriptor = os.memfd_create("ca.pem")
    os.write(descriptor, pem.encode())
    return f"/proc/self/fd/{descriptor}"
