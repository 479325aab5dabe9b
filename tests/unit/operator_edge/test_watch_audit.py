"""Which silences of a watch are stalls, and which are not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from llmengine_operator.kinds import JOB, RUNTIME, Kind
from llmengine_operator.kube_errors import ForbiddenError
from llmengine_operator.watch_audit import (
    AuditTiming,
    Delivered,
    Deliveries,
    StalledWatchError,
    Suspicion,
    Watch,
    WatchAudit,
    remaining,
    suspect,
)
from tests.unit.operator_edge.fake_kube import FakeKube

WATCH = Watch(JOB, {"managed": "us"})


def delivered(version: int, *, gone: bool = False) -> Delivered:
    return Delivered(version, "ns", "name", {}, {}, gone)


@pytest.mark.parametrize(
    ("before", "listed", "suspicion"),
    [
        pytest.param({"a": delivered(5)}, {"a": 5}, None, id="the list has what was delivered"),
        pytest.param({"a": delivered(6)}, {"a": 5}, None, id="the watch is ahead of the list"),
        pytest.param({}, {}, None, id="there is nothing"),
        pytest.param(
            {"a": delivered(5)}, {"a": 9}, Suspicion(WATCH, {"a": 9}, frozenset()), id="a change"
        ),
        pytest.param({}, {"a": 5}, Suspicion(WATCH, {"a": 5}, frozenset()), id="a new object"),
        pytest.param(
            {"a": delivered(9)}, {"a": 10}, Suspicion(WATCH, {"a": 10}, frozenset()), id="digits"
        ),
        pytest.param({"a": delivered(5)}, {}, Suspicion(WATCH, {}, frozenset("a")), id="gone"),
        pytest.param(
            {"a": delivered(5, gone=True)}, {}, None, id="an object that was delivered as gone"
        ),
        pytest.param(
            {"a": delivered(5, gone=True)},
            {"a": 8},
            Suspicion(WATCH, {"a": 8}, frozenset()),
            id="an object that has our label again",
        ),
    ],
)
def test_what_a_list_has_and_the_watch_has_not_brought_is_suspect(
    before: dict[str, Delivered], listed: dict[str, int], suspicion: Suspicion | None
) -> None:
    assert suspect(WATCH, before, listed) == suspicion


@pytest.mark.parametrize(
    ("after", "stays"),
    [
        pytest.param({"a": delivered(9), "b": delivered(6, gone=True)}, False, id="delivered"),
        pytest.param({"a": delivered(11, gone=True)}, False, id="deleted meanwhile, and told"),
        pytest.param({"a": delivered(8), "b": delivered(6, gone=True)}, True, id="a change short"),
        pytest.param({"b": delivered(6, gone=True)}, True, id="a new object short"),
        pytest.param({"a": delivered(9), "b": delivered(5)}, True, id="a deletion short"),
    ],
)
def test_a_suspicion_is_gone_when_the_watch_has_brought_it_all(
    after: dict[str, Delivered], stays: bool
) -> None:
    suspicion = Suspicion(WATCH, {"a": 9}, frozenset("b"))
    assert (remaining(suspicion, after) is not None) is stays


TIMING = AuditTiming(interval=0.01, grace=0.05, patience=0.1, retry=0.01)


class Cluster:
    """An API server, a watch that brings what the test lets it, and an audit in a thread."""

    def __init__(self, watch: Watch = WATCH, namespaces: tuple[str, ...] = ()) -> None:
        self.kube = FakeKube()
        self.watch = watch
        self.deliveries = Deliveries()
        self.lost: list[tuple[Kind, str]] = []
        self.error: StalledWatchError | None = None
        self.stop = threading.Event()
        self.audit = WatchAudit(
            self.kube,
            [watch],
            self.deliveries,
            namespaces=namespaces,
            lost=lambda kind, obj: self.lost.append((kind, obj.name)),
            timing=TIMING,
        )
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.audit.run(self.stop)
        except StalledWatchError as error:
            self.error = error

    def __enter__(self) -> Cluster:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(5)

    def put(self, name: str, *, deliver: bool = True) -> dict[str, Any]:
        metadata = {"name": name, "namespace": "ns", "labels": dict(self.watch.labels)}
        if not self.watch.kind.namespaced:
            del metadata["namespace"]
        obj = self.kube.put(self.watch.kind, {"metadata": metadata})
        if deliver:
            self.deliver(obj)
        return obj

    def deliver(self, obj: dict[str, Any], *, gone: bool = False) -> None:
        uid = obj["metadata"]["uid"]
        self.deliveries.record(self.watch.kind, uid, Delivered.of(obj, gone=gone))

    def audits(self, count: int) -> None:
        """Waits for so many lists."""
        wanted = len(self.kube.requests) + count
        eventually(lambda: len(self.kube.requests) >= wanted or not self.thread.is_alive())


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_watch_that_delivers_passes_every_audit() -> None:
    with Cluster() as cluster:
        for name in ("a", "b", "a"):
            cluster.put(name)
            cluster.audits(3)
        assert cluster.audit.seconds_since_passed < 1
    assert cluster.error is None
    assert set(cluster.kube.requests) == {"list Job"}


def test_a_change_that_does_not_come_is_a_stall() -> None:
    with Cluster() as cluster:
        cluster.put("a")
        cluster.audits(2)
        cluster.put("a", deliver=False)
        eventually(lambda: cluster.error is not None)
    assert "the watch of jobs has not delivered 1 change(s)" in str(cluster.error)


def test_a_change_that_comes_late_but_within_the_grace_is_none() -> None:
    with Cluster() as cluster:
        obj = cluster.put("a", deliver=False)
        cluster.audits(1)
        time.sleep(TIMING.grace / 2)
        cluster.deliver(obj)
        cluster.audits(3)
    assert cluster.error is None


def test_objects_that_are_not_ours_need_not_come() -> None:
    with Cluster() as cluster:
        cluster.kube.put(JOB, {"metadata": {"name": "x", "namespace": "ns", "labels": {}}})
        cluster.audits(10)
    assert cluster.error is None


def test_a_deletion_that_was_lost_is_made_good() -> None:
    with Cluster() as cluster:
        cluster.put("a")
        cluster.put("b")
        cluster.audits(1)
        cluster.kube.remove(JOB, "ns", "a")
        eventually(lambda: cluster.lost == [(JOB, "a")])
        cluster.audits(5)
    assert cluster.error is None
    assert cluster.lost == [(JOB, "a")]


def test_a_second_loss_with_nothing_delivered_in_between_is_a_stall() -> None:
    with Cluster() as cluster:
        for name in ("a", "b", "c"):
            cluster.put(name)
        cluster.audits(1)
        cluster.kube.remove(JOB, "ns", "a")
        eventually(lambda: cluster.lost == [(JOB, "a")])
        cluster.put("c")
        cluster.kube.remove(JOB, "ns", "b")
        eventually(lambda: cluster.lost == [(JOB, "a"), (JOB, "b")])
        cluster.kube.remove(JOB, "ns", "c")
        eventually(lambda: cluster.error is not None)
    assert "delivers no deletions, nor anything else" in str(cluster.error)


def test_deletions_that_were_delivered_are_forgotten() -> None:
    with Cluster() as cluster:
        obj = cluster.put("a")
        cluster.kube.remove(JOB, "ns", "a")
        cluster.deliver(obj, gone=True)
        eventually(lambda: not cluster.deliveries.objects(JOB))
    assert cluster.error is None
    assert cluster.lost == []


def test_what_the_watch_brings_meanwhile_is_not_forgotten_with_the_old() -> None:
    deliveries = Deliveries()
    deliveries.record(JOB, "u", delivered(5, gone=True))
    before = deliveries.objects(JOB)
    deliveries.record(JOB, "u", delivered(6))
    deliveries.drop(JOB, before)
    assert deliveries.objects(JOB) == {"u": delivered(6)}


def test_an_audit_that_is_refused_for_too_long_is_as_bad_as_a_stall() -> None:
    with Cluster() as cluster:
        cluster.put("a")
        cluster.kube.failure = ForbiddenError(403, "Forbidden", "not allowed", "list Job")
        eventually(lambda: cluster.error is not None)
    assert "nobody can tell whether the watches deliver" in str(cluster.error)
    assert "not allowed" in str(cluster.error)


def test_an_audit_that_is_refused_for_a_moment_is_made_up_for() -> None:
    with Cluster() as cluster:
        cluster.put("a")
        cluster.audits(1)
        cluster.kube.failure = ForbiddenError(403, "Forbidden", "not allowed", "list Job")
        cluster.audits(2)
        cluster.kube.failure = None
        cluster.audits(20)
    assert cluster.error is None


@pytest.mark.parametrize(
    ("watch", "requests"),
    [
        pytest.param(WATCH, {"list Job a", "list Job b"}, id="each namespace by itself"),
        pytest.param(Watch(RUNTIME), {"list EngineRuntime"}, id="a cluster-scoped kind at once"),
    ],
)
def test_only_the_watched_namespaces_are_listed(watch: Watch, requests: set[str]) -> None:
    with Cluster(watch, namespaces=("a", "b")) as cluster:
        cluster.audits(4)
    assert set(cluster.kube.requests) == requests
