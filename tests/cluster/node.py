"""What tells the nodes of a cluster apart. The first shares the network of the control plane."""

from __future__ import annotations

from dataclasses import dataclass

from tests.cluster import pki
from tests.cluster.paths import Folder, JoinedFolder, State

NODE = "node-1"
NODE_IP = "10.89.0.1"
CLUSTER_CIDR = "10.244.0.0/16"


@dataclass(frozen=True, slots=True)
class Node:
    """A node with a kubelet and a containerd of its own; numbers begin with 1."""

    state: State
    number: int = 1

    @classmethod
    def of(cls, folder: Folder) -> Node:
        if isinstance(folder, JoinedFolder):
            return cls(folder.cluster, int(folder.name.removeprefix("node-")))
        assert isinstance(folder, State)
        return cls(folder)

    @property
    def first(self) -> bool:
        return self.number == 1

    @property
    def name(self) -> str:
        return f"node-{self.number}"

    @property
    def address(self) -> str:
        return f"10.89.0.{self.number}"

    @property
    def pod_cidr(self) -> str:
        return f"10.244.{self.number - 1}.0/24"

    @property
    def folder(self) -> Folder:
        return self.state if self.first else JoinedFolder(self.state, self.name)

    @property
    def cgroup(self) -> str:
        """That of the first one holds those of the others: it is the whole cluster's."""
        cluster = f"llmengine-{self.state.name}"
        return cluster if self.first else f"{cluster}/{self.name}"

    @property
    def kubelet(self) -> pki.Identity:
        name = "kubelet" if self.first else f"kubelet-{self.name}"
        return pki.client(name, f"system:node:{self.name}", "system:nodes")

    @property
    def prefix(self) -> str:
        """Of the names of its components, where they stand among those of the whole cluster."""
        return "" if self.first else f"{self.name}/"
