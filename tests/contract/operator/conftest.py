"""The operator's core on a real API server, with a real store, and no rights but the chart's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import control_plane, s3_server
from tests.cluster.s3 import S3Server
from tests.contract.operator.builder import Builder
from tests.contract.operator.gpu_pool import GpuPool
from tests.contract.operator.running import Clock
from tests.contract.operator.setting import Identities, prepare
from tests.contract.operator.stage import Stage
from tests.contract.store.place import Place

__all__ = ["control_plane", "s3_server"]


@pytest.fixture(scope="session")
def core_cluster(control_plane: Cluster) -> Cluster:
    prepare(control_plane)
    return control_plane


@pytest.fixture(scope="session")
def identities(core_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Identities:
    return Identities(core_cluster, tmp_path_factory.mktemp("identities"))


@pytest.fixture(scope="session")
def identity(identities: Identities) -> Path:
    """The rights of an operator of the whole cluster."""
    return identities.make()


@pytest.fixture
def stage(core_cluster: Cluster, s3_server: S3Server, identity: Path) -> Iterator[Stage]:
    made = Stage.new(core_cluster, Place.new(s3_server), identity)
    yield made
    made.close()


@pytest.fixture
def pool(stage: Stage) -> Iterator[GpuPool]:
    made = GpuPool(stage)
    made.make_runtime()
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    """Ahead, so that the nodes of a test have been there for long."""
    made = Clock()
    made.advance(hours=1)
    return made


@pytest.fixture
def builder(stage: Stage) -> Builder:
    return Builder(stage)
