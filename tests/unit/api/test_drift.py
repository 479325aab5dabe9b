"""What the CRDs accept, the models read; what the models write, the CRDs accept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, SearchStrategy
from pydantic import ValidationError

from llmengine.api.crd import engine_crd, runtime_crd
from llmengine.api.schema import ApiModel
from llmengine.api.v1alpha1 import EngineRuntimeSpec, LLMEngineSpec, LLMEngineStatus
from tests.unit.api.schemas import Schema, documents, json_schema, part, planted

SETTINGS = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass(frozen=True)
class Pair:
    model: type[ApiModel]
    schema: Schema
    accepted: SearchStrategy[Any]

    @classmethod
    def of(cls, model: type[ApiModel], crd: dict[str, Any], name: str) -> Pair:
        schema = json_schema(part(crd, name))
        return cls(model, schema, documents(schema))

    def schema_accepts(self, document: Any) -> bool:
        return jsonschema.Draft202012Validator(self.schema).is_valid(document)

    def model_accepts(self, document: Any) -> bool:
        try:
            self.model.model_validate_json(json.dumps(document), strict=True)
        except ValidationError:
            return False
        return True


pairs = pytest.mark.parametrize(
    "pair",
    [
        pytest.param(Pair.of(LLMEngineSpec, engine_crd(), "spec"), id="spec of an LLMEngine"),
        pytest.param(Pair.of(LLMEngineStatus, engine_crd(), "status"), id="status of an LLMEngine"),
        pytest.param(
            Pair.of(EngineRuntimeSpec, runtime_crd(), "spec"), id="spec of an EngineRuntime"
        ),
    ],
)


@pairs
@SETTINGS
@given(st.data())
def test_a_document_of_the_schema_is_read_and_written_back(pair: Pair, data: DataObject) -> None:
    document = data.draw(pair.accepted)
    model = pair.model.model_validate(document)
    written = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    jsonschema.Draft202012Validator(pair.schema).validate(written)
    assert pair.model.model_validate(written) == model
    assert _within(document, written)


@pairs
def test_schema_and_model_agree_on_what_is_wrong_in_every_place(pair: Pair) -> None:
    verdicts = {True: 0, False: 0}
    for path, document in planted(pair.schema):
        accepted = pair.schema_accepts(document)
        assert pair.model_accepts(document) == accepted, (path, str(document)[:200])
        verdicts[accepted] += 1
    assert min(verdicts.values()) > 50


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({"runtime": "x"}, id="no model"),
        pytest.param({"runtime": "x", "model": {"uri": "hf://a/b"}}, id="no revision"),
        pytest.param(
            {"runtime": 5, "model": {"uri": "hf://a/b", "revision": "v1"}}, id="a number for a name"
        ),
        pytest.param(
            {
                "runtime": "x",
                "model": {"uri": "hf://a/b", "revision": "v1"},
                "engine": {"dtype": "float8"},
            },
            id="an unknown dtype",
        ),
    ],
)
def test_both_refuse(document: dict[str, Any]) -> None:
    pair = Pair.of(LLMEngineSpec, engine_crd(), "spec")
    assert not pair.schema_accepts(document)
    assert not pair.model_accepts(document)


def _within(part: Any, whole: Any) -> bool:
    """Whether everything of a document is still there: nothing was dropped in silence."""
    if isinstance(part, dict):
        return all(key in whole and _within(value, whole[key]) for key, value in part.items())
    if isinstance(part, list):
        return len(part) == len(whole) and all(
            _within(one, other) for one, other in zip(part, whole, strict=True)
        )
    return bool(part == whole)
