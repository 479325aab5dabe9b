"""One server of a tiny model for all tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmengine.artifact import Manifest
from tests.contract.triton.engines import make_engine, render_repository
from tests.contract.triton.server import Server
from tests.models.tiny import TinyModel

MODEL = "tiny-model"
# Large enough that a step takes about a millisecond: long answers can be interrupted.
TINY = TinyModel(
    hidden_size=256,
    intermediate_size=512,
    layers=4,
    heads=8,
    kv_heads=4,
    max_position_embeddings=8192,
)


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    model = TINY.write(tmp_path_factory.mktemp("model"))
    folder = tmp_path_factory.mktemp("engine") / "engine"
    return folder, make_engine(model, folder)


@pytest.fixture(scope="session")
def repository(engine: tuple[Path, Manifest], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    render_repository(*engine, MODEL, folder)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(repository, MODEL, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def new_server(repository: Path, tmp_path: Path) -> Callable[..., Server]:
    """A server that the test may ruin."""

    def make(exit_timeout: float = 20) -> Server:
        return Server(repository, MODEL, tmp_path, exit_timeout)

    return make
