"""The graph and the reference compute what transformers computes, for every family and rope."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmengine.artifact import Limits
from llmengine_builder.graph import read_model
from llmengine_builder.reference import Reference
from llmengine_server.session.onnxruntime import OnnxRuntimeSession
from tests.models import golden
from tests.models.golden import Golden
from tests.unit.graph.engines import open_model, relative_error

# Of float32, over dozens of products in another order.
ALLOWED = 1e-5
CHUNK = 32
GOLDENS = [pytest.param(case, id=case.name) for case in golden.load_all()]


def open_case(case: Golden, folder: Path) -> OnnxRuntimeSession:
    """As long as its sequence, so that windows are just held."""
    limits = Limits(
        max_batch_size=1, max_sequence_length=case.token_ids.size, max_batch_tokens=CHUNK
    )
    return open_model(case.write_model(folder / "model"), limits)


@pytest.mark.parametrize("case", GOLDENS)
def test_an_engine_reproduces_the_logits_of_transformers(case: Golden, tmp_path: Path) -> None:
    session = open_case(case, tmp_path)
    tokens = case.token_ids.tolist()
    asked = {int(position): row for row, position in enumerate(case.positions)}
    past = 0
    # A prefill answers after its last token only: stop at each position that was recorded.
    for position in sorted(asked):
        while past <= position:
            chunk = tokens[past : min(position + 1, past + CHUNK)]
            row = session.prefill(0, chunk, past)
            past += len(chunk)
        assert relative_error(row.full(), case.logits[asked[position]]) <= ALLOWED


@pytest.mark.parametrize("case", GOLDENS)
def test_decoding_token_by_token_reproduces_them_too(case: Golden, tmp_path: Path) -> None:
    session = open_case(case, tmp_path)
    tokens = case.token_ids.tolist()
    asked = {int(position): row for row, position in enumerate(case.positions)}
    session.prefill(0, tokens[:1], 0)
    for position in range(1, len(tokens)):
        (row,) = session.decode(tokens[position : position + 1], [position])
        if position in asked:
            assert relative_error(row.full(), case.logits[asked[position]]) <= ALLOWED


@pytest.mark.parametrize("case", GOLDENS)
def test_the_reference_reproduces_them_on_its_own(case: Golden, tmp_path: Path) -> None:
    folder = case.write_model(tmp_path / "model")
    (logits,) = Reference(folder).logits([case.token_ids.tolist()], [case.positions.tolist()])
    assert relative_error(logits, case.logits) <= ALLOWED


def test_a_window_that_was_crossed_is_not_what_full_attention_gives(tmp_path: Path) -> None:
    """So the refusal of crossed windows protects something."""
    case = golden.load("mistral-window-crossed")
    folder = case.write_model(tmp_path / "model")
    assert read_model(folder).decoder.window == 48
    (logits,) = Reference(folder).logits([case.token_ids.tolist()], [case.positions.tolist()])
    within = case.positions < 48
    assert relative_error(logits[within], case.logits[within]) <= ALLOWED
    assert not np.allclose(logits[~within], case.logits[~within], rtol=1e-2)
