"""A step never uses more threads than the container may run at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmengine_server.session.threads import usable_cpus


@pytest.fixture
def many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


@pytest.mark.usefixtures("many_cpus")
@pytest.mark.parametrize(
    ("files", "threads"),
    [
        pytest.param({}, 16, id="no cgroup"),
        pytest.param({"cpu.max": "max 100000\n"}, 16, id="v2 without a limit"),
        pytest.param({"cpu.max": "400000 100000\n"}, 4, id="v2, 4 CPUs"),
        pytest.param({"cpu.max": "250000 100000\n"}, 2, id="v2, 2.5 CPUs"),
        pytest.param({"cpu.max": "50000 100000\n"}, 1, id="v2, half a CPU"),
        pytest.param({"cpu.max": "9900000 100000\n"}, 16, id="v2, more than the machine has"),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            16,
            id="v1 without a limit",
        ),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            3,
            id="v1, 3 CPUs",
        ),
    ],
)
def test_threads_fit_the_quota(files: dict[str, str], threads: int, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cpus(tmp_path) == threads
