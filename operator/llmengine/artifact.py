"""What the store holds for an engine: a manifest, and the blobs that it lists.

The manifest is written last and never again; its digest covers, through the digests that it
lists, every byte that a server will load.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from llmengine.architecture import Architecture
from llmengine.key import CLUSTER, Scope, engine_key

LAYOUT_VERSION = "v1"
CONTRACT = 1
# Files are hashed, fetched and repaired in pieces of this many bytes.
CHUNK_BYTES = 64 * 1024 * 1024

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class InvalidManifestError(ValueError):
    """A manifest cannot be read, or contradicts itself."""


class UnsupportedContractError(InvalidManifestError):
    """A manifest speaks a contract that this release does not."""


class Record(BaseModel):
    """A part of a stored JSON document: immutable, camelCase, unknown fields kept out."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore"
    )


class File(Record):
    """One file of an engine.

    `path` is relative to the engine's folder; `chunks` are the SHA-256 of each CHUNK_BYTES.
    """

    path: str
    digest: Digest
    size: int = Field(ge=0)
    chunks: tuple[Sha256, ...]

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        parts = path.split("/")
        if any(part in ("", ".", "..") for part in parts) or not path.isprintable():
            raise ValueError(f"{path!r} is no path inside the engine's folder")
        return path

    @model_validator(mode="after")
    def _is_covered(self) -> Self:
        # A chunk without a digest would be served unverified.
        if len(self.chunks) != chunk_count(self.size):
            raise ValueError(
                f"{self.path} has {self.size} bytes, which {len(self.chunks)} digests of chunks"
                " do not cover"
            )
        return self


class ModelFile(Record):
    """A file of the model that was read, and what it held."""

    path: str
    digest: Digest
    size: int


class Device(Record):
    """What the device said of itself at build time; a CPU has only a name."""

    name: str
    compute_capability: str | None = None
    driver: str | None = None
    memory_bytes: int | None = None


class Cache(Record):
    """KV cache of graph contract 2.

    `layout`: `plain` is [slots, kv_heads, length, head_dim] for keys and values; `buckets`: the
    lengths that the cache may be held at, ascending, in tokens; `batches`: the numbers of slots
    that a decode step may have, ascending, where the engine was not compiled for any;
    `query_heads`: where the engine attends by kernels of ours.
    """

    layout: Literal["plain"]
    dtype: str
    layers: int
    kv_heads: int
    head_dim: int
    buckets: tuple[int, ...]
    batches: tuple[int, ...] = ()
    query_heads: int | None = None


class Limits(Record):
    """What the engine was compiled for: slots, and tokens."""

    max_batch_size: int
    max_sequence_length: int
    max_batch_tokens: int


class Verification(Record):
    """How the engine compared with the reference before it was published."""

    tokens: int = Field(description="Tokens compared.")
    mean_relative_error: float
    max_logit_gap: float = Field(
        description="Largest distance of a chosen token's reference logit to the maximum."
    )
    reference: str = "numpy-float32"


class Footprint(Record):
    """Memory in bytes; 0 where it is not known.

    What a compilation took at most of the host's and of the device's; what a GPU must have in all
    to serve the engine.
    """

    host_bytes: int = 0
    device_bytes: int = 0
    serving_device_bytes: int = 0


class DecodeStep(Record):
    """What one decode step of all measured slots took, with the cache held at `length` tokens."""

    length: int = Field(gt=0)
    seconds: float = Field(gt=0)


class Speed(Record):
    """How fast the engine decoded on the device that it was built on.

    `slots`: sequences that were decoded at once, which may be fewer than the engine has; `steps`:
    by ascending length of the cache.
    """

    slots: int = Field(gt=0)
    steps: Annotated[tuple[DecodeStep, ...], Field(min_length=1)]


class Manifest(Record):
    """Everything that is known of one engine."""

    contract: int = CONTRACT
    key: Sha256
    factors: Mapping[str, str | int]
    created: str
    builder_version: str
    model_type: str
    vocabulary: int
    limits: Limits
    cache: Cache
    device: Device
    seconds: Mapping[str, float] = Field(description="Build time by phase.")
    footprint: Footprint = Footprint()
    verification: Verification
    speed: Speed | None = Field(
        default=None, description="None: of an engine that was built before this was measured."
    )
    warnings: tuple[str, ...] = Field(
        default=(), description="Sentences: what is built as asked, but may disappoint."
    )
    model_files: tuple[ModelFile, ...]
    files: tuple[File, ...]

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if engine_key(self.factors) != self.key:
            raise ValueError(f"key {self.key} is not that of its factors")
        paths = [file.path for file in self.files]
        if twice := sorted({path for path in paths if paths.count(path) > 1}):
            raise ValueError(f"files are listed twice: {', '.join(twice)}")
        return self

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def serialize(self) -> bytes:
        """The bytes that are stored and whose digest pods pin."""
        return self.model_dump_json(by_alias=True, indent=1).encode()

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Raises InvalidManifestError; UnsupportedContractError before anything else is read."""
        try:
            contract = _Contract.model_validate_json(data).contract
            if contract != CONTRACT:
                raise UnsupportedContractError(
                    f"the manifest has contract {contract}, this release reads contract"
                    f" {CONTRACT}: use the release that wrote it, or a store.prefix of your own"
                )
            return cls.model_validate_json(data)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in e['loc']) or 'it'}: {e['msg']}"
                for e in error.errors()
            )
            raise InvalidManifestError(f"the manifest cannot be read: {problems}") from error


class _Contract(Record):
    """What every contract's manifest has, and all that may be read before it is known."""

    contract: int


def chunk_count(size: int) -> int:
    """How many chunks a file of `size` bytes has; none when it is empty."""
    return -(-size // CHUNK_BYTES)


def digest_of(data: bytes) -> str:
    """`sha256:` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


class BuildProgress(Record):
    """The progress object of a running build.

    `percent` is that of the phase; `heartbeat` an RFC 3339 time in UTC; `job` NAMESPACE/NAME.
    """

    key: Sha256
    phase: str
    percent: int = Field(ge=0, le=100)
    heartbeat: str
    job: str = ""


@dataclass(frozen=True)
class Layout:
    """Object keys of one scope below a prefix.

    No key is a folder of another: POSIX-backed stores refuse that.
    """

    prefix: str = ""
    scope: Scope = CLUSTER

    @property
    def root(self) -> str:
        parts = [self.prefix.strip("/"), LAYOUT_VERSION]
        if not self.scope.is_cluster:
            parts += ["scopes", self.scope.namespace]
        return "/".join(part for part in parts if part)

    def manifest(self, key: str) -> str:
        return f"{self.root}/engines/{key}/manifest.json"

    def blob(self, digest: str) -> str:
        hex_digits = digest.removeprefix("sha256:")
        return f"{self.root}/blobs/sha256/{hex_digits[:2]}/{hex_digits}"

    def progress(self, key: str) -> str:
        return f"{self.root}/builds/{key}.json"

    def timing(self, backend: str, version: str, architecture: Architecture) -> str:
        return f"{self.root}/timing/{backend}-{version}/{architecture.slug}"
