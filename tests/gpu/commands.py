"""Runs `llmengine-build` and `llmengine-fetch` as their pods do, against a store of one's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmengine.api.v1alpha1 import EngineOptions
from llmengine.artifact import Manifest
from llmengine.key import Scope, engine_factors, engine_key
from llmengine.requests import (
    BUILD_REQUEST_VARIABLE,
    SERVE_REQUEST_VARIABLE,
    BuildRequest,
    ServeRequest,
)
from tests.contract.builder.run import prefixed
from tests.contract.store.place import Place
from tests.gpu.machine import Target

SCOPE = Scope("team-a", "a-claims-uid")


@dataclass(frozen=True)
class Ended:
    """A process that has ended: seconds that it ran, what it said, and its last words."""

    code: int
    seconds: float
    lines: list[dict[str, Any]]
    last: dict[str, Any]


@dataclass(frozen=True)
class Pods:
    """`models`: the claim that all models lie on; `folder`: for what pods write."""

    place: Place
    models: Path
    folder: Path
    target: Target

    def request(self, model: str, options: EngineOptions, revision: str = "one") -> BuildRequest:
        uri = f"pvc://weights/{model}"
        factors = engine_factors(
            backend=self.target.backend,
            backend_version=self.target.version,
            uri=uri,
            revision=revision,
            endpoint=None,
            scope=SCOPE,
            options=options,
            architecture=self.target.architecture,
        )
        return BuildRequest(
            key=engine_key(factors),
            factors=factors,
            scope_namespace=SCOPE.namespace,
            backend=self.target.backend,
            backend_version=self.target.version,
            architecture=str(self.target.architecture),
            uri=uri,
            revision=revision,
            dtype=options.dtype,
            quantization=options.quantization,
            max_batch_size=options.max_batch_size,
            max_sequence_length=options.max_sequence_length,
            max_batch_tokens=options.max_batch_tokens,
            store=self.place.location,
            job="builds/build-1",
        )

    def start_build(self, request: BuildRequest) -> tuple[subprocess.Popen[str], Path]:
        """A running build, and where its last words will be."""
        last = self.folder / "termination-log"
        last.unlink(missing_ok=True)
        process = _start(
            "llmengine_builder.main",
            {
                BUILD_REQUEST_VARIABLE: request.model_dump_json(by_alias=True),
                "LLMENGINE_SCRATCH": str(self.folder / "scratch"),
                "LLMENGINE_MODEL_MOUNT": str(self.models),
                "LLMENGINE_TERMINATION_LOG": str(last),
                **prefixed("STORE_", self.place.user),
            },
        )
        return process, last

    def build(self, request: BuildRequest) -> Ended:
        began = time.monotonic()
        return _ended(*self.start_build(request), began)

    def compile_seconds(self, request: BuildRequest) -> float:
        """Seconds of the compilation alone; the build ends with it."""
        process, _ = self.start_build(request)
        assert process.stdout is not None
        said = (json.loads(line) for line in process.stdout)
        times = {line.get("phase"): line["seconds"] for line in _until(said, "Verify")}
        process.terminate()
        process.wait()
        return float(times["Verify"] - times["Graph"])

    def end_scratch(self) -> None:
        """A pod's scratch disk ends with the pod."""
        shutil.rmtree(self.folder / "scratch")

    def manifest(self, request: BuildRequest) -> Manifest:
        found = self.place.store().get_manifest(request.key, request.scope)
        assert found is not None
        return found.manifest

    def fetch(self, request: BuildRequest, digest: str, name: str) -> Ended:
        """Into `folder/name/engine`, and Triton's repository beside it."""
        began = time.monotonic()
        folder = self.folder / name
        folder.mkdir()
        serve = ServeRequest(
            key=request.key,
            scope_namespace=request.scope_namespace,
            manifest_digest=digest,
            model_name=name,
            store=self.place.location,
        )
        last = folder / "termination-log"
        process = _start(
            "llmengine_server.fetch",
            {
                SERVE_REQUEST_VARIABLE: serve.model_dump_json(by_alias=True),
                "LLMENGINE_ENGINE": str(folder / "engine"),
                "LLMENGINE_MODELS": str(folder / "models"),
                "LLMENGINE_TERMINATION_LOG": str(last),
                **prefixed("STORE_", self.place.user),
            },
        )
        return _ended(process, last, began)


def _until(lines: Iterable[dict[str, Any]], phase: str) -> Iterator[dict[str, Any]]:
    """The lines of phases up to the first one of `phase`."""
    for line in lines:
        if "phase" in line:
            yield line
            if line["phase"] == phase:
                return


def _start(module: str, variables: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module],
        env={**os.environ, "AWS_EC2_METADATA_DISABLED": "true", **variables},
        stdout=subprocess.PIPE,
        text=True,
    )


def _ended(process: subprocess.Popen[str], last: Path, began: float) -> Ended:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(json.loads(line))
        if lines[-1].get("percent", 0) in (0, 100) or "warning" in lines[-1]:
            print("   ", line.strip()[:300], flush=True)
    code = process.wait()
    return Ended(code, time.monotonic() - began, lines, json.loads(last.read_text()))
