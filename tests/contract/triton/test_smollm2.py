"""A real language model through a real Triton says what transformers says."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.contract.triton.engines import LIMITS, make_engine, render_repository
from tests.contract.triton.server import Server
from tests.models import golden, smollm2

pytestmark = pytest.mark.model
MODEL = "smollm2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    work = tmp_path_factory.mktemp("smollm2")
    manifest = make_engine(smollm2.directory(), work / "engine", LIMITS)
    render_repository(work / "engine", manifest, MODEL, work / "models")
    with Server(work / "models", MODEL, work) as server:
        yield server


def test_chats_are_answered_word_for_word_as_transformers_answers_them(server: Server) -> None:
    for conversation in golden.load_smollm2().conversations:
        answered = server.generate(
            timeout=300,
            messages=json.dumps(conversation.messages),
            max_tokens=len(conversation.output_ids),
            return_num_input_tokens=True,
        ).json
        assert answered["text_output"] == conversation.text
        assert answered["finish_reason"] == ("stop" if conversation.finished else "length")
        assert answered["num_input_tokens"] == len(conversation.prompt_ids)


def test_a_streamed_chat_reads_the_same(server: Server) -> None:
    conversation = golden.load_smollm2().conversations[0]
    asked = {
        "messages": json.dumps(conversation.messages),
        "max_tokens": len(conversation.output_ids),
    }
    pieces = server.stream(timeout=300, **asked)
    assert len(pieces) > 5
    assert "".join(piece["text_output"] for piece in pieces) == conversation.text
