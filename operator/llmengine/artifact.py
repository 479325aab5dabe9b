"""What the store holds for an engine: a manifest, and the blobs that it lists.

The manifest is written last and never again; its digest covers, through the digests that it
lists, every byte that a server will load.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator
from pydantic.alias_generators import to_camel

from llmengine.key import CLUSTER, Scope

LAYOUT_VERSION = "v1"
CONTRACT = 1
# Files are hashed, fetched and repaired in pieces of this many bytes.
CHUNK_BYTES = 64 * 1024 * 1024

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class InvalidManifestError(ValueError):
    """A manifest cannot be read, or speaks a contract that this release does not."""


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
        if not path or path.startswith("/") or any(p in ("", ".", "..") for p in parts):
            raise ValueError(f'"{path}" leaves the engine\'s folder')
        return path


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
    """KV cache of graph contract 1.

    `layout`: `plain` is [slots, kv_heads, length, head_dim] for keys and values; `buckets`: the
    lengths that the cache may be held at, ascending, in tokens.
    """

    layout: Literal["plain", "transposed"]
    dtype: str
    layers: int
    kv_heads: int
    head_dim: int
    buckets: tuple[int, ...]


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
    verification: Verification
    model_files: tuple[ModelFile, ...]
    files: tuple[File, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def serialize(self) -> bytes:
        """The bytes that are stored and whose digest pods pin."""
        return self.model_dump_json(by_alias=True, indent=1).encode()

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Raises InvalidManifestError."""
        try:
            manifest = cls.model_validate_json(data)
        except ValueError as error:
            raise InvalidManifestError(f"the manifest cannot be read: {error}") from error
        if manifest.contract != CONTRACT:
            raise InvalidManifestError(
                f"the manifest of engine {manifest.key[:12]} has contract {manifest.contract};"
                f" this release reads contract {CONTRACT}"
            )
        return manifest


def digest_of(data: bytes) -> str:
    """`sha256:` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


class BuildProgress(Record):
    """The progress object of a running build; `heartbeat` is an RFC 3339 time in UTC."""

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
