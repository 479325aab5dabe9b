"""Progress: each change is said once, the store hears of it, and nothing of it fails a build."""

from __future__ import annotations

import json
import threading

import pytest

from llmengine.artifact import BuildProgress
from llmengine.requests import Phase
from llmengine.store import StoreUnreachableError
from llmengine_builder import progress as progress_module
from llmengine_builder.progress import Progress

KEY = "a" * 64


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def progress(clock: Clock) -> Progress:
    return Progress(KEY, "builds/job", lambda said: None, clock=clock)


def said(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, int, float]]:
    lines = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    return [(line["phase"], line["percent"], line["seconds"]) for line in lines]


def test_each_change_is_a_line_of_json(
    progress: Progress, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.phase(Phase.RESOLVE):
        clock.now += 1
    with progress.phase(Phase.DOWNLOAD):
        progress.percent(40)
        clock.now += 2.5
        progress.percent(40)
        progress.percent(30)
        progress.percent(41)
    assert said(capsys) == [
        ("Resolve", 0, 0.0),
        ("Resolve", 100, 1.0),
        ("Download", 0, 1.0),
        ("Download", 40, 1.0),
        ("Download", 41, 3.5),
        ("Download", 100, 3.5),
    ]


def test_a_phase_that_fails_is_not_done(
    progress: Progress, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="broken"), progress.phase(Phase.COMPILE):
        raise ValueError("broken")
    assert said(capsys) == [("Compile", 0, 0.0)]


def test_seconds_are_kept_by_phase_and_the_running_one_counts(
    progress: Progress, clock: Clock
) -> None:
    with progress.phase(Phase.RESOLVE):
        clock.now += 1.5
    clock.now += 10  # between phases nothing is counted
    with progress.phase(Phase.GRAPH):
        clock.now += 0.25
        assert progress.seconds == {"Resolve": 1.5, "Graph": 0.25}
    assert progress.elapsed == 11.75


def test_bytes_become_percent_but_never_the_whole(
    progress: Progress, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.phase(Phase.PUBLISH):
        count = progress.of_bytes(1000)
        for more in (100, 400, -400, 400, 500):
            count(more)
        assert [percent for _, percent, _ in said(capsys)] == [0, 9, 49, 99]


def test_nothing_to_move_is_no_division_by_zero(progress: Progress) -> None:
    progress.of_bytes(0)(0)


def test_the_store_hears_of_a_phase_at_once_and_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress_module, "HEARTBEAT_SECONDS", 0.01)
    heard: list[BuildProgress] = []
    beats = threading.Semaphore(0)

    def put(said: BuildProgress) -> None:
        heard.append(said)
        beats.release()

    with Progress(KEY, "builds/job", put) as progress, progress.phase(Phase.COMPILE):
        progress.percent(12)
        while not heard or heard[-1].percent != 12:
            assert beats.acquire(timeout=30)
    assert (heard[-1].phase, heard[-1].percent, heard[-1].job) == ("Compile", 12, "builds/job")
    assert heard[-1].heartbeat.endswith("Z")


def test_a_store_that_does_not_listen_is_mentioned_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_module, "HEARTBEAT_SECONDS", 0.01)
    beats = threading.Semaphore(0)

    def put(said: BuildProgress) -> None:
        beats.release()
        raise StoreUnreachableError("the store is away")

    with Progress(KEY, "", put) as progress, progress.phase(Phase.COMPILE):
        for _ in range(5):
            assert beats.acquire(timeout=30)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    warnings = [line["warning"] for line in lines if "warning" in line]
    assert warnings == ["progress cannot be told: the store is away"]
