"""Schemas for kubeconform without the network: Kubernetes' own and those of our CRDs."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate

from llmengine.api.crd import crds
from tests.tools import build as tools

VERSION = "1.37.0"


def write_schemas(folder: Path) -> None:
    """Kubernetes' schemas of that version, strict, and ours, as kubeconform wants to find them."""
    package = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    for source in (package / f"v{VERSION}-local-strict").glob("*.json"):
        document = json.loads(source.read_text().replace("/api/_definitions", "_definitions"))
        (folder / source.name).write_text(json.dumps(_without_ids(document)))
    for crd in crds():
        group = crd["spec"]["group"].partition(".")[0]
        for version in crd["spec"]["versions"]:
            name = f"{crd['spec']['names']['singular']}-{group}-{version['name']}.json"
            schema = _strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            (folder / name).write_text(json.dumps(schema))


def kubeconform(folder: Path, manifests: str, *, skip: str = "") -> None:
    """Raises AssertionError with what is wrong with the manifests."""
    done = subprocess.run(
        [
            str(tools.path("kubeconform")),
            "-strict",
            "-summary",
            *(["-skip", skip] if skip else []),
            *("-kubernetes-version", VERSION),
            *("-schema-location", f"{folder}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json"),
        ],
        input=manifests,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Invalid: 0, Errors: 0" in done.stdout, done.stdout


def _without_ids(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: _without_ids(value)
            for key, value in node.items()
            if not (key == "$id" and isinstance(value, str))
        }
    return [_without_ids(item) for item in node] if isinstance(node, list) else node


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A structural schema that refuses unknown fields, as the API server does for kubectl."""
    schema = copy.deepcopy(schema)
    places = [schema]
    while places:
        node = places.pop()
        if "properties" in node:
            node["additionalProperties"] = False
        places += [value for value in node.values() if isinstance(value, dict)]
    return schema
