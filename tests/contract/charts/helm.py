"""Helm, with nothing of the user's: renders charts, refuses values, installs releases."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.tools import build as tools

CHARTS = Path(__file__).resolve().parents[3] / "charts"
OPERATOR = CHARTS / "llmengine-operator"
CRDS = CHARTS / "llmengine-crds"

MINIMAL: dict[str, Any] = {
    "image": {"repository": "registry.test/llmengine/operator"},
    "store": {"bucket": "engines"},
    "runtimes": {"onnxruntime-1.32.0": {"image": {"repository": "registry.test/engine"}}},
}
"""All that has no default."""


class HelmError(AssertionError):
    """Helm has failed; the text is its error output."""


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Values as Helm merges them: maps are merged, all else is replaced."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = result.get(key)
            if isinstance(value, Mapping) and isinstance(below, dict):
                result[key] = merged(below, value)
            else:
                result[key] = value
    return result


def at(path: str, value: Any) -> dict[str, Any]:
    """Values with one set, such as `store.bucket`."""
    for step in reversed(path.split(".")):
        value = {step: value}
    assert isinstance(value, dict)
    return value


@dataclass(frozen=True, slots=True)
class Helm:
    """Commands of Helm, with its home in a folder of its own; `kubeconfig` where it needs one."""

    home: Path
    kubeconfig: Path | None = None

    def run(self, *arguments: str, values: Mapping[str, Any] | None = None) -> str:
        """What Helm prints. Raises HelmError."""
        self.home.mkdir(parents=True, exist_ok=True)
        command = [str(tools.path("helm")), *arguments]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", dir=self.home) as file:
            if values is not None:
                yaml.safe_dump(dict(values), file)
                file.flush()
                command += ["--values", file.name]
            done = subprocess.run(
                command, env=self._environment(), capture_output=True, text=True, check=False
            )
        if done.returncode != 0:
            raise HelmError(done.stderr.strip())
        return done.stdout

    def render(
        self,
        chart: Path = OPERATOR,
        values: Mapping[str, Any] = MINIMAL,
        *,
        release: str = "llmengine-operator",
        namespace: str = "llmengine-system",
    ) -> list[dict[str, Any]]:
        """The manifests, without a cluster."""
        text = self.run("template", release, str(chart), "--namespace", namespace, values=values)
        return [document for document in yaml.safe_load_all(text) if document]

    def _environment(self) -> dict[str, str]:
        homes = {f"HELM_{name}_HOME": str(self.home / name) for name in ("CACHE", "CONFIG", "DATA")}
        # Without a cluster there must be none by chance either.
        kubeconfig = str(self.kubeconfig or self.home / "no-kubeconfig")
        return {**os.environ, **homes, "KUBECONFIG": kubeconfig}


def find(manifests: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """The one manifest of a kind and, if need be, a name."""
    found = [m for m in manifests if m["kind"] == kind and name in ("", m["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def of_kind(manifests: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [m for m in manifests if m["kind"] == kind]
