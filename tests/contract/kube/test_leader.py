"""Two operators, one API server: one works, and the other takes over when it ends."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import pytest

from llmengine_operator.kinds import LEASE, LLMENGINE
from llmengine_operator.kube import KubeClient
from llmengine_operator.leader import LEASE_NAME
from tests.contract.kube.conftest import Setting, an_engine
from tests.contract.kube.operator_process import OperatorProcess
from tests.contract.kube.proxy import ApiProxy, Fault

pytestmark = pytest.mark.controlplane

LEASE_SECONDS = 5.0


@pytest.fixture
def pair(
    setting: Setting, namespace: str, tmp_path: Path
) -> Iterator[tuple[OperatorProcess, OperatorProcess]]:
    """The leader, and one that waits."""
    with ExitStack() as stack:
        processes = []
        for name in ("operator-a", "operator-b"):
            process = OperatorProcess(
                tmp_path,
                setting.kubeconfig(tmp_path),
                name=name,
                namespace=namespace,
                lease=LEASE_SECONDS,
                pass_seconds=0.3,
            )
            processes.append(stack.enter_context(process))
            expected = "working, with" if name == "operator-a" else "its holder is operator-a"
            process.until(lambda p=process, text=expected: p.logged(text))  # type: ignore[misc]
        yield processes[0], processes[1]


def holder(kube: KubeClient, namespace: str) -> str:
    return str(kube.get(LEASE, namespace, LEASE_NAME)["spec"].get("holderIdentity", ""))


def held_for(kube: KubeClient, namespace: str) -> float:
    """Seconds from the lease's acquisition to its last renewal."""
    spec = kube.get(LEASE, namespace, LEASE_NAME)["spec"]
    acquired, renewed = (datetime.fromisoformat(spec[k]) for k in ("acquireTime", "renewTime"))
    return (renewed - acquired).total_seconds()


def test_only_one_of_two_works_and_both_are_ready(
    pair: tuple[OperatorProcess, OperatorProcess], kube: KubeClient, namespace: str
) -> None:
    first, second = pair
    kube.create(LLMENGINE, an_engine(namespace, "chat"))
    first.until(lambda: first.said(ends=f"{namespace}/chat"))
    first.until(lambda: held_for(kube, namespace) > LEASE_SECONDS * 1.2)
    assert holder(kube, namespace) == "operator-a"
    assert second.lines == []
    for process in pair:
        assert process.probe("/readyz") == 200
        assert process.probe("/healthz") == 200
    assert "llmengine_leader 1.0" in first.metrics()
    assert "llmengine_leader 0.0" in second.metrics()


def test_after_a_kill_the_other_takes_over_when_the_lease_has_run_out(
    pair: tuple[OperatorProcess, OperatorProcess], kube: KubeClient, namespace: str
) -> None:
    first, second = pair
    first.send(signal.SIGKILL)
    first.wait(5)
    killed = time.monotonic()
    second.until_working()
    took = time.monotonic() - killed
    print(f"taken over {took:.1f} s after SIGKILL, lease {LEASE_SECONDS} s")
    assert LEASE_SECONDS - 1.5 < took < LEASE_SECONDS + 4
    assert holder(kube, namespace) == "operator-b"
    kube.create(LLMENGINE, an_engine(namespace, "chat"))
    second.until(lambda: second.said(ends=f"{namespace}/chat"))


def test_after_a_sigterm_the_other_takes_over_at_once_and_no_pass_is_cut_short(
    pair: tuple[OperatorProcess, OperatorProcess], kube: KubeClient, namespace: str
) -> None:
    first, second = pair
    kube.create(LLMENGINE, an_engine(namespace, "chat"))
    first.until(lambda: first.said(begins=f"{namespace}/chat"))
    first.send(signal.SIGTERM)
    told = time.monotonic()
    second.until_working()
    took = time.monotonic() - told
    print(f"taken over {took:.1f} s after SIGTERM")
    assert took < 2
    assert first.wait(5) == 0
    for word in ("begins", "ends"):
        assert first.lines.count({word: f"{namespace}/chat"}) == 1
    second.until(lambda: second.said(ends=f"{namespace}/chat"))


def test_a_leader_that_was_frozen_ends_at_once_when_it_wakes(
    pair: tuple[OperatorProcess, OperatorProcess], kube: KubeClient, namespace: str
) -> None:
    first, second = pair
    first.send(signal.SIGSTOP)
    second.until_working()
    first.send(signal.SIGCONT)
    assert first.wait(3) == 1
    assert "at once" in first.last_words()
    assert holder(kube, namespace) == "operator-b"


def test_a_leader_that_loses_the_api_server_ends_before_the_other_begins(
    setting: Setting, proxy: ApiProxy, namespace: str, tmp_path: Path
) -> None:
    cut_off = OperatorProcess(
        tmp_path,
        setting.kubeconfig(tmp_path, proxy.port),
        name="operator-a",
        namespace=namespace,
        lease=LEASE_SECONDS,
    )
    other = OperatorProcess(
        tmp_path,
        setting.kubeconfig(tmp_path),
        name="operator-b",
        namespace=namespace,
        lease=LEASE_SECONDS,
    )
    with cut_off:
        cut_off.until_working()
        with other:
            other.until(lambda: other.logged("its holder is operator-a"))
            proxy.faults = lambda seen: Fault.BLACK_HOLE
            assert cut_off.wait(20) == 1
            other.until_working()
            # By their own clocks: this process may hear of the end late.
            began = next(each["time"] for each in other.logs if "working" in each["message"])
            assert cut_off.logs[-1]["time"] < began


def test_one_replica_without_an_election_needs_no_lease(
    setting: Setting, kube: KubeClient, namespace: str, tmp_path: Path
) -> None:
    alone = OperatorProcess(tmp_path, setting.kubeconfig(tmp_path), namespace=namespace)
    with alone:
        alone.until_working()
        alone.send(signal.SIGTERM)
        assert alone.wait(5) == 0
    assert kube.list(LEASE, namespace) == []
