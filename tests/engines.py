"""Small engines that were built from nothing, for tests of whatever stores or serves them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from llmengine.artifact import (
    Cache,
    Device,
    Layout,
    Limits,
    Manifest,
    ModelFile,
    Verification,
)
from llmengine.key import CLUSTER, Scope, engine_key
from llmengine.store import Contents, Store

PREFIX = "engines/test"


@dataclass(frozen=True)
class Engine:
    """An engine whose files lie in `folder`."""

    folder: Path
    manifest: Manifest
    prefix: str = PREFIX

    def publish(self, store: Store, scope: Scope = CLUSTER) -> str:
        """Blobs first, then the manifest. Returns its digest."""
        for file in self.manifest.files:
            path = self.folder / file.path
            store.put_blob(path, Contents.of(path), scope)
        return store.publish_manifest(self.manifest, scope).digest

    def blob(self, path: str, scope: Scope = CLUSTER) -> str:
        """The object's key of one of the files."""
        digest = next(file.digest for file in self.manifest.files if file.path == path)
        return Layout(self.prefix, scope).blob(digest)

    def manifest_key(self, scope: Scope = CLUSTER) -> str:
        return Layout(self.prefix, scope).manifest(self.manifest.key)


def make_engine(
    folder: Path,
    files: dict[str, int],
    *,
    seed: int = 0,
    backend_version: str = "1.32.0",
    cpu: str = "amd64",
) -> Engine:
    """An engine with files of so many bytes each, all of them random.

    `backend_version` may be `installed`: then this machine can serve it.
    """
    source = random.Random(seed)
    lines = []
    for path, size in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.randbytes(size))
        lines.append(Contents.of(target).file(path))
    if backend_version == "installed":
        backend_version = version("onnxruntime")
    manifest = make_manifest(seed=seed, backend_version=backend_version, cpu=cpu)
    return Engine(folder, manifest.model_copy(update={"files": tuple(lines)}))


def make_manifest(
    *,
    seed: int = 0,
    builder: str = "0.1.0",
    backend_version: str = "1.32.0",
    cpu: str = "amd64",
) -> Manifest:
    """The manifest of an engine without files. Other seeds make other keys."""
    factors: dict[str, str | int] = {
        "format": 1,
        "backend": "onnxruntime",
        "backendVersion": backend_version,
        "architecture.cpu": cpu,
        "engine.test": seed,
    }
    return Manifest(
        key=engine_key(factors),
        factors=factors,
        created="2026-11-24T12:00:00Z",
        builder_version=builder,
        model_type="llama",
        vocabulary=64,
        limits=Limits(max_batch_size=2, max_sequence_length=64, max_batch_tokens=16),
        cache=Cache(
            layout="plain", dtype="float32", layers=1, kv_heads=1, head_dim=8, buckets=(64,)
        ),
        device=Device(name="a CPU"),
        seconds={"Compile": 1.5},
        verification=Verification(tokens=8, mean_relative_error=1e-7, max_logit_gap=0.0),
        model_files=(ModelFile(path="config.json", digest="sha256:" + "0" * 64, size=2),),
        files=(),
    )
