"""Where the cluster keeps things: all in the user's cache folder, nothing in the checkout."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
REPOSITORY = SOURCES.parents[1]


class ClusterError(RuntimeError):
    """The local cluster, an image or a server of the tests is not what was asked for."""


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "llmengine"


class Folder(ABC):
    """What one supervisor, and the components that it starts, keep on disk."""

    name: str

    @property
    @abstractmethod
    def root(self) -> Path: ...

    # What outlives a stop.

    @property
    def images(self) -> Path:
        """containerd's root."""
        return self.root / "containerd"

    @property
    def logs(self) -> Path:
        """Of the last run; still there when it is over."""
        return self.root / "log"

    # What is removed at a stop.

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def control(self) -> Path:
        """The pipe on which the supervisor takes the names of components to start."""
        return self.run / "control"

    @property
    def components(self) -> Path:
        return self.run / "components"


@dataclass(frozen=True, slots=True)
class State(Folder):
    """The folder of one cluster, and of the node that its control plane shares."""

    name: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?", self.name):
            raise ClusterError(
                f'a cluster\'s name is a DNS label of at most 30 characters, not "{self.name}"'
            )

    @property
    def root(self) -> Path:
        return cache() / "clusters" / self.name

    @property
    def lock(self) -> Path:
        """Held while the cluster is started or ended."""
        return self.root.with_name(f"{self.name}.lock")

    @property
    def claim(self) -> Path:
        """Held by the process that uses the cluster for itself."""
        return self.root.with_name(f"{self.name}.claim")

    @property
    def pki(self) -> Path:
        """Outlives a stop."""
        return self.root / "pki"

    @property
    def description(self) -> Path:
        """JSON: how the running cluster was started, and who its supervisor is."""
        return self.run / "cluster.json"

    @property
    def complete(self) -> Path:
        """There once the cluster can be used: a start that was killed leaves a run without it."""
        return self.run / "complete"

    @property
    def bin(self) -> Path:
        return self.run / "bin"

    @property
    def kubeconfig(self) -> Path:
        return self.run / "kubeconfig"

    def joined(self) -> list[JoinedFolder]:
        """Those of the nodes that have joined, in this run or in an earlier one."""
        return [JoinedFolder(self, it.name) for it in sorted((self.root / "nodes").glob("*"))]


@dataclass(frozen=True, slots=True)
class JoinedFolder(Folder):
    """The folder of a node that has joined a cluster."""

    cluster: State
    name: str

    @property
    def root(self) -> Path:
        return self.cluster.root / "nodes" / self.name
