"""Goldens belong to the cases that are listed and to the models that are generated now."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tests.models import golden, golden_cases
from tests.models.tiny import ARCHITECTURES

MAX_BYTES = 200_000


def test_every_case_has_a_golden_and_every_golden_a_case() -> None:
    assert golden.names() == sorted(golden_cases.CASES), golden.REMEDY
    recorded = [chat.name for chat in golden.load_smollm2().conversations]
    assert recorded == list(golden_cases.CONVERSATIONS), golden.REMEDY


@pytest.mark.parametrize("name", golden.names())
def test_a_golden_was_recorded_from_its_case(name: str) -> None:
    found, case = golden.load(name), golden_cases.CASES[name]
    assert json.dumps(found.model.describe()) == json.dumps(case.model.describe()), golden.REMEDY
    assert found.token_ids.shape == (case.length,)
    assert found.window_crossed == case.window_crossed


@pytest.mark.parametrize("name", golden.names())
def test_the_generator_still_makes_the_recorded_weights(name: str) -> None:
    found = golden.load(name)
    assert found.model.digest() == found.weights_digest, golden.REMEDY


@pytest.mark.parametrize("name", golden.names())
def test_logits_are_finite_spread_and_end_at_the_last_token(name: str) -> None:
    found = golden.load(name)
    assert found.logits.shape == (found.positions.size, found.model.vocab_size)
    assert found.logits.dtype == np.float32
    assert np.isfinite(found.logits).all()
    assert found.logits.std(axis=1).min() > 1
    assert found.positions[-1] == found.token_ids.size - 1


def test_recorded_conversations_are_those_that_are_listed() -> None:
    recorded = {chat.name: chat.messages for chat in golden.load_smollm2().conversations}
    assert recorded == golden_cases.CONVERSATIONS, golden.REMEDY


def test_every_family_has_goldens_and_the_crossed_window_is_kept_apart() -> None:
    loaded = golden.load_all()
    assert {found.model.family for found in loaded} == set(ARCHITECTURES)
    assert {found.name for found in loaded} == set(golden.names()) - {"mistral-window-crossed"}


def test_a_golden_of_other_weights_gives_no_model(tmp_path: Path) -> None:
    found = golden.load("llama")
    stale = dataclasses.replace(found, model=dataclasses.replace(found.model, seed=999))
    with pytest.raises(golden.StaleGoldenError, match=r"golden llama: .*make golden"):
        stale.write_model(tmp_path / "stale")
    assert not (tmp_path / "stale").exists()
    assert (found.write_model(tmp_path / "fresh") / "model.safetensors").is_file()


def test_a_golden_is_read_as_it_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = golden.load("qwen3-rope-yarn")
    path = found.save(tmp_path)
    monkeypatch.setattr(golden, "DIRECTORY", tmp_path)
    again = golden.load("qwen3-rope-yarn")
    assert again.model.describe() == found.model.describe()
    np.testing.assert_array_equal(again.logits, found.logits)
    np.testing.assert_array_equal(again.token_ids, found.token_ids)
    (tmp_path / "again").mkdir()
    assert again.save(tmp_path / "again").read_bytes() == path.read_bytes()


def test_golden_files_stay_small() -> None:
    sizes = {path.name: path.stat().st_size for path in golden.DIRECTORY.iterdir()}
    assert max(sizes.values()) < MAX_BYTES
