"""Fixtures of a whole test run: imported by the conftest.py of the tests that use them.

LLMENGINE_CLUSTER names a cluster that was started by hand, to be used instead of a new one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.images import Image
from tests.cluster.s3 import S3Server
from tests.cluster.startup import Mode
from tests.cluster.toxiproxy import Toxiproxy


@pytest.fixture(scope="session")
def cluster_images() -> list[Image]:
    """The images that the node has from the start; a conftest.py overrides it."""
    return []


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Cluster]:
    """An API server with its controllers and scheduler; cluster.fake_nodes() adds nodes."""
    yield from _cluster("control-plane", [])


@pytest.fixture(scope="session")
def node_cluster(cluster_images: list[Image]) -> Iterator[Cluster]:
    """A cluster with one real node. Its own methods reach it; all else needs in_node_network."""
    yield from _cluster("node", cluster_images)


@pytest.fixture(scope="module")
def in_node_network(node_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, with the tests of the module inside its network, pods and names included.

    It comes before any other fixture that starts threads, which would stay outside.
    """
    with node_cluster.namespace.enter():
        yield node_cluster


@pytest.fixture(scope="module")
def second_node(node_cluster: Cluster) -> Iterator[str]:
    """The name of a node that joins the cluster for the tests of the module."""
    name = node_cluster.add_node()
    yield name
    node_cluster.remove_node(name)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 server on loopback. One in a cluster's network is S3Server(node_cluster)."""
    with S3Server() as server:
        yield server


@pytest.fixture(scope="session")
def toxiproxy() -> Iterator[Toxiproxy]:
    """A Toxiproxy on loopback. One in a cluster's network is Toxiproxy(node_cluster)."""
    with Toxiproxy() as server:
        yield server


def _cluster(mode: Mode, images: list[Image]) -> Iterator[Cluster]:
    by_hand = os.environ.get("LLMENGINE_CLUSTER")
    if by_hand and Cluster.attach(by_hand).mode == mode:
        cluster = Cluster.attach(by_hand)
        if images:  # a control plane has no containerd to ask
            cluster.load(*images)
        yield cluster
        return
    with Cluster.claim(f"test-{mode}", mode=mode, images=images, tied=True) as cluster:
        yield cluster
