"""One build from its order to its engine in the store: the phases, in order."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from llmengine.architecture import Architecture
from llmengine.artifact import Limits, Manifest
from llmengine.requests import BuildReason, BuildRequest, BuildResult, Phase
from llmengine.store import Contents, Store
from llmengine_builder.backends import CompileOptions, find_backend
from llmengine_builder.errors import TransientError
from llmengine_builder.graph import read_model
from llmengine_builder.progress import Progress
from llmengine_builder.publish import VerifiedEngine, publish
from llmengine_builder.resolve import Resolved, resolve
from llmengine_builder.resources import DISK_BESIDE_MODEL, check_disk, check_memory
from llmengine_builder.source import Access, Source, SourceFile, open_source
from llmengine_builder.speed import MEASURED_SLOTS, measure
from llmengine_builder.timings import Timings
from llmengine_builder.verify import SLOTS, verify

_HASHED_AT_ONCE = 4


@dataclass(frozen=True)
class Places:
    """`scratch`: an empty folder to work in; `mount`: where a pvc:// model's claim is mounted."""

    scratch: Path
    mount: Path


def build(
    request: BuildRequest, access: Access, places: Places, store: Store, progress: Progress
) -> BuildResult:
    """Compile and publish the engine, unless the store has it. Raises BuildError or StoreError."""
    with progress.phase(Phase.RESOLVE):
        if (stored := store.get_manifest(request.key, request.scope)) is not None:
            return _result(stored.manifest, stored.digest, progress)
        backend = find_backend(request.backend, request.backend_version)
        options = _options(request)
        backend.check(options)
        architecture = Architecture.parse(request.architecture)
        device = backend.device(architecture)
        source = open_source(request, access, places.scratch, places.mount)
        resolved = resolve(request, source, places.scratch)
        backend.check_model(resolved.model, options, device)
        disk = _disk(resolved, source) + backend.disk_bytes(resolved.model, options)
        check_disk(places.scratch, disk, request.scratch_bytes)
        check_memory(backend.host_bytes(resolved.model, options))
    with progress.phase(Phase.DOWNLOAD):
        contents = _download(request.uri, source, resolved, progress)
    with progress.phase(Phase.GRAPH):
        model = read_model(source.folder)
    with progress.phase(Phase.COMPILE):
        folder = places.scratch / "engine"
        folder.mkdir()
        timings = Timings(store, request, architecture)
        earlier = timings.read() if backend.measures else b""
        compiled = backend.compile(model, options, folder, progress.percent, earlier)
    with progress.phase(Phase.VERIFY):
        batches = compiled.cache.batches
        slots = min(max((SLOTS, *batches)), request.max_batch_size)
        verification = verify(
            lambda: backend.open(compiled, slots),
            source.folder,
            request.dtype,
            compiled.cache.buckets,
            batches,
        )
        # Opened anew: verification takes long prompts in few slots, this short ones in many.
        measured = min(max((MEASURED_SLOTS, *batches)), request.max_batch_size)
        speed = measure(lambda: backend.open(compiled, measured), compiled.cache.buckets)
    with progress.phase(Phase.PUBLISH):
        engine = VerifiedEngine(
            compiled=compiled,
            device=device,
            verification=verification,
            speed=speed,
            descriptions={name: source.folder / name for name in resolved.descriptions},
            model_files={path.name: path for path in contents},
            contents=contents,
        )
        published = publish(store, request, engine, progress, _now)
        timings.keep(compiled.timing)
    return _result(published.manifest, published.digest, progress)


def _options(request: BuildRequest) -> CompileOptions:
    architecture = Architecture.parse(request.architecture)
    return CompileOptions(
        dtype=request.dtype,
        quantization=request.quantization,
        limits=Limits(
            max_batch_size=request.max_batch_size,
            max_sequence_length=request.max_sequence_length,
            max_batch_tokens=request.max_batch_tokens,
        ),
        portable=not architecture.is_cpu and architecture.device is None,
    )


def _disk(resolved: Resolved, source: Source) -> int:
    """Bytes of scratch disk that the build takes at most."""
    return DISK_BESIDE_MODEL + (resolved.weight_bytes if source.takes_disk else 0)


def _download(
    uri: str, source: Source, resolved: Resolved, progress: Progress
) -> dict[Path, Contents]:
    """Fetch the weights, and hash all that was fetched."""
    source.fetch(list(resolved.weights), progress.of_bytes(resolved.weight_bytes))
    files: Mapping[str, SourceFile] = {**resolved.weights, **resolved.descriptions}
    paths = [source.folder / name for name in files]
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        contents = dict(zip(paths, pool.map(Contents.of, paths), strict=True))
    for name, file in files.items():
        found = contents[source.folder / name]
        if file.sha256 is not None and found.digest != f"sha256:{file.sha256}":
            raise TransientError(
                BuildReason.MODEL_UNREACHABLE,
                f"{name} of {uri} arrived damaged: its SHA-256 is not the one that the hub tells;"
                " try again",
            )
    return contents


def _result(manifest: Manifest, digest: str, progress: Progress) -> BuildResult:
    return BuildResult(
        key=manifest.key,
        manifest_digest=digest,
        size_bytes=manifest.size_bytes,
        seconds=round(progress.elapsed),
        warnings=manifest.warnings,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
