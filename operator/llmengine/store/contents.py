"""What a local file holds, as digests: of the whole, and of each chunk that a fetch verifies."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from llmengine.artifact import CHUNK_BYTES, File

BUFFER_BYTES = 256 * 1024


@dataclass(frozen=True)
class Contents:
    """`digest` is `sha256:` and hex; `chunks` the hex SHA-256 of each CHUNK_BYTES; bytes."""

    digest: str
    size: int
    chunks: tuple[str, ...]

    @classmethod
    def of(cls, path: Path) -> Contents:
        """Read a file from end to end. Raises OSError."""
        whole = hashlib.sha256()
        chunks: list[str] = []
        size = 0
        buffer = memoryview(bytearray(BUFFER_BYTES))
        with path.open("rb", buffering=0) as file:
            while True:
                chunk, length = hashlib.sha256(), 0
                while length < CHUNK_BYTES and (read := file.readinto(buffer)):
                    whole.update(buffer[:read])
                    chunk.update(buffer[:read])
                    length += read
                if not length:
                    break
                chunks.append(chunk.hexdigest())
                size += length
        return cls(f"sha256:{whole.hexdigest()}", size, tuple(chunks))

    def file(self, path: str) -> File:
        """The manifest's line for these bytes under a path of the engine's folder."""
        return File(path=path, digest=self.digest, size=self.size, chunks=self.chunks)


def chunk_range(index: int, size: int) -> tuple[int, int]:
    """Offset and length of chunk `index` of `size` bytes."""
    first = index * CHUNK_BYTES
    return first, min(CHUNK_BYTES, size - first)
