"""Every way to ask a real Triton, and what each is told of a bad request."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import tritonclient.grpc as grpc_client
import tritonclient.grpc.aio as grpc_aio
from tritonclient.utils import InferenceServerException

from llmengine.artifact import Limits
from llmengine_server.dialect import INPUTS
from tests.contract.triton.conftest import MODEL
from tests.contract.triton.engines import LIMITS
from tests.contract.triton.grpc_clients import (
    SyncStream,
    aio_stream,
    ensemble_request,
    is_last,
    text_of,
)
from tests.contract.triton.server import Server, eventually
from tests.models import tiny_tokenizer

PROMPT = "the capital of"
# A greedy answer of this prompt, to the last token: no end of text is listened to.
ASKED: dict[str, Any] = {"text_input": PROMPT, "max_tokens": 24, "end_id": -1}


@pytest.fixture(scope="module")
def answer(server: Server) -> str:
    return str(server.generate(**ASKED).json["text_output"])


@pytest.fixture
def grpc(server: Server) -> Iterator[SyncStream]:
    stream = SyncStream(server.grpc, MODEL)
    yield stream
    stream.close()


def test_generate_answers_once_with_text_and_reason(server: Server, answer: str) -> None:
    assert server.generate(**ASKED).json == {
        "model_name": MODEL,
        "model_version": "1",
        "text_output": answer,
        "finish_reason": "length",
    }
    assert answer


def test_curl_gets_the_same_answer(server: Server, answer: str) -> None:
    url = f"http://127.0.0.1:{server.http}/v2/models/{MODEL}/generate"
    done = subprocess.run(
        ["curl", "--silent", "--fail", url, "--data", json.dumps(ASKED)],
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["text_output"] == answer


def test_curl_streams_events(server: Server, answer: str) -> None:
    url = f"http://127.0.0.1:{server.http}/v2/models/{MODEL}/generate_stream"
    done = subprocess.run(
        ["curl", "--silent", "--no-buffer", url, "--data", json.dumps({**ASKED, "stream": True})],
        capture_output=True,
        check=True,
    )
    lines = [line for line in done.stdout.decode().splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert "".join(json.loads(line[6:])["text_output"] for line in lines) == answer


def test_streamed_pieces_join_to_the_answer_and_only_the_last_has_a_reason(
    server: Server, answer: str
) -> None:
    pieces = server.stream(**ASKED)
    assert len(pieces) > 1
    assert "".join(piece["text_output"] for piece in pieces) == answer
    assert [piece.get("finish_reason") for piece in pieces] == [None] * (len(pieces) - 1) + [
        "length"
    ]


def test_without_stream_a_streaming_endpoint_answers_once(server: Server, answer: str) -> None:
    (only,) = server.stream(**{**ASKED, "stream": False})
    assert only["text_output"] == answer


def test_the_grpc_stream_of_tritonclient(grpc: SyncStream, answer: str) -> None:
    grpc.send(request_id="r-1", stream=True, **ASKED)
    results = grpc.all()
    assert "".join(text_of(result) for result in results) == answer
    assert [is_last(result) for result in results] == [False] * (len(results) - 1) + [True]
    assert results[-1].as_numpy("finish_reason")[0, 0] == b"length"
    assert {result.get_response().id for result in results} == {"r-1"}


def test_several_requests_share_a_grpc_stream(grpc: SyncStream, answer: str) -> None:
    for id_ in ("a", "b", "c"):
        grpc.send(request_id=id_, **ASKED)
    results = {result.get_response().id: text_of(result) for result in (grpc.take() for _ in "abc")}
    assert results == {"a": answer, "b": answer, "c": answer}


def test_the_asyncio_client_of_tritonclient(server: Server, answer: str) -> None:
    async def ask() -> str:
        async with grpc_aio.InferenceServerClient(server.grpc) as client:
            results = [r async for r in aio_stream(client, MODEL, stream=True, **ASKED)]
        return "".join(text_of(result) for result in results)

    assert asyncio.run(ask()) == answer


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "at once"])
def test_a_client_written_for_tensorrt_llms_ensemble(
    server: Server, answer: str, stream: bool
) -> None:
    assert ensemble_request(server.grpc, MODEL, PROMPT, 24, stream) == answer


def test_sixteen_streams_at_once_get_what_each_gets_alone(server: Server) -> None:
    prompts = [f"the capital of {i} is" for i in range(16)]

    def asked(prompt: str) -> dict[str, Any]:
        return {"text_input": prompt, "max_tokens": 12, "end_id": -1, "stream": True}

    async def ask_all() -> list[str]:
        async with grpc_aio.InferenceServerClient(server.grpc) as client:

            async def ask(prompt: str) -> str:
                results = [r async for r in aio_stream(client, MODEL, **asked(prompt))]
                return "".join(text_of(result) for result in results)

            return list(await asyncio.gather(*map(ask, prompts)))

    together = asyncio.run(ask_all())
    alone = ["".join(p["text_output"] for p in server.stream(**asked(x))) for x in prompts]
    assert together == alone


def test_a_chat_goes_through_the_models_template(server: Server) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    prompt = "<|bos|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    common = {"max_tokens": 16, "end_id": -1, "return_num_input_tokens": True}
    chat = server.generate(messages=json.dumps(messages), **common).json
    raw = server.generate(text_input=prompt, **common).json
    assert chat == raw


def test_token_counts_come_when_asked_for(server: Server) -> None:
    counts = {"return_num_input_tokens": True, "return_num_output_tokens": True}
    answered = server.generate(**ASKED, **counts).json
    prompt = server.generate(text_input=PROMPT * 2, max_tokens=1, **counts).json
    assert answered["num_output_tokens"] == 24
    assert 0 < answered["num_input_tokens"] < prompt["num_input_tokens"]


def test_a_seed_repeats_an_answer_and_no_seed_does_not(server: Server) -> None:
    sampled = {**ASKED, "temperature": 1.0}

    def text(**more: Any) -> str:
        return str(server.generate(**sampled, **more).json["text_output"])

    assert text(seed=7) == text(seed=7) == text(random_seed=7)
    assert text(seed=7) != text(seed=8)
    assert text() != text()


def test_a_stop_word_ends_the_text_before_it(server: Server, answer: str) -> None:
    word = answer[8:11]
    stopped = server.generate(**ASKED, stop_words=[word]).json
    assert stopped["text_output"] == answer[: answer.index(word)]
    assert stopped["finish_reason"] == "stop"
    streamed = server.stream(**ASKED, stop_words=[word])
    assert "".join(piece["text_output"] for piece in streamed) == stopped["text_output"]


def test_an_end_id_ends_the_text(server: Server) -> None:
    first = server.generate(**{**ASKED, "return_num_output_tokens": True, "min_tokens": 0}).json
    assert first["num_output_tokens"] == 24
    ends = [
        server.generate(**{**ASKED, "end_id": id_, "return_num_output_tokens": True}).json
        for id_ in range(5, tiny_tokenizer.VOCABULARY_SIZE, 4)
    ]
    stopped = [end for end in ends if end["finish_reason"] == "stop"]
    assert stopped, "no token of the answer was tried as its end"
    assert all(end["num_output_tokens"] <= 24 for end in stopped)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"text_input": "a", "max_tokens": 0}, "max_tokens must be a positive number (got 0)"),
        ({"text_input": "a", "max_tokens": 9999}, "send max_tokens 4094 or less"),
        ({"text_input": "a" * 5000}, "the prompt has 5001 tokens"),
        ({"text_input": "a", "temperature": -1}, "temperature must be 0 (greedy)"),
        ({"text_input": "a", "top_p": 1.5}, "top_p must be between 0 and 1"),
        ({"text_input": "a", "top_k": -3}, "top_k must be 0 (every token) or a positive"),
        ({"text_input": "a", "repetition_penalty": 0}, "repetition_penalty must be a positive"),
        ({"text_input": "a", "beam_width": 3}, "beam search is not available"),
        ({"text_input": "a", "return_log_probs": True}, "log probabilities are not available"),
        ({"text_input": "a", "bad_words": ["x"]}, "words cannot be forbidden"),
        ({"text_input": ["a", "b"]}, "send one prompt in each request (got shape [2, 1])"),
        ({"max_tokens": 3}, "text_input is missing"),
        ({"messages": "[]"}, "messages must be a JSON list"),
        ({"text_input": "a", "max_token": 3}, 'no input "max_token"; did you mean "max_tokens"?'),
        ({"text_input": "a", "unheard_of": True}, 'no input "unheard_of": it takes'),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_with_a_sentence(
    server: Server, body: dict[str, Any], sentence: str
) -> None:
    answered = server.generate(**body)
    assert answered.status == 400
    assert sentence in answered.json["error"]


def test_a_bad_request_on_a_stream_is_refused_and_the_stream_goes_on(
    grpc: SyncStream, answer: str
) -> None:
    grpc.send(text_input="a", temperature=-1.0)
    with pytest.raises(InferenceServerException, match="temperature must be 0"):
        grpc.take()
    grpc.send(**ASKED)
    assert text_of(grpc.all()[0]) == answer


def test_a_client_may_have_status_codes_on_a_stream(server: Server) -> None:
    stream = SyncStream(server.grpc, MODEL, status_codes=True)
    stream.send(text_input="a", temperature=-1.0)
    with pytest.raises(InferenceServerException, match="temperature must be 0") as refused:
        stream.take()
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    stream.close()


def test_the_model_declares_the_whole_dialect_and_that_it_is_decoupled(server: Server) -> None:
    client = grpc_client.InferenceServerClient(server.grpc)
    metadata = client.get_model_metadata(MODEL)
    config = client.get_model_config(MODEL).config
    client.close()
    assert [i.name for i in metadata.inputs] == [declared.name for declared in INPUTS]
    assert all(tensor.optional for tensor in config.input)
    assert config.model_transaction_policy.decoupled
    assert config.max_batch_size == 64
    assert not config.HasField("dynamic_batching")


def test_metrics_move(server: Server) -> None:
    series = f'{{model="{MODEL}",version="1"}}'
    before = server.metrics()
    server.generate(**ASKED)

    def moved(name: str, by: float) -> bool:
        return server.metrics()[name + series] >= before[name + series] + by

    eventually(lambda: moved("llmengine_generated_tokens_total", 24), 5, "tokens are counted")
    assert moved("llmengine_time_to_first_token_seconds_count", 1)
    assert moved("llmengine_time_per_output_token_seconds_count", 1)
    requests = server.metrics()
    limits: Limits = LIMITS
    labels = f'model="{MODEL}",request_type="max",version="1"'
    assert requests[f"nv_trt_llm_request_metrics{{{labels}}}"] == limits.max_batch_size


def test_the_ports_show_health(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.http)
    for path in ("/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL}/ready"):
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        assert response.status == 200, path
    connection.close()
