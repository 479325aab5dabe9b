"""Known engines and the keys that each release gave them. A recorded key is never changed.

`python -m tests.unit.key.vectors RELEASE` records what this checkout makes of the newest
release's engines; it is run once, when a release is made.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmengine.api.v1alpha1 import EngineOptions
from llmengine.architecture import Architecture
from llmengine.key import Factor, Scope, canonical_json, engine_factors, engine_key

GOLDEN = Path(__file__).with_name("golden.json")


@dataclass(frozen=True)
class Vector:
    """An engine as a user describes it, its canonical text, and the key that a release gave it."""

    release: str
    name: str
    inputs: Mapping[str, Any]
    canonical: str
    key: str

    def factors(self) -> dict[str, Factor]:
        """What this checkout makes of the inputs."""
        inputs = dict(self.inputs)
        return engine_factors(
            options=EngineOptions.model_validate(inputs.pop("engine")),
            architecture=Architecture.parse(inputs.pop("architecture")),
            scope=Scope(**inputs.pop("scope", {})),
            endpoint=inputs.pop("endpoint", None),
            backend_version=inputs.pop("backendVersion"),
            **inputs,
        )

    def of_this_checkout(self, release: str) -> Vector:
        factors = self.factors()
        return replace(
            self,
            release=release,
            canonical=canonical_json(factors).decode(),
            key=engine_key(factors),
        )


def read_vectors() -> list[Vector]:
    """All vectors, those of the newest release last."""
    golden = json.loads(GOLDEN.read_text())
    return [Vector(release, **entry) for release, entries in golden.items() for entry in entries]


def record(release: str) -> None:
    """Add this checkout's keys as those of `release`. Raises ValueError when it has some."""
    golden = json.loads(GOLDEN.read_text())
    if release in golden:
        raise ValueError(f"{GOLDEN} has keys of {release} already, and keys are never changed")
    newest = list(golden)[-1]
    golden[release] = [
        {
            "name": vector.name,
            "inputs": vector.inputs,
            "canonical": vector.canonical,
            "key": vector.key,
        }
        for old in read_vectors()
        if old.release == newest
        for vector in [old.of_this_checkout(release)]
    ]
    GOLDEN.write_text(json.dumps(golden, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    record(sys.argv[1])
