"""A pod that is too small is told before anything is downloaded, with the value to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmengine.quantity import GIB
from llmengine.requests import BuildReason
from llmengine_builder import resources
from llmengine_builder.errors import BadInputError
from llmengine_builder.resources import check_disk, check_memory, memory_limit

NODE = 64 * GIB


def cgroup(folder: Path, lines: str, limits: dict[str, str]) -> int:
    """The limit of a process with these cgroups, on a node of 64 GiB."""
    membership = folder / "cgroup"
    membership.write_text(lines)
    for path, limit in limits.items():
        file = folder / "mount" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit}\n")
    return memory_limit(membership, folder / "mount", NODE)


@pytest.mark.parametrize(
    ("lines", "limits", "expected"),
    [
        pytest.param("0::/\n", {}, NODE, id="no limit at all"),
        pytest.param("0::/\n", {"memory.max": "max"}, NODE, id="version 2, unlimited"),
        pytest.param(
            "0::/\n", {"memory.max": str(2 * GIB)}, 2 * GIB, id="version 2, as in a container"
        ),
        pytest.param(
            "0::/kubepods/pod1/build\n",
            {"kubepods/pod1/build/memory.max": "max", "kubepods/pod1/memory.max": str(3 * GIB)},
            3 * GIB,
            id="version 2, the pod's limit above the container's",
        ),
        pytest.param(
            "5:memory:/kubepods/pod1\n1:name=systemd:/\n0::/\n",
            {"memory/memory.limit_in_bytes": str(4 * GIB)},
            4 * GIB,
            id="version 1, the container's cgroup mounted as the root",
        ),
        pytest.param(
            "5:memory:/\n",
            {"memory/memory.limit_in_bytes": "9223372036854771712"},
            NODE,
            id="version 1, unlimited",
        ),
        pytest.param(
            "0::/\n", {"memory.max": str(128 * GIB)}, NODE, id="a limit over the node's memory"
        ),
    ],
)
def test_the_least_limit_counts(
    tmp_path: Path, lines: str, limits: dict[str, str], expected: int
) -> None:
    assert cgroup(tmp_path, lines, limits) == expected


def test_a_process_without_cgroups_has_the_node(tmp_path: Path) -> None:
    assert memory_limit(tmp_path / "missing", tmp_path, NODE) == NODE


def test_this_machine_has_some_memory() -> None:
    assert 0 < memory_limit() < 1 << 50


def test_too_little_memory_is_told_with_what_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "memory_limit", lambda: 2 * GIB)
    check_memory(2 * GIB)
    with pytest.raises(BadInputError) as caught:
        check_memory(int(5.3 * GIB))
    assert caught.value.reason == BuildReason.MEMORY_TOO_SMALL
    assert caught.value.message == (
        "the build needs 5.30 GiB of memory, but may use 2.00 GiB: set"
        " spec.build.resources.limits.memory to 6Gi (and requests.memory, for a node that has it)"
    )


def test_a_scratch_disk_with_a_limit_is_told_with_what_is_enough(tmp_path: Path) -> None:
    check_disk(tmp_path, 1 << 20, 1 << 20)
    with pytest.raises(BadInputError) as caught:
        check_disk(tmp_path, 60 * GIB + 1, 50 * GIB)
    assert caught.value.reason == BuildReason.SCRATCH_TOO_SMALL
    assert caught.value.message == (
        "the build needs 60.0 GiB of scratch disk, but spec.build.scratch.size is 50.0 GiB: set it"
        " to 61Gi"
    )


def test_a_full_disk_is_told_with_what_is_enough(tmp_path: Path) -> None:
    with pytest.raises(
        BadInputError, match=r"are free: set spec\.build\.scratch\.size to 1048576Gi"
    ):
        check_disk(tmp_path, 1 << 50, None)
