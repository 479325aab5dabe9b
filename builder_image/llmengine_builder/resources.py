"""Refuses a build that its pod is too small for, before anything is downloaded."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from llmengine.quantity import MIB, enough, readable
from llmengine.requests import BuildReason
from llmengine_builder.errors import BadInputError

# Beside the model: its graph, the descriptions, what libraries put into the scratch folder.
DISK_BESIDE_MODEL = 256 * MIB
_CGROUP_MOUNT = Path("/sys/fs/cgroup")


def check_disk(scratch: Path, needed: int, limit: int | None) -> None:
    """`needed` bytes must fit the scratch disk, of which `limit` may be used. Raises BadInputError.

    The limit of an emptyDir is not visible from inside; a pod beyond it is evicted.
    """
    free = shutil.disk_usage(scratch).free
    if limit is not None and needed > limit:
        raise BadInputError(
            BuildReason.SCRATCH_TOO_SMALL,
            f"the build needs {readable(needed)} of scratch disk, but spec.build.scratch.size is"
            f" {readable(limit)}: set it to {enough(needed)}",
        )
    if needed > free:
        raise BadInputError(
            BuildReason.SCRATCH_TOO_SMALL,
            f"the build needs {readable(needed)} of scratch disk, but {readable(free)} are free:"
            f" set spec.build.scratch.size to {enough(needed)}, and storageClassName beside it"
            " where nodes have less disk than that",
        )


def check_memory(needed: int) -> None:
    """`needed` bytes must fit what this container may use. Raises BadInputError."""
    limit = memory_limit()
    if needed <= limit:
        return
    raise BadInputError(
        BuildReason.MEMORY_TOO_SMALL,
        f"the build needs {readable(needed)} of memory, but may use {readable(limit)}: set"
        f" spec.build.resources.limits.memory to {enough(needed)} (and requests.memory, for a node"
        " that has it)",
    )


def memory_limit(
    cgroup: Path = Path("/proc/self/cgroup"), mount: Path = _CGROUP_MOUNT, total: int | None = None
) -> int:
    """Bytes that this process may use: the least of its cgroups' limits and the node's memory.

    Reads cgroup v2 and v1. `total` None: the node's memory.
    """
    limits = [total if total is not None else _node_memory()]
    try:
        lines = cgroup.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            limits += _limits_up(mount, path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits_up(mount / "memory", path, "memory.limit_in_bytes")
    return min(limits)


def _limits_up(root: Path, path: str, name: str) -> list[int]:
    """The limits of a cgroup and all above it.

    Inside a container with a cgroup namespace of its own the root is the container; without one,
    the path is the host's and may not be mounted, and the root is again what counts.
    """
    folder = root / path.strip("/")
    found = []
    while folder == root or folder.is_relative_to(root):
        try:
            text = (folder / name).read_text().strip()
        except OSError:
            text = "max"
        if text != "max":
            found.append(int(text))
        if folder == root:
            break
        folder = folder.parent
    return found


def _node_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
