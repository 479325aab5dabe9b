"""The models of the API as CustomResourceDefinitions.

`python -m llmengine.api.crd DIRECTORY` writes one file a kind; the result is committed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from llmengine.api import v1alpha1
from llmengine.api.schema import cel, required
from llmengine.api.structural import structural_schema

_API_VERSION = "Version of the schema of this object, as in every Kubernetes object."
_KIND = "Kind of this object, as in every Kubernetes object."


def engine_crd() -> dict[str, Any]:
    """The CRD of LLMEngine."""
    status = structural_schema(v1alpha1.LLMEngineStatus)
    # Without a status, kstatus (Flux, Helm) takes an object for done before the operator has seen
    # it.
    status["default"] = {"observedGeneration": -1}
    schema = _object(
        "A language model, compiled for the cluster's architectures and served.",
        cel(
            "self.metadata.name.matches('^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$')",
            "='must be at most 40 characters of a-z, 0-9 and -, beginning with a letter and ending"
            " with a letter or digit (got \"' + self.metadata.name + '\"), because Services are"
            " named after it'",
            field="metadata.name",
        ),
        required("spec", "give spec.runtime and spec.model"),
        spec=structural_schema(v1alpha1.LLMEngineSpec),
        status=status,
    )
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
            _column("Age", ".metadata.creationTimestamp", type_="date"),
            _column("URL", ".status.url", wide=True),
            _column("Message", '.status.conditions[?(@.type=="Ready")].message', wide=True),
        ],
    )


def runtime_crd() -> dict[str, Any]:
    """The CRD of EngineRuntime."""
    schema = _object(
        "A backend in one exact version, and the image that builds and serves with it.",
        required("spec", "give spec.backend, version, accelerator and image"),
        spec=structural_schema(v1alpha1.EngineRuntimeSpec),
    )
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
            _column("Age", ".metadata.creationTimestamp", type_="date"),
            _column("Image", ".spec.image.repository", wide=True),
            _column("Tag", ".spec.image.tag", wide=True),
        ],
    )


def crds() -> list[dict[str, Any]]:
    """All CRDs of this release."""
    return [engine_crd(), runtime_crd()]


def _object(description: str, *sentences: dict[str, str], **parts: Any) -> dict[str, Any]:
    return {
        "description": description,
        "type": "object",
        "properties": {
            "apiVersion": {"description": _API_VERSION, "type": "string"},
            "kind": {"description": _KIND, "type": "string"},
            # Named, so that a rule's fieldPath may point at it.
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            **parts,
        },
        "x-kubernetes-validations": list(sentences),
    }


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
                # No categories: one with the name of a kind breaks "kubectl get llmengine NAME".
                "shortNames": [short],
            },
            "versions": [version],
        },
    }


def file_name(crd: dict[str, Any]) -> str:
    """The name of a CRD's file."""
    return f"{crd['metadata']['name']}.yaml"


def as_yaml(document: dict[str, Any]) -> str:
    """A generated manifest as text, the same for the same content."""
    return yaml.safe_dump(document, sort_keys=False, width=100, allow_unicode=True)


def main(argv: list[str] | None = None) -> None:
    """Write the CRDs of this release into a directory."""
    parser = argparse.ArgumentParser(description="Write the CRDs of this release.")
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args(argv).directory
    directory.mkdir(parents=True, exist_ok=True)
    for crd in crds():
        (directory / file_name(crd)).write_text(as_yaml(crd))


if __name__ == "__main__":
    main()
