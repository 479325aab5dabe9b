"""A real S3 server, plain and over TLS, with a bucket for each test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.cluster.fixtures import s3_server, toxiproxy
from tests.cluster.s3 import S3Server
from tests.cluster.toxiproxy import Proxy, Toxiproxy
from tests.contract.store.place import Place

__all__ = ["s3_server", "toxiproxy"]


@pytest.fixture(scope="session")
def tls_server() -> Iterator[S3Server]:
    with S3Server(name="s3-tls", tls=True) as server:
        yield server


@pytest.fixture
def place(s3_server: S3Server) -> Place:
    """A bucket of the test's own, over plain HTTP."""
    return Place.new(s3_server)


@pytest.fixture(params=["http", "https"])
def any_place(request: pytest.FixtureRequest) -> Place:
    """A bucket of the test's own, over either protocol: boto3 frames bodies differently."""
    name = "s3_server" if request.param == "http" else "tls_server"
    return Place.new(request.getfixturevalue(name))


@pytest.fixture
def proxy(place: Place, toxiproxy: Toxiproxy) -> Iterator[Proxy]:
    """A way to the server that can be disturbed."""
    added = toxiproxy.add(uuid.uuid4().hex, f"{place.server.host}:{place.server.port}")
    yield added
    added.remove()
