"""Builds and fetches as the pods run them: processes with nothing but an environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.fixtures import s3_server, toxiproxy
from tests.cluster.s3 import S3Server
from tests.contract.builder.hub import Hub, Repository
from tests.contract.builder.run import Bench
from tests.contract.store.place import Place
from tests.models.tiny import TinyModel

__all__ = ["s3_server", "toxiproxy"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model in two shards."""
    return TinyModel(shards=2).write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def bench(s3_server: S3Server, tmp_path: Path) -> Bench:
    """A store of the test's own, and a place to work."""
    return Bench(Place.new(s3_server), tmp_path)


@pytest.fixture
def hub(tiny: Path) -> Iterator[Hub]:
    """A hub with one small model in three degrees of openness."""
    repositories = {
        "acme/tiny": Repository(tiny),
        "acme/private": Repository(tiny, "private"),
        "acme/gated": Repository(tiny, "gated"),
    }
    with Hub(repositories) as hub:
        yield hub
