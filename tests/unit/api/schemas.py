"""The structural schemas of the CRDs as plain JSON schemas, and documents that they accept."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

Schema = dict[str, Any]

_REQUIRED = re.compile(r"has\(self\.(\w+)\)")


def part(crd: dict[str, Any], name: str) -> Schema:
    """`spec` or `status` of a CRD."""
    schema: Schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][name]
    return schema


def json_schema(schema: Schema) -> Schema:
    """The same for a JSON schema validator: fields that only a sentence requires are required."""
    schema = copy.deepcopy(schema)
    for _, node in nodes(schema):
        rules = node.get("x-kubernetes-validations", [])
        spoken = [m[1] for rule in rules if (m := _REQUIRED.fullmatch(rule["rule"]))]
        if wanted := [*node.get("required", []), *spoken]:
            node["required"] = wanted
    return schema


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every node with its path, such as `.serving.tolerations[].key` or `.limits{}`."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


def documents(schema: Schema) -> SearchStrategy[Any]:
    """Values that a schema accepts. CEL is not looked at."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return st.integers(-10, 10**9) | st.text(max_size=schema["maxLength"])
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True)
    made: dict[str, Callable[[Schema], SearchStrategy[Any]]] = {
        "object": _objects if "properties" in schema else _maps,
        "array": _lists,
        "string": _texts,
        "integer": lambda s: st.integers(s.get("minimum", -5), s.get("maximum", 10**9)),
        "boolean": lambda _: st.booleans(),
    }
    return made[schema["type"]](schema)


def _maps(schema: Schema) -> SearchStrategy[dict[str, Any]]:
    most = min(schema["maxProperties"], 3)
    values = documents(schema["additionalProperties"])
    return st.dictionaries(st.text(max_size=10), values, max_size=most)


def _lists(schema: Schema) -> SearchStrategy[list[Any]]:
    least, most = schema.get("minItems", 0), min(schema["maxItems"], 3)
    return st.lists(documents(schema["items"]), min_size=least, max_size=most)


def _texts(schema: Schema) -> SearchStrategy[str]:
    least, most = schema.get("minLength", 0), min(schema["maxLength"], 20)
    return st.text(min_size=least, max_size=most)


def _objects(schema: Schema) -> SearchStrategy[dict[str, Any]]:
    wanted = schema.get("required", [])
    fields = {name: documents(child) for name, child in schema["properties"].items()}
    return st.fixed_dictionaries(
        {name: fields[name] for name in wanted},
        optional={name: field for name, field in fields.items() if name not in wanted},
    )


def planted(schema: Schema) -> Iterator[tuple[str, Any]]:
    """Small documents with something odd, or something at a bound, in one place: in every place.

    A path of which the value itself is left out ends in `-`.
    """
    for odd in _odd_values(schema):
        yield "", odd
    for name, child in schema.get("properties", {}).items():
        rest = {key: value for key, value in _smallest(schema).items() if key != name}
        yield f".{name}-", rest
        for path, value in planted(child):
            yield f".{name}{path}", {**rest, name: value}
    if "items" in schema:
        for path, value in planted(schema["items"]):
            yield f"[]{path}", [value]
    if "additionalProperties" in schema:
        for path, value in planted(schema["additionalProperties"]):
            yield f"{{}}{path}", {"key": value}


def _odd_values(schema: Schema) -> Iterator[Any]:
    yield from (-1, 0, 10**7, "", "odd", "x" * 40000, True, 1.5, [], {}, ["odd"], {"odd": "odd"})
    yield from schema.get("enum", ())
    for bound in ("minimum", "maximum"):
        if bound in schema:
            yield from (schema[bound] - 1, schema[bound], schema[bound] + 1)
    if "maxLength" in schema:
        yield from ("x" * schema["maxLength"], "x" * (schema["maxLength"] + 1))
    if "maxItems" in schema:
        item = _smallest(schema["items"])
        yield from ([item] * schema["maxItems"], [item] * (schema["maxItems"] + 1))
    if "maxProperties" in schema:
        value = _smallest(schema["additionalProperties"])
        for size in (schema["maxProperties"], schema["maxProperties"] + 1):
            yield {str(number): value for number in range(size)}


def _smallest(schema: Schema) -> Any:
    if "properties" in schema:
        wanted = schema.get("required", ())
        return {name: _smallest(schema["properties"][name]) for name in wanted}
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("pattern") == "^(True|False|Unknown)$":
        return "True"
    typed = {"string": "x", "integer": schema.get("minimum", 0), "array": [], "object": {}}
    return typed.get(schema.get("type", "string"), False)
