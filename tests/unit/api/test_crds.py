"""The committed CRDs: generated, described to the last field, and bounded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llmengine.api.crd import as_yaml, crds, engine_crd, file_name, main, runtime_crd
from llmengine.api.v1alpha1 import SCHEMA_REVISION, SCHEMA_REVISION_ANNOTATION
from llmengine.architecture import Architecture
from tests.unit.api.schemas import Schema, nodes, part

COMMITTED = Path(__file__).resolve().parents[3] / "crds"


def test_the_committed_crds_are_those_of_the_models(tmp_path: Path) -> None:
    main([str(tmp_path)])
    generated = {path.name: path.read_text() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_text() for path in COMMITTED.iterdir()}
    assert generated == committed, "run 'make generate'"


@pytest.mark.parametrize("crd", crds(), ids=file_name)
def test_a_committed_crd_says_its_schema_revision(crd: dict[str, Any]) -> None:
    read = yaml.safe_load(as_yaml(crd))
    assert read["metadata"]["annotations"] == {SCHEMA_REVISION_ANNOTATION: str(SCHEMA_REVISION)}


@pytest.mark.parametrize("crd", crds(), ids=file_name)
def test_every_field_has_a_description(crd: dict[str, Any]) -> None:
    silent = [path for path, node in _fields(crd) if not node.get("description", "").endswith(".")]
    assert silent == []


@pytest.mark.parametrize("crd", crds(), ids=file_name)
def test_everything_is_bounded_or_the_cost_of_rules_would_not_be(crd: dict[str, Any]) -> None:
    bounds = {"string": "maxLength", "array": "maxItems"}
    unbounded = [
        path
        for path, node in _fields(crd, with_items=True)
        if (bound := bounds.get(node.get("type", ""))) and bound not in node and "enum" not in node
        if "pattern" not in node
    ]
    unbounded += [
        path
        for path, node in _fields(crd)
        if "additionalProperties" in node and "maxProperties" not in node
    ]
    assert unbounded == []


@pytest.mark.parametrize("crd", crds(), ids=file_name)
def test_a_sentence_does_not_repeat_the_path_that_stands_before_it(crd: dict[str, Any]) -> None:
    for path, node in _fields(crd, with_items=True):
        for rule in node.get("x-kubernetes-validations", []):
            says = rule.get("message") or rule["messageExpression"].lstrip("'")
            assert not says.startswith("spec."), path
            assert not says.endswith("."), path


def test_parts_with_defaults_of_their_own_are_filled_in() -> None:
    spec = part(engine_crd(), "spec")["properties"]
    assert {name for name, node in spec.items() if node.get("default") == {}} == {
        "engine",
        "build",
        "serving",
    }
    assert spec["engine"]["properties"]["quantization"]["default"] == {}
    assert part(runtime_crd(), "spec")["properties"]["podDefaults"]["default"] == {}


def _architecture_pattern() -> str:
    items = part(engine_crd(), "spec")["properties"]["architectures"]["items"]
    found = re.fullmatch(r"self\.matches\(r'(.*)'\)", items["x-kubernetes-validations"][0]["rule"])
    assert found is not None
    return found[1]


@given(
    st.from_regex(_architecture_pattern(), fullmatch=True, alphabet=st.characters(codec="ascii"))
)
def test_an_architecture_that_the_api_server_accepts_can_be_read(text: str) -> None:
    assert str(Architecture.parse(text)) == text


def _fields(crd: dict[str, Any], *, with_items: bool = False) -> list[tuple[str, Schema]]:
    """The nodes of spec and status; of lists and maps of plain values only when asked for."""
    found = []
    for name in ("spec", "status"):
        if name in crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]:
            found += list(nodes(part(crd, name), f".{name}"))
    return [(p, n) for p, n in found if with_items or not p.endswith(("[]", "{}"))]
