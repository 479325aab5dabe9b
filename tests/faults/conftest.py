"""The platform of the end-to-end tests, to be broken."""

from tests.e2e.conftest import (
    built,
    cluster_images,
    engines,
    in_node_network,
    node_cluster,
    platform,
    put,
    smollm,
    tiny,
)

__all__ = [
    "built",
    "cluster_images",
    "engines",
    "in_node_network",
    "node_cluster",
    "platform",
    "put",
    "smollm",
    "tiny",
]
