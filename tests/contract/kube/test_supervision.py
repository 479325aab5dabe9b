"""Whatever makes the watches end or stall, the process ends too, and a fresh one works."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmengine_operator.kinds import JOB, LLMENGINE
from llmengine_operator.kube import KubeClient
from tests.contract.kube.conftest import RULES, Setting, a_managed_job, an_engine
from tests.contract.kube.operator_process import QUICK, OperatorProcess
from tests.contract.kube.proxy import ApiProxy, Fault, Faults, Seen

pytestmark = pytest.mark.controlplane

# Well beyond what the timing of these processes allows, well below a hang.
BOUND = 20
# Audits never: what ends the process then is kopf's own end.
NO_AUDIT = {**QUICK, "audit": {"interval": 1000}}

Heal = Callable[[], None]
Break = Callable[[Setting, ApiProxy], Heal]


def faulty(faults: Faults) -> Break:
    """Something that the proxy does."""

    def breaks(setting: Setting, proxy: ApiProxy) -> Heal:
        proxy.faults = faults

        def heal() -> None:
            proxy.faults = lambda seen: Fault.NONE

        return heal

    return breaks


def of_watches(fault: Fault) -> Break:
    return faulty(lambda seen: fault if seen.watch else Fault.NONE)


def of_kopf(fault: Fault) -> Break:
    return faulty(lambda seen: fault if seen.agent.startswith("kopf") else Fault.NONE)


def always(fault: Fault) -> Break:
    return faulty(lambda seen: fault)


def taking_away(resource: str) -> Break:
    """The right to read one kind is withdrawn; the API server lets running watches go on."""

    def breaks(setting: Setting, proxy: ApiProxy) -> Heal:
        setting.allow([rule for rule in RULES if resource not in rule["resources"]])
        return lambda: setting.allow(RULES)

    return breaks


def stopped_api_server(setting: Setting, proxy: ApiProxy) -> Heal:
    """It is alive for the kernel, which accepts connections, and answers nothing."""
    setting.cluster.send_signal("kube-apiserver", signal.SIGSTOP)
    return lambda: setting.cluster.send_signal("kube-apiserver", signal.SIGCONT)


def killed_api_server(setting: Setting, proxy: ApiProxy) -> Heal:
    setting.cluster.stop("kube-apiserver")
    return lambda: setting.cluster.start("kube-apiserver")


@contextmanager
def broken(breaks: Break, setting: Setting, proxy: ApiProxy) -> Iterator[Heal]:
    heal = breaks(setting, proxy)
    healed: list[bool] = []

    def once() -> None:
        if not healed:
            healed.append(True)
            heal()

    try:
        yield once
    finally:
        once()


@pytest.mark.parametrize(
    ("breaks", "timing", "lease", "says"),
    [
        pytest.param(
            of_kopf(Fault.UNAVAILABLE),
            NO_AUDIT,
            None,
            "the watches ended",
            id="503 for the watches",
        ),
        pytest.param(always(Fault.UNAVAILABLE), QUICK, None, "", id="503 for everything"),
        pytest.param(taking_away("pods"), QUICK, None, "cannot list Pod", id="403 for one kind"),
        pytest.param(always(Fault.THROTTLED), QUICK, None, "429", id="429 for everything"),
        pytest.param(
            of_kopf(Fault.UNAUTHORIZED), NO_AUDIT, None, "LoginError", id="401 for the watches"
        ),
        pytest.param(
            of_kopf(Fault.BLACK_HOLE), QUICK, None, "has not delivered", id="watches hang"
        ),
        pytest.param(
            of_watches(Fault.ONLY_BOOKMARKS),
            QUICK,
            None,
            "has not delivered",
            id="watches look alive and bring nothing",
        ),
        pytest.param(
            always(Fault.BLACK_HOLE), QUICK, None, "did not answer", id="everything hangs"
        ),
        pytest.param(
            always(Fault.BLACK_HOLE),
            NO_AUDIT,
            4,
            "at once: the lease",
            id="everything hangs: lease",
        ),
        pytest.param(
            stopped_api_server, QUICK, None, "did not answer", id="the API server is stopped"
        ),
        pytest.param(
            stopped_api_server, NO_AUDIT, 4, "at once: the lease", id="the API server stops: lease"
        ),
        pytest.param(killed_api_server, QUICK, None, "", id="the API server is killed"),
    ],
)
def test_the_process_ends_with_an_error_and_a_fresh_one_works(  # noqa: PLR0917 - fixtures
    setting: Setting,
    proxy: ApiProxy,
    kube: KubeClient,
    namespace: str,
    tmp_path: Path,
    breaks: Break,
    timing: dict[str, object],
    lease: float | None,
    says: str,
) -> None:
    kubeconfig = setting.kubeconfig(tmp_path, proxy.port)
    first = OperatorProcess(tmp_path, kubeconfig, timing=timing, lease=lease)
    fresh = OperatorProcess(tmp_path, kubeconfig, lease=lease)
    with first:
        first.until_working()
        kube.create(LLMENGINE, an_engine(namespace, "before"))
        first.until(lambda: first.said(ends=f"{namespace}/before"))
        with broken(breaks, setting, proxy) as heal:
            began = time.monotonic()
            if breaks not in (stopped_api_server, killed_api_server):
                kube.create(LLMENGINE, an_engine(namespace, "during"))
            assert first.wait(BOUND) == 1
            print(f"ended after {time.monotonic() - began:.1f} s: {first.last_words()}")
            assert says in first.last_words()
            assert "this process ends" in first.last_words()
            # The kubelet starts the next one while nothing is healed yet.
            with fresh:
                fresh.until(lambda: fresh.probe("/healthz") == 200)
                heal()
                fresh.until(lambda: fresh.said(ends=f"{namespace}/before"))
                kube.create(LLMENGINE, an_engine(namespace, "after"))
                fresh.until(lambda: fresh.said(ends=f"{namespace}/after"))
                assert fresh.probe("/healthz") == 200


def test_a_kind_that_discovery_did_not_know_at_the_start_is_not_missed_for_ever(
    setting: Setting, proxy: ApiProxy, kube: KubeClient, namespace: str, tmp_path: Path
) -> None:
    """kopf would go on without it: it logs that the kind cannot be served, and looks no more."""
    proxy.faults = lambda seen: Fault.MISSING if seen.path == "/apis/batch/v1" else Fault.NONE
    operator = OperatorProcess(tmp_path, setting.kubeconfig(tmp_path, proxy.port))
    with operator:
        operator.until(lambda: operator.logged("Unresolved resources cannot be served"))
        kube.create(JOB, a_managed_job(namespace, "build"))
        assert operator.wait(BOUND) == 1
    assert "the watch of jobs has not delivered" in operator.last_words()


def test_a_healthy_quiet_cluster_ends_nothing(
    setting: Setting, proxy: ApiProxy, namespace: str, tmp_path: Path
) -> None:
    operator = OperatorProcess(tmp_path, setting.kubeconfig(tmp_path, proxy.port))
    with operator:
        operator.until_working()
        operator.until(lambda: sum(_audits_pods(seen) for seen in proxy.requests) >= 6)
        assert operator.probe("/healthz") == 200
        operator.send(signal.SIGTERM)
        assert operator.wait(5) == 0


def _audits_pods(seen: Seen) -> bool:
    return seen.agent == "llmengine-operator" and seen.path == "/api/v1/pods"


def test_an_api_server_that_restarts_within_the_patience_is_survived(
    setting: Setting, proxy: ApiProxy, kube: KubeClient, namespace: str, tmp_path: Path
) -> None:
    patient = {
        "watch": {"error_backoffs": [1, 1, 2, 3, 5, 8, 13]},
        "audit": {"interval": 1, "grace": 5, "patience": 45, "retry": 0.5},
    }
    operator = OperatorProcess(tmp_path, setting.kubeconfig(tmp_path), timing=patient)
    with operator:
        operator.until_working()
        kube.create(LLMENGINE, an_engine(namespace, "before"))
        operator.until(lambda: operator.said(ends=f"{namespace}/before"))
        setting.cluster.restart("kube-apiserver")
        kube.create(LLMENGINE, an_engine(namespace, "after"))
        operator.until(lambda: operator.said(ends=f"{namespace}/after"))
        assert operator.probe("/healthz") == 200
