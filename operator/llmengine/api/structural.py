"""Pydantic models as structural schemas: inlined, without null, every default on the wire."""

from __future__ import annotations

import copy
from typing import Any

from pydantic import BaseModel

from llmengine.api.schema import INT_OR_STRING, MISSING, VALIDATIONS, required

# The API server refuses these in a structural schema, or they say nothing to a reader.
_DROPPED = ("$defs", "title", "prefixItems")
# Defaults have to pass the rules themselves, so they come first and sentences later.
_ORDER = ("description", "type", INT_OR_STRING, "enum", "default", "required", "properties")


def structural_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of a model. Raises ValueError for what a structural schema cannot say."""
    document = model.model_json_schema(by_alias=True, mode="validation")
    return _convert(document, document.get("$defs", {}))


def _convert(node: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    node = copy.copy(node)
    if "$ref" in node:
        target = defs[node.pop("$ref").removeprefix("#/$defs/")]
        node = {**target, **node}
    if node.get(INT_OR_STRING):
        node.pop("type", None)
        node["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    elif "anyOf" in node:
        node = _without_null(node, defs)
    for word in _DROPPED:
        node.pop(word, None)
    # Defaults of optional fields are null in pydantic: absent on the wire.
    if "default" in node and node["default"] is None:
        del node["default"]
    if "properties" in node:
        _properties(node, defs)
    values = node.pop("additionalProperties", None)
    if isinstance(values, dict):
        node["additionalProperties"] = _convert(values, defs)
    if "items" in node:
        node["items"] = _convert(node["items"], defs)
    first = {word: node[word] for word in _ORDER if word in node}
    return {**first, **node}


def _without_null(node: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    choices = [c for c in node.pop("anyOf") if c.get("type") != "null"]
    if len(choices) != 1:
        raise ValueError(f"a union is not a structural schema: {choices}")
    choice = _convert(choices[0], defs)
    sentences = [*choice.pop(VALIDATIONS, []), *node.pop(VALIDATIONS, [])]
    return {**choice, **node, **({VALIDATIONS: sentences} if sentences else {})}


def _properties(node: dict[str, Any], defs: dict[str, Any]) -> None:
    wanted = list(node.pop("required", []))
    sentences = []
    properties = {}
    for name, child in node["properties"].items():
        converted = _convert(child, defs)
        if message := converted.pop(MISSING, None):
            wanted.remove(name)
            sentences.append(required(name, message))
        elif name not in wanted and "default" not in child and "properties" in converted:
            # A part with defaults of its own: without this they would not be filled in.
            converted["default"] = {}
        properties[name] = converted
    node["properties"] = properties
    if wanted:
        node["required"] = wanted
    if sentences:
        node[VALIDATIONS] = [*sentences, *node.get(VALIDATIONS, [])]
