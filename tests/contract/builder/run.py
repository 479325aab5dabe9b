"""Runs `llmengine-build` and `llmengine-fetch` the way their pods do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmengine.api.v1alpha1 import DType, EngineOptions
from llmengine.architecture import Architecture
from llmengine.artifact import Manifest
from llmengine.key import Scope, engine_factors, engine_key
from llmengine.requests import (
    BUILD_REQUEST_VARIABLE,
    SERVE_REQUEST_VARIABLE,
    TERMINATION_MESSAGE_BYTES,
    BuildRequest,
    S3Endpoint,
    ServeRequest,
)
from tests.cluster import s3
from tests.contract.builder.hub import BAD_TOKEN, COMMIT, TOKEN
from tests.contract.store.place import Place

SECONDS = 60
OPTIONS = EngineOptions(
    dtype=DType.FLOAT32, max_batch_size=2, max_sequence_length=128, max_batch_tokens=32
)


@dataclass(frozen=True)
class Run:
    """A process that has ended: the JSON objects that it said, and its termination message."""

    code: int
    lines: list[dict[str, Any]]
    last: dict[str, Any]
    errors: str

    @property
    def phases(self) -> list[str]:
        return list(dict.fromkeys(line["phase"] for line in self.lines if "phase" in line))


@dataclass
class Bench:
    """One store, and folders as pods have them."""

    place: Place
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no process may ever say."""
        return (self.place.user.secret_key, TOKEN, BAD_TOKEN)

    def request(self, uri: str, *, revision: str = COMMIT, **change: Any) -> BuildRequest:
        """A build of the model at `uri`; `change` goes into the request as it is."""
        options = change.pop("options", OPTIONS)
        scope = change.pop("scope", Scope())
        factors = engine_factors(
            backend="onnxruntime",
            backend_version=version("onnxruntime"),
            uri=uri,
            revision=revision,
            endpoint="test" if uri.startswith("s3://") else None,
            scope=scope,
            options=options,
            architecture=Architecture(cpu="amd64"),
        )
        fields: dict[str, Any] = {
            "key": engine_key(factors),
            "factors": factors,
            "scope_namespace": scope.namespace,
            "backend": "onnxruntime",
            "backend_version": version("onnxruntime"),
            "architecture": "amd64",
            "uri": uri,
            "revision": revision,
            "dtype": options.dtype,
            "quantization": options.quantization,
            "max_batch_size": options.max_batch_size,
            "max_sequence_length": options.max_sequence_length,
            "max_batch_tokens": options.max_batch_tokens,
            "store": self.place.location,
            "model_endpoint": S3Endpoint(endpoint=self.place.server.endpoint),
            "job": "builds/build-1",
        }
        return BuildRequest(**{**fields, **change})

    def put_model(self, model: Path, path: str = "models/tiny", bucket: str = "") -> str:
        """Upload a folder; returns its s3:// address."""
        bucket = bucket or self.place.location.bucket
        for file in sorted(model.iterdir()):
            if file.is_file():
                self.place.server.client().upload_file(str(file), bucket, f"{path}/{file.name}")
        return f"s3://{bucket}/{path}"

    def build(self, request: BuildRequest, **environment: str) -> Run:
        return self._finish(*self.start_build(request, **environment))

    def start_build(
        self, request: BuildRequest, *, name: str = "build", **environment: str
    ) -> tuple[subprocess.Popen[str], Path]:
        """Start a build; the path is that of its termination message."""
        last = self.folder / f"{name}-termination-log"
        variables = {
            BUILD_REQUEST_VARIABLE: request.model_dump_json(by_alias=True),
            "LLMENGINE_SCRATCH": str(self.folder / name),
            "LLMENGINE_MODEL_MOUNT": str(self.folder / "claim"),
            **prefixed("STORE_", self.place.user),
            **prefixed("MODEL_", self.place.user),
            **self.environment,
            **environment,
        }
        return self._start("llmengine_builder.main", last, variables), last

    def fetch(self, engine: BuildRequest | Manifest, digest: str, **environment: str) -> Run:
        """Fetch an engine into `engine`, and render into `models`."""
        return self._finish(*self.start_fetch(engine, digest, **environment))

    def start_fetch(
        self, engine: BuildRequest | Manifest, digest: str, **environment: str
    ) -> tuple[subprocess.Popen[str], Path]:
        """Start a fetch; the path is that of its termination message."""
        scope = engine.scope_namespace if isinstance(engine, BuildRequest) else ""
        serve = ServeRequest(
            key=engine.key,
            scope_namespace=scope,
            manifest_digest=digest,
            model_name="tiny",
            store=self.place.location,
        )
        last = self.folder / "fetch-termination-log"
        variables = {
            SERVE_REQUEST_VARIABLE: serve.model_dump_json(by_alias=True),
            "LLMENGINE_ENGINE": str(self.folder / "engine"),
            "LLMENGINE_MODELS": str(self.folder / "models"),
            **prefixed("STORE_", self.place.user),
            **environment,
        }
        return self._start("llmengine_server.fetch", last, variables), last

    def finish(self, process: subprocess.Popen[str], last: Path) -> Run:
        return self._finish(process, last)

    def _start(
        self, module: str, last: Path, variables: Mapping[str, str]
    ) -> subprocess.Popen[str]:
        inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", module],
            env={
                **inherited,
                "HOME": str(self.folder),
                # As in the image: else ONNX Runtime leaves files in the home, and reports.
                "ORT_DISABLE_TELEMETRY": "1",
                "AWS_EC2_METADATA_DISABLED": "true",
                "LLMENGINE_TERMINATION_LOG": str(last),
                **variables,
            },
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _finish(self, process: subprocess.Popen[str], last: Path) -> Run:
        try:
            output, errors = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
            process.wait()
        said = output + errors + last.read_text()
        assert not [secret for secret in self.secrets if secret in said], "a secret was told"
        assert len(last.read_bytes()) <= TERMINATION_MESSAGE_BYTES
        return Run(
            code=process.returncode,
            lines=[json.loads(line) for line in output.splitlines()],
            last=json.loads(last.read_text()),
            errors=errors,
        )


def prefixed(prefix: str, user: s3.Credentials) -> dict[str, str]:
    """A Secret's variables, as `envFrom` with a prefix gives them."""
    return {
        f"{prefix}AWS_ACCESS_KEY_ID": user.access_key,
        f"{prefix}AWS_SECRET_ACCESS_KEY": user.secret_key,
    }
