"""Clients that leave, and clients that are too many."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from typing import Any

import pytest
import tritonclient.grpc.aio as grpc_aio
from tritonclient.utils import InferenceServerException

from tests.contract.triton.conftest import MODEL
from tests.contract.triton.engines import LIMITS
from tests.contract.triton.grpc_clients import SyncStream, aio_stream
from tests.contract.triton.server import Server, eventually

# Takes many seconds: whoever ends it earlier has left.
ENDLESS: dict[str, Any] = {"text_input": "the", "max_tokens": 4000, "end_id": -1, "stream": True}
QUEUE = 4 * LIMITS.max_batch_size


def is_empty(server: Server) -> bool:
    return server.slots_taken() == 0


def wait_until_empty(server: Server) -> None:
    eventually(lambda: is_empty(server), 4, "all slots are free")


def wait_until_taken(server: Server, slots: int = 1) -> None:
    eventually(lambda: server.slots_taken() == slots, 10, f"{slots} slots are taken")


def cancelled(server: Server) -> float:
    return server.metrics()[
        f'llmengine_requests_total{{finish="cancelled",model="{MODEL}",version="1"}}'
    ]


def open_http(server: Server, body: dict[str, Any] = ENDLESS) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.http), timeout=30)
    data = json.dumps(body).encode()
    head = f"POST /v2/models/{MODEL}/generate_stream HTTP/1.1\r\nHost: x\r\n"
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


def test_a_closed_http_connection_frees_its_slot(server: Server) -> None:
    connection = open_http(server)
    connection.recv(1000)
    wait_until_taken(server)
    connection.close()
    wait_until_empty(server)


def test_a_cancelled_grpc_stream_frees_its_slots(server: Server) -> None:
    stream = SyncStream(server.grpc, MODEL)
    stream.send(**ENDLESS)
    stream.send(**ENDLESS)
    stream.take()
    wait_until_taken(server, 2)
    stream.close(cancel=True)
    wait_until_empty(server)


def test_a_cancelled_asyncio_stream_frees_its_slot(server: Server) -> None:
    async def leave() -> None:
        async with grpc_aio.InferenceServerClient(server.grpc) as client:
            async for _ in aio_stream(client, MODEL, **ENDLESS):
                break

    before = cancelled(server)
    asyncio.run(leave())
    eventually(lambda: cancelled(server) == before + 1, 4, "the cancellation is counted")
    wait_until_empty(server)


def test_who_leaves_disturbs_nobody(server: Server) -> None:
    asked: dict[str, Any] = {
        "text_input": "the capital",
        "max_tokens": 200,
        "end_id": -1,
        "seed": 1,
    }
    alone = server.generate(**asked).json["text_output"]
    leaving = [open_http(server) for _ in range(4)]
    for connection in leaving:
        connection.recv(1000)
    answers: list[str] = []
    staying = threading.Thread(
        target=lambda: answers.append(server.generate(**asked).json["text_output"])
    )
    staying.start()
    for connection in leaving:
        connection.close()
    staying.join(60)
    assert len(answers) == 1
    assert answers[0][:40] == alone[:40]
    wait_until_empty(server)


def test_a_full_queue_answers_unavailable_and_empties(server: Server) -> None:
    clients = [open_http(server) for _ in range(LIMITS.max_batch_size)]
    try:
        wait_until_taken(server, LIMITS.max_batch_size)
        clients += [open_http(server) for _ in range(QUEUE)]
        labels = f'model="{MODEL}",request_type="waiting",version="1"'
        waiting = f"nv_trt_llm_request_metrics{{{labels}}}"
        eventually(lambda: server.metrics()[waiting] == QUEUE, 10, "the queue is full")
        # What an autoscaler goes by: 8 slots, 8 requests that run and 32 that wait.
        labels = f'{{model="{MODEL}",version="1"}}'
        assert server.metrics()[f"llmengine_requests_waiting_per_slot{labels}"] == 4
        assert server.metrics()[f"llmengine_requests_per_slot{labels}"] == 5
        refused = server.generate(text_input="a", max_tokens=1)
        # Triton's generate endpoint has no other status for an error of a model.
        assert refused.status == 400
        assert "the server is busy: 8 requests run and 32 wait" in refused.json["error"]
        stream = SyncStream(server.grpc, MODEL, status_codes=True)
        stream.send(text_input="a", max_tokens=1)
        with pytest.raises(InferenceServerException, match="the server is busy") as error:
            stream.take()
        assert error.value.status() == "StatusCode.UNAVAILABLE"
        stream.close()
    finally:
        for connection in clients:
            connection.close()
    wait_until_empty(server)
    assert server.generate(text_input="a", max_tokens=1).status == 200
