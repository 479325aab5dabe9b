"""The tables of fields, and of what is refused, in the pages of the kinds: written from the models.

`python docs/generate.py` writes them in place; the result is committed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from llmengine.api.crd import engine_crd, runtime_crd
from llmengine.api.schema import INT_OR_STRING, VALIDATIONS
from llmengine.api.v1alpha1 import EngineRuntimeSpec, LLMEngineSpec, LLMEngineStatus

DOCS = Path(__file__).resolve().parent
# Objects of core/v1 that stand in several places: each has a table of its own.
SHARED = ("Resources", "Toleration")
# What the API server puts before a sentence, by the reason of its rule.
_PREFIXES = {"FieldValueRequired": "Required value: ", "FieldValueForbidden": "Forbidden: "}
# A value of the object in the middle or at the end of a sentence of CEL.
_VALUE = re.compile(r"' \+ [^']+ \+ '|' \+ [^']+$")

Node = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """One line of a table. `default`: as it is written in YAML, empty where there is none."""

    path: str
    type: str
    default: str
    meaning: str
    required: bool


class Fields:
    """The fields of a model, in its own order."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._root: Node = model.model_json_schema(by_alias=True)
        self._models: Mapping[str, Node] = self._root.get("$defs", {})

    def all(self, path: str) -> Iterator[Field]:
        return self._below(self._root, path)

    def of(self, model: str) -> Iterator[Field]:
        """The fields of a part, by the name of its model."""
        return self._below(self._models[model], "")

    def _below(self, node: Node, path: str) -> Iterator[Field]:
        wanted = set(node.get("required", ()))
        for name, written in node["properties"].items():
            here = f"{path}.{name}" if path else name
            field, model = self._resolved(written)
            listed = "items" in field
            inside, part = self._resolved(field["items"]) if listed else (field, model)
            opened = "properties" in inside and part not in SHARED
            optional = "default" in written and written["default"] is None
            # A part that is always there says nothing by being there: only its fields do.
            if not opened or optional or listed:
                yield Field(
                    here,
                    self._type(field, model),
                    _default(written),
                    field.get("description", ""),
                    name in wanted,
                )
            if opened:
                yield from self._below(inside, f"{here}[]" if listed else here)

    def _resolved(self, node: Node) -> tuple[Node, str]:
        """A node with what it refers to filled in and without null, and its model's name."""
        if "anyOf" in node and INT_OR_STRING not in node:
            (choice,) = (c for c in node["anyOf"] if c.get("type") != "null")
            inner, model = self._resolved(choice)
            return {**inner, **_without(node, "anyOf", "default", "title")}, model
        if "$ref" in node:
            model = node["$ref"].removeprefix("#/$defs/")
            return {**self._models[model], **_without(node, "$ref")}, model
        return node, ""

    def _type(self, field: Node, model: str) -> str:
        for container, word in (("items", "list"), ("additionalProperties", "map")):
            if isinstance(field.get(container), dict):
                return f"{word} of {self._type(*self._resolved(field[container]))}"
        if model in SHARED:
            return f"[{model}](#{model.lower()})"
        if "enum" in field:
            return ", ".join(f"`{value}`" for value in field["enum"])
        if "maximum" in field:
            return f"{field['type']}, {field['minimum']} to {field['maximum']}"
        return "amount" if INT_OR_STRING in field else str(field["type"])


def _without(node: Node, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in keys}


def _default(written: Node) -> str:
    value = written.get("default")
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def refusals(node: Node, path: str) -> Iterator[tuple[str, str]]:
    """Every sentence that a schema has, with the path of the field that it is said of."""
    for rule in node.get(VALIDATIONS, ()):
        text = rule.get("message") or _VALUE.sub("...", rule["messageExpression"]).strip("'")
        field = path + rule.get("fieldPath", "")
        yield field.removeprefix("."), _PREFIXES.get(rule.get("reason", ""), "") + text
    for name, child in node.get("properties", {}).items():
        yield from refusals(child, f"{path}.{name}")
    for container, mark in (("items", "[]"), ("additionalProperties", "[KEY]")):
        if isinstance(node.get(container), dict):
            yield from refusals(node[container], path + mark)


def spec_table(fields: Iterator[Field]) -> str:
    """What a user writes."""
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for field in fields:
        default = "**required**" if field.required else f"`{field.default}`" * bool(field.default)
        lines.append(f"| `{field.path}` | {field.type} | {default} | {field.meaning} |")
    return "\n".join(lines)


def status_table(fields: Iterator[Field]) -> str:
    """What a user reads."""
    lines = ["| field | type | meaning |", "|---|---|---|"]
    lines += [f"| `{field.path}` | {field.type} | {field.meaning} |" for field in fields]
    return "\n".join(lines)


def refusal_table(crd: dict[str, Any]) -> str:
    """Each sentence once, with all the fields that it is said of."""
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    paths: dict[str, list[str]] = {}
    for path, sentence in refusals(schema, ""):
        paths.setdefault(sentence, []).append(f"`{path}`")
    lines = ["| what the API server says | of which field |", "|---|---|"]
    lines += [f"| {said} | {', '.join(fields)} |" for said, fields in paths.items()]
    return "\n".join(lines)


def tables() -> dict[Path, dict[str, str]]:
    """For each page what stands between `<!-- NAME: generated -->` and `<!-- end of NAME -->`."""
    engine, runtime = Fields(LLMEngineSpec), Fields(EngineRuntimeSpec)
    shared = {name: spec_table(engine.of(name)) for name in SHARED}
    return {
        DOCS / "llmengine.md": {
            "spec": spec_table(engine.all("spec")),
            "status": status_table(Fields(LLMEngineStatus).all("status")),
            "refusals": refusal_table(engine_crd()),
            **shared,
        },
        DOCS / "engineruntime.md": {
            "spec": spec_table(runtime.all("spec")),
            "refusals": refusal_table(runtime_crd()),
            **shared,
        },
    }


def filled(page: str, parts: Mapping[str, str]) -> str:
    """A page with its tables as of now. Raises ValueError when it lacks the place for one."""
    for name, table in parts.items():
        begin, end = f"<!-- {name}: generated -->", f"<!-- end of {name} -->"
        before, found, rest = page.partition(begin)
        _, ended, after = rest.partition(end)
        if not found or not ended:
            raise ValueError(f"the page has no {begin} followed by {end}")
        page = f"{before}{begin}\n{table}\n{end}{after}"
    return page


def generated() -> dict[Path, str]:
    """Every page that has generated parts, with its content."""
    return {path: filled(path.read_text(), parts) for path, parts in tables().items()}


def main() -> None:
    """Write the tables into the pages beside this file."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for path, content in generated().items():
        path.write_text(content)


if __name__ == "__main__":
    main()
