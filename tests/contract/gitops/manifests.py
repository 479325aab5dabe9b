"""The example manifests for GitOps tools, by kind and name."""

from __future__ import annotations

from typing import Any

import yaml

from tests.cluster.paths import REPOSITORY

EXAMPLES = REPOSITORY / "examples" / "gitops"


def example(kind: str, name: str) -> dict[str, Any]:
    """One object of the examples."""
    found = [
        document
        for file in sorted(EXAMPLES.rglob("*.yaml"))
        for document in yaml.safe_load_all(file.read_text())
        if (document["kind"], document.get("metadata", {}).get("name")) == (kind, name)
    ]
    assert len(found) == 1, f"{len(found)} examples of {kind} {name}"
    return dict(found[0])


def health_check_expressions() -> dict[str, str]:
    """What Flux's example says of LLMEngines."""
    (entry,) = example("Kustomization", "llmengines")["spec"]["healthCheckExprs"]
    assert (entry.pop("apiVersion"), entry.pop("kind")) == ("llmengine.io/v1alpha1", "LLMEngine")
    return dict(entry)
