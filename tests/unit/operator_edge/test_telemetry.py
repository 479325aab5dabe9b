"""Probes, metrics and logs, as those who read them see them."""

from __future__ import annotations

import io
import json
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmengine_operator import logs
from llmengine_operator.health import HttpServer, probe
from llmengine_operator.metrics import Metrics


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_a_probe_fails_with_the_sentence_of_the_check_that_found_fault(host: str) -> None:
    problems: dict[str, str | None] = {"a": None, "b": None}
    routes = {"/healthz": probe({"a": lambda: problems["a"], "b": lambda: problems["b"]})}
    server = HttpServer(host, 0, routes)
    server.start()
    try:
        assert get(server.port, "/healthz") == (200, "a: ok\nb: ok\n")
        assert get(server.port, "/healthz?verbose")[0] == 200
        problems["b"] = "a pass has been running for 900 s"
        assert get(server.port, "/healthz") == (
            503,
            "a: ok\nb: a pass has been running for 900 s\n",
        )
        assert get(server.port, "/secrets")[0] == 404
    finally:
        server.stop()


def test_metrics_have_the_names_that_dashboards_ask_for() -> None:
    metrics, depth = Metrics(), [3.0]
    metrics.gauge("workqueue_depth", "Keys that wait.", lambda: depth[0])
    metrics.counters(
        "api_requests_total", "Requests.", ("verb", "kind"), lambda: {("get", "Job"): 7}
    )
    metrics.observe_pass(seconds=0.02, error=None, again=None)
    metrics.observe_pass(seconds=0.02, error=None, again=600)
    metrics.observe_pass(seconds=0.02, error=ValueError(), again=1)
    depth[0] = 4.0
    answer = metrics.route()
    samples = {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }
    assert samples["llmengine_workqueue_depth",] == 4
    assert samples["llmengine_api_requests_total", "Job", "get"] == 7
    assert samples["llmengine_reconcile_duration_seconds_count",] == 3
    for result in ("success", "requeue", "error"):
        assert samples["llmengine_reconcile_total", result] == 1
    assert samples["process_resident_memory_bytes",] > 1e6
    assert not [name for name, *_ in samples if name.endswith("_created")]


@pytest.fixture
def log_stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, threading.excepthook)
    levels = {name: logging.getLogger(name).level for name in ("kopf", "urllib3", "asyncio")}
    stream = io.StringIO()
    monkeypatch.setattr("sys.excepthook", None)
    logs.configure("INFO", stream)
    yield stream
    logging.captureWarnings(False)
    root.handlers[:], level, threading.excepthook = before
    root.setLevel(level)
    for name, value in levels.items():
        logging.getLogger(name).setLevel(value)


def lines(stream: io.StringIO) -> list[dict[str, str]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_says_when_what_and_about_which_engine(log_stream: io.StringIO) -> None:
    log = logging.getLogger("llmengine_operator.plan")
    with logs.about(engine="team-a/chat"):
        log.info("build %s started", "a1b2")
        with logs.about(key="k"):
            log.warning("deeper")
    log.info("about nobody")
    log.debug("not asked for")
    first, second, third = lines(log_stream)
    assert first["message"] == "build a1b2 started"
    assert first["level"] == "info"
    assert first["logger"] == "llmengine_operator.plan"
    assert first["time"].endswith("+00:00")
    assert first["engine"] == "team-a/chat"
    assert (second["engine"], second["key"]) == ("team-a/chat", "k")
    assert "engine" not in third


def test_the_context_of_one_thread_does_not_leak_into_another(log_stream: io.StringIO) -> None:
    with logs.about(engine="team-a/chat"):
        other = threading.Thread(target=lambda: logging.getLogger("x").info("from elsewhere"))
        other.start()
        other.join()
    assert "engine" not in lines(log_stream)[0]


def test_an_exception_is_one_line_with_its_trace(log_stream: io.StringIO) -> None:
    try:
        json.loads("[1,\n2")
    except ValueError:
        logging.getLogger("x").exception("it failed")
    (line,) = lines(log_stream)
    assert line["message"] == "it failed"
    assert "JSONDecodeError: Expecting" in line["error"]


def test_what_ends_a_thread_is_logged_as_well(log_stream: io.StringIO) -> None:
    def fail() -> None:
        raise KeyError("missing")

    thread = threading.Thread(target=fail, name="audit")
    hook, threading.excepthook = threading.excepthook, logs._thread_ends
    try:
        thread.start()
        thread.join()
    finally:
        threading.excepthook = hook
    (line,) = lines(log_stream)
    assert line["message"] == "audit ends: 'missing'"
    assert "KeyError" in line["error"]
