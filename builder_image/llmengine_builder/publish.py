"""An engine into the store: its files under their digests, and last the manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmengine import __version__
from llmengine.artifact import Device, Manifest, ModelFile, Speed, Verification
from llmengine.requests import BuildRequest
from llmengine.store import Contents, Published, Store
from llmengine_builder.backends import CompiledEngine
from llmengine_builder.progress import Progress


@dataclass(frozen=True)
class VerifiedEngine:
    """An engine that may be published.

    `descriptions`: what the server reads of the model, by name; `model_files`: every file of the
    model that was read. Digests that are known already are not computed again: `contents`, by
    local path.
    """

    compiled: CompiledEngine
    device: Device
    verification: Verification
    speed: Speed
    descriptions: Mapping[str, Path]
    model_files: Mapping[str, Path]
    contents: Mapping[Path, Contents]


def publish(
    store: Store,
    request: BuildRequest,
    engine: VerifiedEngine,
    progress: Progress,
    created: Callable[[], str],
) -> Published:
    """Make the engine exist under its key. `created` tells the time, in RFC 3339.

    Raises StoreError. When another build was first, its engine stands and is what is returned.
    """
    files = {**engine.compiled.files, **engine.descriptions}
    contents = {
        path: engine.contents.get(local) or Contents.of(local) for path, local in files.items()
    }
    count = progress.of_bytes(sum(content.size for content in contents.values()))
    for path, content in contents.items():
        if not store.put_blob(files[path], content, request.scope, count):
            count(content.size)
    compiled = engine.compiled
    manifest = Manifest(
        key=request.key,
        factors=request.factors,
        created=created(),
        builder_version=__version__,
        model_type=compiled.model_type,
        vocabulary=compiled.vocabulary,
        limits=compiled.limits,
        cache=compiled.cache,
        device=engine.device,
        seconds=progress.seconds,
        footprint=compiled.footprint,
        warnings=compiled.warnings,
        verification=engine.verification,
        speed=engine.speed,
        model_files=tuple(
            ModelFile(path=path, digest=known.digest, size=known.size)
            for path, local in sorted(engine.model_files.items())
            for known in [engine.contents[local]]
        ),
        files=tuple(content.file(path) for path, content in sorted(contents.items())),
    )
    return store.publish_manifest(manifest, request.scope)
