"""The pydantic models of the API, as CustomResourceDefinitions with structural schemas.

`python -m llmengine.api.crd DIRECTORY` writes one file a kind; the result is committed.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from llmengine.api import v1alpha1
from llmengine.api.schema import cel

# The API server refuses these in a structural schema, or they say nothing to a reader.
_DROPPED = ("$defs", "title", "prefixItems")


def engine_crd() -> dict[str, Any]:
    """The CRD of LLMEngine."""
    name_rule = (
        "self.metadata.name.size() <= 40"
        " && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')"
    )
    schema = {
        "type": "object",
        "description": "A language model, compiled for the cluster's architectures and served.",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _structural(v1alpha1.LLMEngineSpec),
            "status": {
                **_structural(v1alpha1.LLMEngineStatus),
                # Without a status, kstatus (Flux, Helm) takes an object for done before the
                # operator has seen it.
                "default": {"observedGeneration": -1},
            },
        },
        "x-kubernetes-validations": [
            cel(
                name_rule,
                "='metadata.name must be a DNS label of at most 40 characters that starts with a"
                " letter, because Services are named after it (got \"' + self.metadata.name"
                " + '\")'",
            ),
            cel("has(self.spec)", "spec is missing: give spec.runtime and spec.model"),
        ],
    }
    return _crd(
        kind="LLMEngine",
        plural="llmengines",
        short="lle",
        scope="Namespaced",
        schema=schema,
        subresources={"status": {}},
        columns=[
            _column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            _column("Reason", '.status.conditions[?(@.type=="Ready")].reason'),
            _column("Model", ".spec.model.uri"),
            _column("Runtime", ".spec.runtime"),
            _column("Engines", ".status.summary.engines"),
            _column("Replicas", ".status.summary.replicas"),
            _column("URL", ".status.url", wide=True),
            _column("Message", '.status.conditions[?(@.type=="Ready")].message', wide=True),
            _column("Age", ".metadata.creationTimestamp", type_="date"),
        ],
    )


def runtime_crd() -> dict[str, Any]:
    """The CRD of EngineRuntime."""
    schema = {
        "type": "object",
        "description": "A backend in one exact version, and the image that builds and serves.",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _structural(v1alpha1.EngineRuntimeSpec),
        },
        "x-kubernetes-validations": [
            cel("has(self.spec)", "spec is missing: give backend, version, accelerator and image")
        ],
    }
    return _crd(
        kind="EngineRuntime",
        plural="engineruntimes",
        short="ler",
        scope="Cluster",
        schema=schema,
        subresources=None,
        columns=[
            _column("Backend", ".spec.backend"),
            _column("Version", ".spec.version"),
            _column("Accelerator", ".spec.accelerator"),
            _column("Image", ".spec.image.repository", wide=True),
            _column("Age", ".metadata.creationTimestamp", type_="date"),
        ],
    )


def _column(
    name: str, path: str, *, type_: str = "string", wide: bool = False
) -> dict[str, str | int]:
    column: dict[str, str | int] = {"name": name, "type": type_, "jsonPath": path}
    if wide:
        column["priority"] = 1
    return column


def _crd(
    *,
    kind: str,
    plural: str,
    short: str,
    scope: str,
    schema: dict[str, Any],
    subresources: dict[str, Any] | None,
    columns: list[dict[str, str | int]],
) -> dict[str, Any]:
    version: dict[str, Any] = {
        "name": v1alpha1.VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": schema},
    }
    if subresources is not None:
        version["subresources"] = subresources
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{v1alpha1.GROUP}",
            "annotations": {
                v1alpha1.SCHEMA_REVISION_ANNOTATION: str(v1alpha1.SCHEMA_REVISION),
            },
        },
        "spec": {
            "group": v1alpha1.GROUP,
            "scope": scope,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["llmengine"],
            },
            "versions": [version],
        },
    }


def _structural(model: type[BaseModel]) -> dict[str, Any]:
    document = model.model_json_schema(by_alias=True, mode="validation")
    return _convert(document, document.get("$defs", {}))


def _convert(node: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """One JSON schema node, as a structural schema: inlined, without null, bounds as in v1."""
    node = copy.copy(node)
    if "$ref" in node:
        target = defs[node.pop("$ref").removeprefix("#/$defs/")]
        node = {**target, **node}
    if "anyOf" in node:
        node = _without_null(node, defs)
    if node.get("x-kubernetes-int-or-string"):
        node.pop("type", None)
        node.pop("anyOf", None)
    for word in _DROPPED:
        node.pop(word, None)
    # Defaults of optional fields are null in pydantic: absent on the wire.
    if "default" in node and node["default"] is None:
        del node["default"]
    if "properties" in node:
        _properties(node, defs)
    if isinstance(values := node.get("additionalProperties"), dict):
        node["additionalProperties"] = _convert(values, defs)
    elif "additionalProperties" in node:
        del node["additionalProperties"]
    if "items" in node:
        node["items"] = _convert(node["items"], defs)
    return node


def _without_null(node: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    choices = [c for c in node.pop("anyOf") if c.get("type") != "null"]
    if len(choices) == 1:
        return {**_convert(choices[0], defs), **node}
    if node.get("x-kubernetes-int-or-string") or any(
        c.get("x-kubernetes-int-or-string") for c in choices
    ):
        return {**node, "x-kubernetes-int-or-string": True}
    raise ValueError(f"a union is not a structural schema: {choices}")


def _properties(node: dict[str, Any], defs: dict[str, Any]) -> None:
    required = list(node.pop("required", []))
    sentences = []
    properties = {}
    for name, child in node["properties"].items():
        converted = _convert(child, defs)
        if message := converted.pop("x-llmengine-missing", None):
            required.remove(name)
            sentences.append(cel(f"has(self.{name})", message))
        elif name not in required and "default" not in child and "properties" in converted:
            # A part with defaults of its own: without this they would not be filled in.
            converted["default"] = {}
        properties[name] = converted
    node["properties"] = properties
    if required:
        node["required"] = required
    if sentences:
        node["x-kubernetes-validations"] = [
            *sentences,
            *node.get("x-kubernetes-validations", []),
        ]


def main(argv: list[str] | None = None) -> None:
    """Write the CRDs of this release into a directory."""
    parser = argparse.ArgumentParser(description="Write the CRDs of this release.")
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args(argv).directory
    directory.mkdir(parents=True, exist_ok=True)
    for crd in (engine_crd(), runtime_crd()):
        path = directory / f"{crd['metadata']['name']}.yaml"
        path.write_text(yaml.safe_dump(crd, sort_keys=False, width=100, allow_unicode=True))


if __name__ == "__main__":
    main()
