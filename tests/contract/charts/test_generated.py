"""What in the charts is generated, or must agree with something elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import llmengine
from charts import generate
from llmengine.api.crd import crds
from llmengine.api.v1alpha1 import SCHEMA_REVISION
from llmengine_operator.crds import COMMAND
from tests.contract.charts.alternatives import ALTERNATIVES
from tests.contract.charts.helm import CHARTS, CRDS, OPERATOR, Helm

both = pytest.mark.parametrize("chart", [CRDS, OPERATOR], ids=lambda chart: chart.name)


def test_what_is_generated_is_as_it_would_be_generated_now() -> None:
    files = generate.generated(CHARTS)
    assert {CRDS / "README.md", OPERATOR / "README.md"} < set(files)
    stale = [str(path) for path, content in files.items() if path.read_text() != content]
    assert stale == [], "run 'make generate'"


def test_the_chart_of_the_kinds_has_exactly_the_kinds(helm: Helm) -> None:
    rendered = {m["metadata"]["name"]: m for m in helm.render(CRDS, {})}
    assert set(rendered) == {crd["metadata"]["name"] for crd in crds()}
    for crd in crds():
        manifest = rendered[crd["metadata"]["name"]]
        assert manifest["spec"] == crd["spec"]
        kept = {"helm.sh/resource-policy": "keep"}
        assert manifest["metadata"]["annotations"] == {**crd["metadata"]["annotations"], **kept}


def test_text_that_helm_would_fill_in_is_not_written_into_a_template() -> None:
    crd = crds()[0]
    crd["spec"]["names"]["kind"] = "{{ .Values.kind }}"
    with pytest.raises(ValueError, match=r"llmengines.llmengine.io.yaml has \{\{ in it"):
        generate.crd_template(crd)


@both
def test_a_chart_has_the_version_of_the_code(chart: Path) -> None:
    described = yaml.safe_load((chart / "Chart.yaml").read_text())
    assert described["name"] == chart.name
    assert described["version"] == described["appVersion"] == llmengine.__version__


def test_chart_and_operator_want_the_same_kinds_and_say_the_same_command() -> None:
    refusals = (OPERATOR / "templates" / "_refuse.tpl").read_text()
    assert f'"llmengine.schemaRevision" -}}}}{SCHEMA_REVISION}{{{{- end' in refusals
    command = COMMAND.replace("llmengine-system", "%s")
    assert f'$command := printf "{command}" .Release.Namespace' in refusals
    for chart in (CRDS, OPERATOR):
        assert COMMAND in (chart / "README.md").read_text()


@both
def test_no_value_is_accepted_that_means_nothing(chart: Path) -> None:
    schema = json.loads((chart / "values.schema.json").read_text())
    loose = [
        path for path, node in _objects(schema) if node.get("additionalProperties") is not False
    ]
    assert loose == []


@both
def test_every_value_says_what_it_is(chart: Path) -> None:
    schema = json.loads((chart / "values.schema.json").read_text())
    definitions = schema.get("definitions", {})
    silent = [
        f"{path}.{name}"
        for path, node in _objects(schema)
        for name, child in node["properties"].items()
        if not generate.resolved(child, definitions).get("title", "").endswith(".")
    ]
    assert silent == []


def test_schema_and_defaults_have_the_same_values() -> None:
    schema = json.loads((OPERATOR / "values.schema.json").read_text())
    values = yaml.safe_load((OPERATOR / "values.yaml").read_text())
    listed = {path for path, _, _ in generate.rows(schema, values)}
    assert set(_leaves(values, listed)) == listed
    # Each has another value in the tests, which show that it changes something.
    assert set(ALTERNATIVES) == listed


def _objects(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every part of the schema that has named properties."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield path, schema
        for name, child in schema.items():
            yield from _objects(child, f"{path}/{name}")


def _leaves(values: dict[str, Any], stop: set[str], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        here = f"{path}.{name}" if path else name
        if here not in stop and isinstance(value, dict) and value:
            yield from _leaves(value, stop, here)
        else:
            yield here
