"""How a server ends: on purpose, with what runs finished; or because its engine died."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from llmengine.artifact import Manifest
from llmengine.key import engine_key
from llmengine.last_words import TERMINATION_LOG_VARIABLE
from llmengine.requests import BuildFailure, ExitCode
from llmengine_server import alive
from llmengine_server.scheduler import CUT_OFF, SHUTTING_DOWN
from tests.contract.triton.conftest import MODEL
from tests.contract.triton.engines import render_repository
from tests.contract.triton.grpc_clients import SyncStream
from tests.contract.triton.server import Answer, Server, eventually
from tests.contract.triton.test_departures import ENDLESS, open_http

# A few seconds of work for one slot.
LONG: dict[str, Any] = {"text_input": "the", "max_tokens": 800, "end_id": -1}
WAITING = f'nv_trt_llm_request_metrics{{model="{MODEL}",request_type="waiting",version="1"}}'
NewServer = Callable[..., Server]


class Asking(threading.Thread):
    """A client that waits for its whole answer."""

    def __init__(self, server: Server, **body: Any) -> None:
        super().__init__()
        self._server, self._body = server, body
        self.answer: Answer | None = None
        self.start()

    def run(self) -> None:
        self.answer = self._server.generate(**self._body)

    def result(self) -> Answer:
        self.join(90)
        assert self.answer is not None
        return self.answer


def wait_for_exit(server: Server, seconds: float) -> int:
    eventually(lambda: server.process.poll() is not None, seconds, "the server ended")
    status: int = server.process.returncode
    return status


def shared_memory(http_port: int) -> list[Path]:
    return list(Path("/dev/shm").glob(f"llmengine-{http_port}-*"))


def beats(server: Server) -> float:
    found = alive.loop_process(str(server.run_directory))
    assert found is not None
    return found[1]


def test_sigterm_lets_what_runs_and_what_queues_finish_and_sends_what_comes_elsewhere(
    new_server: NewServer,
) -> None:
    with new_server(exit_timeout=90) as server:
        running = [Asking(server, **LONG) for _ in range(8)]
        eventually(lambda: server.slots_taken() == 8, 10, "all slots are taken")
        queued = [Asking(server, **LONG) for _ in range(3)]
        eventually(lambda: server.metrics()[WAITING] == 3, 10, "three wait")
        server.process.terminate()
        eventually(lambda: server.probe("--ready").returncode == 1, 10, "the wish to stop")
        known = beats(server)
        eventually(lambda: beats(server) > known, 10, "the loop to know of it")
        refused = server.generate(**LONG)
        assert "shutting down" in refused.json["error"]
        assert any(asking.answer is None for asking in running), "the answers were too short"
        finished = [asking.result() for asking in (*running, *queued)]
        assert {answer.status for answer in finished} == {200}
        assert {answer.json["finish_reason"] for answer in finished} == {"length"}
        assert wait_for_exit(server, 8) == 0


def test_a_stopping_server_is_alive_but_not_ready(new_server: NewServer) -> None:
    with new_server() as server:
        connection = open_http(server)
        connection.recv(1000)
        server.process.terminate()
        eventually(lambda: server.probe("--ready").returncode == 1, 3, "it is not ready")
        assert server.probe().returncode == 0
        connection.close()
        assert wait_for_exit(server, 8) == 0


def test_idle_connections_do_not_hold_up_the_end(new_server: NewServer) -> None:
    with new_server() as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.http)
        body = json.dumps({"text_input": "a", "max_tokens": 1})
        connection.request("POST", f"/v2/models/{MODEL}/generate", body)
        connection.getresponse().read()
        server.process.terminate()
        assert wait_for_exit(server, 8) == 0
        connection.close()


def test_what_runs_longer_than_the_exit_timeout_is_cut_off_with_an_error(
    new_server: NewServer,
) -> None:
    with new_server(exit_timeout=7) as server:
        connection = open_http(server)
        connection.recv(1000)
        stream = SyncStream(server.grpc, MODEL, status_codes=True)
        stream.send(**ENDLESS)
        stream.take()
        server.process.terminate()
        assert last_event(connection)["error"] == CUT_OFF
        with pytest.raises(InferenceServerException) as cut_off:
            drain(stream)
        assert (cut_off.value.status(), cut_off.value.message()) == (
            "StatusCode.UNAVAILABLE",
            CUT_OFF,
        )
        stream.close()
        assert wait_for_exit(server, 8) == 0


def test_what_queues_and_has_no_time_left_is_sent_elsewhere_at_once(new_server: NewServer) -> None:
    """Whoever may still get a whole answer keeps its place; who runs goes on meanwhile."""
    with new_server(exit_timeout=9) as server:
        running = [open_http(server) for _ in range(8)]
        for connection in running:
            connection.recv(1000)
        eventually(lambda: server.slots_taken() == 8, 10, "all slots are taken")
        # 4000 steps of more than a millisecond are not over in the 4 s that are left.
        far = Asking(server, **{**LONG, "max_tokens": 4000})
        eventually(lambda: server.metrics()[WAITING] == 1, 10, "it waits")
        stream = SyncStream(server.grpc, MODEL, status_codes=True)
        stream.send(**ENDLESS)
        eventually(lambda: server.metrics()[WAITING] == 2, 10, "both wait")
        near = Asking(server, text_input="the", max_tokens=5, end_id=-1)
        eventually(lambda: server.metrics()[WAITING] == 3, 10, "all three wait")
        server.process.terminate()
        assert (far.result().status, far.result().json["error"]) == (400, SHUTTING_DOWN)
        with pytest.raises(InferenceServerException, match=SHUTTING_DOWN) as refused:
            stream.take()
        assert refused.value.status() == "StatusCode.UNAVAILABLE"
        stream.close()
        assert near.answer is None
        for connection in running[1:]:
            connection.close()
        assert near.result().json["finish_reason"] == "length"
        running[0].close()
        assert wait_for_exit(server, 10) == 0


def last_event(connection: socket.socket) -> dict[str, Any]:
    """Of a streamed answer, when it is over."""
    received = b""
    while more := connection.recv(1 << 16):
        received += more
        if b"\r\n0\r\n\r\n" in received:
            break
    connection.close()
    *_, last = (part for part in received.split(b"data: ") if part.startswith(b"{"))
    parsed: dict[str, Any] = json.loads(last.partition(b"\n")[0])
    return parsed


def drain(stream: SyncStream) -> None:
    """Take what comes until it raises."""
    while True:
        stream.take()


def test_the_end_comes_in_time_after_many_clients_left(new_server: NewServer) -> None:
    with new_server() as server:
        for _ in range(5):
            connections = [open_http(server) for _ in range(8)]
            for connection in connections:
                connection.recv(1000)
            connections += [open_http(server) for _ in range(4)]
            for connection in connections:
                connection.close()
        server.process.terminate()
        assert wait_for_exit(server, 10) == 0
        assert "successfully unloaded" in server.log.read_text()


def test_a_killed_engine_process_fails_the_probes_and_ends_the_container(
    new_server: NewServer,
) -> None:
    with new_server() as server:
        assert server.probe().returncode == 0
        # The supervisor would be faster than the probe that is to be seen here.
        server.kill(server.process.pid, signal.SIGSTOP)
        server.kill(server.stub)
        dead = eventually(lambda: server.probe().returncode == 1, 2, "liveness fails")
        assert dead < 2
        assert "died" in server.probe("--ready").stderr
        server.kill(server.process.pid, signal.SIGCONT)
        assert wait_for_exit(server, 5) == 1
        assert "died: the container ends" in server.log.read_text()
        assert shared_memory(server.http) == []


def test_a_loop_that_stands_still_fails_the_probes(new_server: NewServer) -> None:
    with new_server() as server:
        server.kill(server.stub, signal.SIGSTOP)
        stale = eventually(
            lambda: server.probe("--max-age", "2").returncode == 1, 6, "liveness fails"
        )
        assert stale > 0.5
        assert "stands still" in server.probe("--ready", "--max-age", "2").stderr
        server.kill(server.stub, signal.SIGCONT)
        eventually(lambda: server.probe("--max-age", "2").returncode == 0, 3, "it turns again")


def test_a_busy_loop_keeps_its_heart_beating(new_server: NewServer) -> None:
    with new_server() as server:
        connections = [open_http(server, {**ENDLESS, "text_input": "a" * 2000}) for _ in range(8)]
        for connection in connections:
            connection.recv(1000)
        first = beats(server)
        eventually(lambda: beats(server) > first, 3, "the heart beats")
        for connection in connections:
            connection.close()


def test_an_engine_that_breaks_while_it_serves_ends_the_container(
    engine: tuple[Path, Manifest], tmp_path: Path
) -> None:
    folder, manifest = engine
    # Its cache has one layer fewer than its graph: the first step raises.
    cache = manifest.cache.model_copy(update={"layers": manifest.cache.layers - 1})
    models = with_manifest(manifest.model_copy(update={"cache": cache}), folder, tmp_path)
    with Server(models, MODEL, tmp_path) as server:
        with open_http(server, {"text_input": "a", "max_tokens": 3}):
            assert wait_for_exit(server, 10) == 1
        assert "the engine stopped; the process ends" in server.log.read_text()


def test_a_server_that_does_not_serve_its_engine_says_why_in_its_last_words(
    engine: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest = engine
    factors = {**manifest.factors, "backendVersion": "1.0.0"}
    old = manifest.model_copy(update={"factors": factors, "key": engine_key(factors)})
    models = with_manifest(old, folder, tmp_path)
    monkeypatch.setenv(TERMINATION_LOG_VARIABLE, str(tmp_path / "last"))
    server = Server(models, MODEL, tmp_path)
    with pytest.raises(AssertionError, match="the server ended"), server:
        pass
    assert server.process.returncode == ExitCode.BAD_INPUT
    last = BuildFailure.model_validate_json((tmp_path / "last").read_text())
    assert last.reason == "EngineUnsupported"
    assert "was built by ONNX Runtime 1.0.0, but this image has" in last.message
    assert shared_memory(server.http) == []


def with_manifest(manifest: Manifest, engine: Path, folder: Path) -> Path:
    """A model repository for the files of `engine`, described in another way."""
    changed = folder / "engine"
    changed.mkdir()
    for path in engine.iterdir():
        if path.name != "manifest.json":
            (changed / path.name).symlink_to(path)
    (changed / "manifest.json").write_bytes(manifest.serialize())
    render_repository(changed, manifest, MODEL, folder / "models")
    return folder / "models"


def test_a_server_starts_again_where_another_was_killed(
    new_server: NewServer, repository: Path, tmp_path: Path
) -> None:
    with new_server() as server:
        stub, ports = server.stub, server.ports
        for process in (server.process.pid, stub):
            server.kill(process)
        server.process.wait()
    left = shared_memory(ports[0])
    assert left, "nothing was left behind: this test proves nothing"
    again = tmp_path / "again"
    again.mkdir()
    eventually(lambda: not alive.runs(stub), 5, "the killed engine is gone")
    # Triton itself outlived its parent, and in a container would not.
    end_orphan(ports[0])
    with Server(repository, MODEL, again, ports=ports) as server:
        assert server.generate(text_input="a", max_tokens=1).status == 200
        assert not set(left) & set(shared_memory(ports[0]))
    assert shared_memory(ports[0]) == []


def end_orphan(http_port: int) -> None:
    """End the tritonserver that listens on a port."""
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = status.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"--http-port={http_port}".encode() in command and b"tritonserver" in command[0]:
            os.kill(int(status.parent.name), signal.SIGKILL)
            return
