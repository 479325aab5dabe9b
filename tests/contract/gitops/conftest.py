"""One operator, as its image runs it, for all tests here, each of which has its own namespace."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmengine_operator.kinds import LLMENGINE
from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import control_plane, s3_server
from tests.cluster.s3 import S3Server
from tests.contract.gitops.desk import Desk
from tests.contract.operator.builder import Builder
from tests.contract.operator.command import OperatorCommand
from tests.contract.operator.conftest import core_cluster, identities, identity
from tests.contract.operator.stage import Stage
from tests.contract.store.place import Place

__all__ = ["control_plane", "core_cluster", "identities", "identity", "s3_server"]


@pytest.fixture(scope="session")
def platform(core_cluster: Cluster, s3_server: S3Server, identity: Path) -> Iterator[Stage]:
    """What an admin has set up: a runtime, a store, and the namespace of the builds."""
    made = Stage.new(core_cluster, Place.new(s3_server), identity, roles=("builds",))
    yield made
    made.close()


@pytest.fixture(scope="session")
def operator(
    platform: Stage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorCommand]:
    folder = tmp_path_factory.mktemp("operator")
    config = platform.config(watchNamespaces=[])
    with OperatorCommand(folder, config, platform.identity, platform.place) as running:
        yield running


@pytest.fixture
def stage(platform: Stage, operator: OperatorCommand) -> Iterator[Stage]:
    """A namespace of this test alone, on the platform of all."""
    team = f"team-{uuid.uuid4().hex[:6]}"
    platform.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": team}})
    made = replace(platform, spaces={**platform.spaces, "team": team})
    yield made
    for engine in made.engines():
        made.remove(LLMENGINE, engine["metadata"]["name"])
    made.until("no build to be left", lambda: made.jobs() == [])
    platform.api.request("DELETE", f"/api/v1/namespaces/{team}")


@pytest.fixture
def builder(stage: Stage) -> Builder:
    return Builder(stage)


@pytest.fixture
def desk(stage: Stage, builder: Builder, tmp_path: Path) -> Desk:
    # Nothing is in the store that another test has built.
    return Desk(stage, builder, tmp_path, revision=uuid.uuid4().hex[:8])
