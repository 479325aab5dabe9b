"""A user at a desk: manifests in a folder, kubectl, and models that nobody has built before."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmengine_operator.kinds import DEPLOYMENT, LLMENGINE, POD
from tests.contract.operator.builder import Builder, request_of
from tests.contract.operator.stage import MODEL, PATIENCE, Stage

ENGINE_KEY = "llmengine.io/engine-key"


@dataclass(frozen=True)
class Desk:
    """`revision` is a word of this test's own that begins the name of each model's revision."""

    stage: Stage
    builder: Builder
    folder: Path
    revision: str

    def revisions(self, *versions: str) -> list[str]:
        return [self.model(version)["revision"] for version in versions]

    def model(self, version: str) -> dict[str, str]:
        """spec.model of a version of this test's model."""
        return {"uri": MODEL, "revision": f"{self.revision}-{version}"}

    def manifest(self, version: str = "v1", **spec: Any) -> dict[str, Any]:
        """The engine `chat` as it may lie in Git."""
        return self.stage.manifest("chat", **{"model": self.model(version), **spec})

    def write(self, manifest: Mapping[str, Any]) -> str:
        """A file with a manifest."""
        file = self.folder / "engine.yaml"
        file.write_text(yaml.safe_dump(dict(manifest)))
        return str(file)

    def run(
        self, *arguments: str, timeout: float = 2 * PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """kubectl, whatever its exit status."""
        command = ("kubectl", "--namespace", self.stage.team, *arguments)
        return self.stage.cluster.exec(*command, capture_output=True, check=False, timeout=timeout)

    def kubectl(self, *arguments: str) -> str:
        """What kubectl prints, when it succeeds."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """kubectl, running."""
        command = ("kubectl", "--namespace", self.stage.team, *arguments)
        return subprocess.Popen(
            self.stage.cluster.command(*command),
            env=self.stage.cluster.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def job(self, version: str) -> dict[str, Any]:
        """The build Job of a version, once it is there."""
        wanted = self.model(version)["revision"]

        def seen() -> dict[str, Any] | None:
            return next((j for j in self.stage.jobs() if request_of(j).revision == wanted), None)

        return dict(self.stage.until(f"a build of {version}", seen))

    def build(self, version: str) -> None:
        """Let the build of a version end well, and wait until it serves."""
        self.builder.finish(self.job(version))
        self.stage.until_reason("Serving")

    def engine(self) -> dict[str, Any]:
        found = self.stage.get(LLMENGINE, "chat")
        assert found is not None
        return found

    def deployment(self) -> dict[str, Any]:
        found = self.stage.get(DEPLOYMENT, "chat-amd64")
        assert found is not None
        return found

    def pods(self) -> set[str]:
        """The uids of the server pods."""
        found: Sequence[Any] = self.stage.items(POD, labels="llmengine.io/engine=chat")
        return {pod["metadata"]["uid"] for pod in found}

    def served_key(self) -> str:
        template = self.deployment()["spec"]["template"]
        return str(template["metadata"]["annotations"][ENGINE_KEY])
