"""The nodes of the cluster in memory, for all engines: listed at the start, then watched.

A pass over an engine asks nobody about nodes. What a watch brought is newer than a list that was
asked for before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from llmengine_operator.observation import KubeObject, Node
from llmengine_operator.parse import parse_node


class NodeBook:
    """Written by the watches and at the start, read by all workers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nodes: dict[str, Node] = {}
        self._sorted: tuple[Node, ...] | None = None
        self._told: set[str] = set()

    def load(self, read: Callable[[], Iterable[KubeObject]]) -> None:
        """Takes what `read` lists, but for nodes that a watch tells of meanwhile."""
        with self._lock:
            self._told.clear()
        listed = {obj["metadata"]["name"]: parse_node(obj) for obj in read()}
        with self._lock:
            fresh = {name: node for name, node in listed.items() if node is not None}
            for name in self._told:
                fresh.pop(name, None)
                if name in self._nodes:
                    fresh[name] = self._nodes[name]
            self._nodes, self._sorted = fresh, None

    def tell(self, name: str, obj: KubeObject | None) -> tuple[Node | None, Node | None]:
        """A node came, changed or, with None, went: what it was to engines, and what it is."""
        after = parse_node(obj) if obj is not None else None
        with self._lock:
            self._told.add(name)
            before = self._nodes.get(name)
            if before != after:
                self._sorted = None
                if after is None:
                    del self._nodes[name]
                else:
                    self._nodes[name] = after
        return before, after

    def all(self) -> tuple[Node, ...]:
        """By name."""
        with self._lock:
            if self._sorted is None:
                self._sorted = tuple(self._nodes[name] for name in sorted(self._nodes))
            return self._sorted
