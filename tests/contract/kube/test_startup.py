"""What a process waits for before it works, what it refuses, and that it always ends in time."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmengine.api.v1alpha1 import SCHEMA_REVISION, SCHEMA_REVISION_ANNOTATION
from llmengine_operator.kinds import LLMENGINE
from llmengine_operator.kube import KubeClient
from tests.contract.kube.conftest import RULES, Setting, an_engine
from tests.contract.kube.operator_process import QUICK, OperatorProcess
from tests.contract.kube.proxy import ApiProxy, Fault

pytestmark = pytest.mark.controlplane

CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/llmengines.llmengine.io"


@pytest.fixture
def operator(setting: Setting, proxy: ApiProxy, tmp_path: Path) -> OperatorProcess:
    return OperatorProcess(tmp_path, setting.kubeconfig(tmp_path, proxy.port))


@contextmanager
def revision(setting: Setting, value: str | None) -> Iterator[None]:
    """The installed CRD is of another release for a while."""

    def annotate(to: str | None) -> None:
        patch = {"metadata": {"annotations": {SCHEMA_REVISION_ANNOTATION: to}}}
        setting.cluster.api.merge(CRD_PATH, patch)

    annotate(value)
    try:
        yield
    finally:
        annotate(str(SCHEMA_REVISION))


@pytest.mark.parametrize(
    "installed", [pytest.param("0", id="older"), pytest.param(None, id="without a revision")]
)
def test_an_operator_refuses_older_crds_and_says_what_to_run(
    setting: Setting, operator: OperatorProcess, installed: str | None
) -> None:
    with revision(setting, installed), operator:
        assert operator.wait(30) == 3
        assert operator.last_words() == (
            "the CRD llmengines.llmengine.io is of revision 0, this operator needs"
            f" {SCHEMA_REVISION}; run: helm upgrade --install llmengine-crds charts/llmengine-crds"
            " --namespace llmengine-system --create-namespace"
        )
        assert operator.lines == []


def test_an_operator_works_with_newer_crds(setting: Setting, operator: OperatorProcess) -> None:
    with revision(setting, str(SCHEMA_REVISION + 1)), operator:
        operator.until_working()


def test_an_api_server_that_is_away_at_the_start_is_waited_for(
    operator: OperatorProcess, proxy: ApiProxy, kube: KubeClient, namespace: str
) -> None:
    kube.create(LLMENGINE, an_engine(namespace, "chat"))
    proxy.faults = lambda seen: Fault.UNAVAILABLE
    with operator:
        operator.until(lambda: operator.logged("waiting for the CRDs"))
        assert operator.probe("/healthz") == 200
        assert operator.probe("/readyz") == 503
        proxy.faults = lambda seen: Fault.CUT
        asked = len(proxy.requests)
        operator.until(lambda: len(proxy.requests) > asked + 2)
        proxy.faults = lambda seen: Fault.NONE
        operator.until(lambda: operator.said(ends=f"{namespace}/chat"))
        assert operator.probe("/readyz") == 200


def test_rights_that_are_missing_at_the_start_are_waited_for_and_named(
    setting: Setting, operator: OperatorProcess
) -> None:
    setting.allow([rule for rule in RULES if "customresourcedefinitions" not in rule["resources"]])
    try:
        with operator:
            operator.until(lambda: operator.logged("customresourcedefinitions"))
            assert operator.logged("is forbidden")
            setting.allow(RULES)
            operator.until_working()
    finally:
        setting.allow(RULES)


def test_a_kind_that_may_not_be_watched_ends_the_process_with_its_name(
    setting: Setting, operator: OperatorProcess
) -> None:
    setting.allow([rule for rule in RULES if "jobs" not in rule["resources"]])
    try:
        with operator:
            assert operator.wait(30) == 1
            assert "jobs" in operator.last_words()
    finally:
        setting.allow(RULES)


@pytest.mark.parametrize(
    ("fault", "stage"),
    [
        pytest.param(Fault.UNAVAILABLE, "waiting for the CRDs", id="while it waits for the CRDs"),
        pytest.param(Fault.BLACK_HOLE, None, id="while a request hangs"),
        pytest.param(Fault.NONE, "working, with", id="while it works"),
    ],
)
def test_a_signal_ends_the_process_within_ten_seconds_at_every_stage(
    operator: OperatorProcess, proxy: ApiProxy, fault: Fault, stage: str | None
) -> None:
    proxy.faults = lambda seen: fault
    with operator:
        operator.until(lambda: operator.probe("/healthz") == 200)
        operator.until(lambda: stage is None or operator.logged(stage))
        operator.send(signal.SIGTERM)
        told = time.monotonic()
        status = operator.wait(10)
        print(f"ended {time.monotonic() - told:.1f} s after SIGTERM with status {status}")
        assert status == (1 if fault is Fault.BLACK_HOLE else 0)


def test_a_pass_that_does_not_end_delays_the_end_but_not_for_ever(
    setting: Setting, kube: KubeClient, namespace: str, tmp_path: Path
) -> None:
    slow = OperatorProcess(
        tmp_path,
        setting.kubeconfig(tmp_path),
        namespace=namespace,
        lease=5,
        pass_seconds=60,
        timing={**QUICK, "longest_pass": 0.5},
    )
    with slow:
        kube.create(LLMENGINE, an_engine(namespace, "chat"))
        slow.until(lambda: slow.said(begins=f"{namespace}/chat"))
        slow.until(lambda: slow.probe("/healthz") == 503)
        slow.send(signal.SIGTERM)
        told = time.monotonic()
        slow.wait(10)
        print(f"ended {time.monotonic() - told:.1f} s after SIGTERM, in the middle of a pass")
        assert slow.logged("the lease is left to run out")
