"""A real model says, token for token, what transformers makes it say."""

from __future__ import annotations

import numpy as np
import pytest

from llmengine.artifact import Limits
from llmengine_server.session.onnxruntime import OnnxRuntimeSession, start_runtime
from tests.models import golden, smollm2
from tests.models.golden import Conversation
from tests.unit.graph.engines import compile_engine

pytestmark = pytest.mark.model
CONVERSATIONS = golden.load_smollm2().conversations
CHUNK = 512


def answer(session: OnnxRuntimeSession, conversations: list[Conversation]) -> list[list[int]]:
    """Greedy answers of all conversations at once, each as long as its golden."""
    answers: list[list[int]] = []
    for slot, chat in enumerate(conversations):
        for past in range(0, len(chat.prompt_ids), CHUNK):
            row = session.prefill(slot, chat.prompt_ids[past : past + CHUNK], past)
        answers.append([row.argmax()])
    longest = max(len(chat.output_ids) for chat in conversations)
    for step in range(longest - 1):
        pasts = [len(chat.prompt_ids) + step for chat in conversations]
        rows = session.decode([tokens[-1] for tokens in answers], pasts)
        for tokens, row in zip(answers, rows, strict=True):
            tokens.append(row.argmax())
    return [
        tokens[: len(chat.output_ids)] for tokens, chat in zip(answers, conversations, strict=True)
    ]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> OnnxRuntimeSession:
    model = smollm2.directory()
    limits = Limits(
        max_batch_size=len(CONVERSATIONS), max_sequence_length=1024, max_batch_tokens=CHUNK
    )
    engine = compile_engine(model, tmp_path_factory.mktemp("engine"), limits)
    return OnnxRuntimeSession(
        start_runtime(engine.files["graph.onnx"].read_bytes(), model),
        cache=engine.cache,
        limits=limits,
        vocabulary=engine.vocabulary,
    )


def test_answers_are_those_of_transformers_in_one_batch(session: OnnxRuntimeSession) -> None:
    expected = [chat.output_ids for chat in CONVERSATIONS]
    assert max(map(len, expected)) == 64
    assert max(len(chat.prompt_ids) for chat in CONVERSATIONS) > CHUNK
    assert answer(session, CONVERSATIONS) == expected


@pytest.mark.parametrize("chat", [pytest.param(chat, id=chat.name) for chat in CONVERSATIONS])
def test_logits_are_those_of_transformers(chat: Conversation, session: OnnxRuntimeSession) -> None:
    tokens = [*chat.prompt_ids, *chat.output_ids]
    past = 0
    for sample in sorted(chat.logits, key=lambda sample: sample.position):
        while past <= sample.position:
            chunk = tokens[past : min(past + CHUNK, sample.position + 1)]
            row = session.prefill(0, chunk, past)
            past += len(chunk)
        mine = row.full()[sample.ids]
        error = np.linalg.norm(mine - sample.values) / np.linalg.norm(sample.values)
        assert error <= 1e-5
