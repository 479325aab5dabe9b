"""Helm without a cluster, and a cluster of the charts' own: they install and remove the kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.contract.charts.helm import Helm
from tests.contract.charts.schemas import write_schemas


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return Helm(tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemas")
    write_schemas(folder)
    return folder


@pytest.fixture(scope="session")
def chart_cluster() -> Iterator[Cluster]:
    with Cluster.claim("test-charts", mode="control-plane", tied=True) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cluster_helm(chart_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return Helm(tmp_path_factory.mktemp("helm"), chart_cluster.kubeconfig)
