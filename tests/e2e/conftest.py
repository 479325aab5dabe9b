"""One node with the whole platform on it, for all end-to-end tests of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import in_node_network, node_cluster, second_node
from tests.cluster.images import Image
from tests.demo.platform import Images, Platform
from tests.e2e.engines import HUB_ADDRESS, TEAMS, Engines
from tests.models import smollm2
from tests.models.tiny import TinyModel

__all__ = ["in_node_network", "node_cluster", "second_node"]


@pytest.fixture(scope="session")
def built() -> Images:
    return Images.build()


@pytest.fixture(scope="session")
def cluster_images(built: Images) -> list[Image]:
    return built.all()


@pytest.fixture(scope="session")
def platform(node_cluster: Cluster, built: Images) -> Platform:
    platform = Platform(node_cluster, built, TEAMS)
    platform.install(resyncSeconds=60, models={"hfEndpoint": "http://{}:{}".format(*HUB_ADDRESS)})
    return platform


@pytest.fixture(scope="session")
def tiny(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a model that is built in moments. Each revision of it is another engine."""
    folder = tmp_path_factory.mktemp("tiny")
    return platform.put_model(TinyModel(family="llama").write(folder), "tiny")


@pytest.fixture(scope="session")
def smollm(platform: Platform) -> str:
    """The URI of a real language model."""
    return platform.put_model(smollm2.directory(), "smollm2")


@pytest.fixture
def engines(platform: Platform, request: pytest.FixtureRequest) -> Iterator[Engines]:
    """Engines of one test; they are gone after it."""
    mine = Engines(platform, request.node.name)
    yield mine
    mine.delete_all()


@pytest.fixture
def put(platform: Platform, tmp_path: Path) -> Put:
    return Put(platform, tmp_path)


class Put:
    """Puts models of one test into the store."""

    def __init__(self, platform: Platform, folder: Path) -> None:
        self._platform = platform
        self._folder = folder

    def __call__(self, name: str, model: TinyModel) -> str:
        return self._platform.put_model(model.write(self._folder / name), name)
