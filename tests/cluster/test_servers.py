"""The S3 server enforces its policies and survives a kill; Toxiproxy's faults reach the client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.s3 import Credentials, S3Server
from tests.cluster.toxiproxy import Toxiproxy

boto3 = pytest.importorskip("boto3")
from botocore.exceptions import ClientError, EndpointConnectionError  # noqa: E402


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as server:
        server.make_bucket("models")
        yield server


def _refused(call: Any, **parameters: Any) -> bool:
    try:
        call(**parameters)
    except ClientError as error:
        return bool(error.response["Error"]["Code"] == "AccessDenied")
    return False


def test_a_read_only_user_reads_and_lists(server: S3Server) -> None:
    server.client().put_object(Bucket="models", Key="a/x", Body=b"x")
    reader = server.client(server.read_only_user("reader", "models"))
    assert reader.get_object(Bucket="models", Key="a/x")["Body"].read() == b"x"
    assert reader.list_objects_v2(Bucket="models")["KeyCount"] >= 1
    assert _refused(reader.put_object, Bucket="models", Key="a/y", Body=b"y")
    assert _refused(reader.delete_object, Bucket="models", Key="a/x")


def test_a_user_of_a_prefix_stays_within_it(server: S3Server) -> None:
    server.client().put_object(Bucket="models", Key="team-b/x", Body=b"x")
    writer = server.client(server.read_write_user("writer", "models", "team-a/"))
    writer.put_object(Bucket="models", Key="team-a/x", Body=b"x")
    assert writer.list_objects_v2(Bucket="models", Prefix="team-a/")["KeyCount"] == 1
    assert _refused(writer.get_object, Bucket="models", Key="team-b/x")
    assert _refused(writer.put_object, Bucket="models", Key="team-b/y", Body=b"y")
    assert _refused(writer.list_objects_v2, Bucket="models")


def test_an_unknown_key_is_refused(server: S3Server) -> None:
    stranger = server.client(Credentials("stranger", "x" * 40))
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        stranger.list_objects_v2(Bucket="models")


def test_objects_outlive_a_kill(server: S3Server) -> None:
    server.client().put_object(Bucket="models", Key="kept", Body=b"kept")
    endpoint = server.endpoint
    server.kill()
    client = server.client(retries={"total_max_attempts": 1})
    with pytest.raises(EndpointConnectionError):
        client.head_object(Bucket="models", Key="kept")
    server.start()
    assert server.endpoint == endpoint
    assert server.client().get_object(Bucket="models", Key="kept")["Body"].read() == b"kept"


def test_tls_is_served_with_a_ca_of_its_own() -> None:
    with S3Server(tls=True) as server:
        assert server.endpoint.startswith("https://")
        server.make_bucket("models")
        server.read_only_user("reader", "models")
        assert server.client().list_buckets()["Buckets"][0]["Name"] == "models"


def test_faults_are_injected_and_heal(server: S3Server) -> None:
    with Toxiproxy() as toxiproxy:
        proxy = toxiproxy.add("s3", f"{server.host}:{server.port}")
        once: dict[str, Any] = {"retries": {"total_max_attempts": 1}, "read_timeout": 5}
        client = server.client(endpoint=f"http://{proxy.address}", **once)
        client.put_object(Bucket="models", Key="faults", Body=b"x")
        with proxy.toxic("latency", latency=300):
            began = time.monotonic()
            client.head_object(Bucket="models", Key="faults")
            assert time.monotonic() - began >= 0.3
        with proxy.down(), pytest.raises(EndpointConnectionError):
            client.head_object(Bucket="models", Key="faults")
        client.head_object(Bucket="models", Key="faults")
