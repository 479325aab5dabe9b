"""The command `llmengine-fetch`, a server pod's init container: the pinned engine, or no server.

Nothing is handed to Triton that the manifest's digest in the pod's spec does not cover.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import ValidationError

from llmengine.artifact import Manifest
from llmengine.interruption import on_sigterm
from llmengine.last_words import Ending, LastWords, print_line
from llmengine.requests import (
    SERVE_REQUEST_VARIABLE,
    BuildReason,
    BuildResult,
    ExitCode,
    ServeRequest,
)
from llmengine.store import STORE_PREFIX, Credentials, IncompleteCredentialsError, Store
from llmengine_server.repository import render
from llmengine_server.session.tensorrt_library import installed_version

ENGINE_VARIABLE = "LLMENGINE_ENGINE"
MODELS_VARIABLE = "LLMENGINE_MODELS"
MANIFEST = "manifest.json"
_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


class RefusedError(Exception):
    """This pod cannot serve this engine: an exit code, a reason and a sentence."""

    def __init__(self, code: ExitCode, reason: BuildReason, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


def main() -> None:
    """Ends with one of llmengine.requests.ExitCode, or 1 for a bug."""
    words = LastWords(os.environ)
    on_sigterm(lambda: words.speak(_interrupted()))
    sys.exit(words.speak(run(os.environ, words)))


def run(environment: Mapping[str, str], words: LastWords) -> Ending:
    """Fetch, verify and render, as an ending."""
    started = time.monotonic()
    try:
        request = _read_request(environment)
        store = Store(request.store, _credentials(environment))
        manifest = store.pinned_manifest(request.key, request.manifest_digest, request.scope)
        check(manifest)
        engine = Path(environment.get(ENGINE_VARIABLE, "/engine"))
        _fetch(store, manifest, engine, request)
        # Last, so that its presence says that the rest is whole.
        (engine / MANIFEST).write_bytes(manifest.serialize())
        render(engine, request, manifest, Path(environment.get(MODELS_VARIABLE, "/models")))
    except RefusedError as error:
        return Ending.failure(error.code, error.reason, str(error))
    except Exception as error:  # whatever it is, the pod's last words must tell it
        ending = Ending.of(error)
        if ending.code not in set(ExitCode):
            words.log(error)
        return ending
    return Ending(
        ExitCode.OK,
        BuildResult(
            key=request.key,
            manifest_digest=request.manifest_digest,
            size_bytes=manifest.size_bytes,
            seconds=round(time.monotonic() - started),
        ),
    )


def check(manifest: Manifest) -> None:
    """Raise RefusedError unless this image, on this machine, serves the engine as it was built."""
    backend, built = (str(manifest.factors.get(f)) for f in ("backend", "backendVersion"))
    here = _installed(backend) or "none"
    if here != built:
        raise RefusedError(
            ExitCode.BAD_INPUT,
            BuildReason.BACKEND_MISMATCH,
            f"the engine was built with {backend} {built}, but this image has {here}: give the"
            " EngineRuntime the image of its spec.version",
        )
    cpu, machine = manifest.factors.get("architecture.cpu"), platform.machine().lower()
    if cpu is not None and _MACHINES.get(machine) != cpu:
        raise RefusedError(
            ExitCode.WRONG_DEVICE,
            BuildReason.WRONG_DEVICE,
            f"the engine is for {cpu}, but this node is a {machine}: correct the node's label"
            " kubernetes.io/arch",
        )


def _installed(backend: str) -> str | None:
    if backend == "tensorrt":
        return installed_version()
    try:
        return version(backend)
    except PackageNotFoundError:
        return None


def _fetch(store: Store, manifest: Manifest, engine: Path, request: ServeRequest) -> None:
    started = time.monotonic()
    fetched = store.fetch(manifest, engine, request.scope)
    print_line(
        {
            "fetched": fetched.fetched,
            "reused": fetched.reused,
            "seconds": round(time.monotonic() - started, 2),
        }
    )


def _read_request(environment: Mapping[str, str]) -> ServeRequest:
    text = environment.get(SERVE_REQUEST_VARIABLE)
    if text is None:
        raise _invalid(f"{SERVE_REQUEST_VARIABLE} is not set: servers are started by the operator")
    try:
        return ServeRequest.model_validate_json(text)
    except ValidationError as error:
        raise _invalid(f"the server's request cannot be read: {error}") from error


def _credentials(environment: Mapping[str, str]) -> Credentials | None:
    try:
        return Credentials.from_environment(STORE_PREFIX, environment)
    except IncompleteCredentialsError as error:
        raise RefusedError(ExitCode.BAD_INPUT, BuildReason.STORE_DENIED, str(error)) from error


def _invalid(message: str) -> RefusedError:
    return RefusedError(ExitCode.BAD_INPUT, BuildReason.REQUEST_INVALID, message)


def _interrupted() -> Ending:
    return Ending.failure(
        ExitCode.TRANSIENT,
        BuildReason.INTERRUPTED,
        "the fetch was stopped by SIGTERM: its pod was deleted; nothing is lost",
    )


if __name__ == "__main__":
    main()
