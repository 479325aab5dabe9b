"""Objects into files, by parallel ranges, each verified as it arrives.

A file has its name only when every chunk of it is right; until then it is NAME.part. What an
earlier run left, whole or in part, is verified like bytes from the wire and only then kept.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from llmengine.artifact import chunk_count
from llmengine.quantity import readable
from llmengine.store.bucket import WIRE_ERRORS, Bucket
from llmengine.store.contents import BUFFER_BYTES, chunk_range
from llmengine.store.errors import (
    AlreadyThereError,
    CorruptObjectError,
    DiskFullError,
    StoreUnreachableError,
)

# Connections of one download. More than a machine's cores, because over a network a connection
# waits more than it works.
CONNECTIONS = 8
# Interruptions of one chunk in a row, each without a single new byte, before it is given up.
STALLS = 5
_LONGEST_PAUSE = 5.0  # seconds
_FULL = (errno.ENOSPC, errno.EDQUOT)

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Wanted:
    """An object and the file that it becomes.

    `chunks`: the hex SHA-256 of each CHUNK_BYTES; None takes whatever bytes the object has, which
    `etag` then pins to one version.
    """

    key: str
    path: Path
    size: int
    chunks: tuple[str, ...] | None = None
    etag: str | None = None


@dataclass(frozen=True)
class Fetched:
    """Bytes that came over the network, and bytes that were there already."""

    fetched: int
    reused: int


def download(
    bucket: Bucket,
    wanted: Sequence[Wanted],
    *,
    connections: int = CONNECTIONS,
    progress: Progress | None = None,
) -> Fetched:
    """Fetch all objects; makes the folders of their files.

    A damaged chunk is fetched once more; a broken connection goes on from the last byte that
    arrived. `progress` is called from several threads with the bytes dealt with since, which is
    negative when a chunk has to come again. Raises CorruptObjectError, ObjectMissingError,
    DiskFullError or another StoreError; what has arrived by then stays as NAME.part, for the next
    try.
    """
    run = _Run(bucket, progress)
    files: list[_PartialFile] = []
    try:
        files.extend(_PartialFile(item) for item in wanted)
        _check_space(files)
        with ThreadPoolExecutor(connections, thread_name_prefix="fetch") as pool:
            futures = [
                pool.submit(run.chunk, file, index)
                for file in files
                for index in range(chunk_count(file.wanted.size))
            ]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            finally:
                run.stop()
                pool.shutdown(cancel_futures=True)
        for file in files:
            file.finish()
    finally:
        for file in files:
            file.close()
    return Fetched(fetched=run.fetched, reused=run.reused)


class _CancelledError(Exception):
    """Another chunk has failed, so this one is not needed."""


class _PartialFile:
    """NAME.part, at its full length from the start, with or without the right bytes."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self._part = wanted.path.with_name(wanted.path.name + ".part")
        self._part.parent.mkdir(parents=True, exist_ok=True)
        if wanted.path.exists():
            # Nothing unverified may bear the name, not even for the moment of verifying it.
            wanted.path.replace(self._part)
        self._descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT, 0o644)
        self.has_bytes = wanted.chunks is not None and os.fstat(self._descriptor).st_size > 0
        os.ftruncate(self._descriptor, wanted.size)

    @property
    def missing(self) -> int:
        """Bytes of disk that are still to be taken."""
        return max(0, self.wanted.size - os.fstat(self._descriptor).st_blocks * 512)

    def write(self, data: bytes, offset: int) -> None:
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._descriptor, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            if error.errno in _FULL:
                raise _disk_full(self.wanted.path.parent, self.missing) from error
            raise

    def sha256(self, offset: int, length: int) -> str:
        """Of the bytes that are on disk, in hex."""
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(BUFFER_BYTES, length)))
        end = offset + length
        while offset < end:
            read = os.preadv(self._descriptor, [buffer[: end - offset]], offset)
            digest.update(buffer[:read])
            offset += read
        return digest.hexdigest()

    def finish(self) -> None:
        """Every chunk is right: give the file its name."""
        self._part.replace(self.wanted.path)

    def close(self) -> None:
        os.close(self._descriptor)


class _Run:
    """What the threads of one download share."""

    def __init__(self, bucket: Bucket, progress: Progress | None) -> None:
        self._bucket = bucket
        self._progress = progress
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.fetched = 0
        self.reused = 0

    def stop(self) -> None:
        self._stop.set()

    def chunk(self, file: _PartialFile, index: int) -> None:
        """See to it that one chunk of the file holds the right bytes."""
        expected = file.wanted.chunks[index] if file.wanted.chunks is not None else None
        first, length = chunk_range(index, file.wanted.size)
        if file.has_bytes and file.sha256(first, length) == expected:
            self._count(length)
            with self._lock:
                self.reused += length
            return
        for last_try in (False, True):
            found = self._receive(file, first, length)
            if expected in (None, found):
                return
            if not last_try:
                self._count(-length)
        raise CorruptObjectError(
            f"{self._bucket.url(file.wanted.key)} is damaged: its bytes {first} to"
            f" {first + length - 1}, fetched twice, are not those that were published"
        )

    def _receive(self, file: _PartialFile, first: int, length: int) -> str:
        """Fetch a range into the file, however often the wire breaks. Returns its hex SHA-256."""
        digest = hashlib.sha256()
        offset, end, stalls = first, first + length, 0
        while offset < end:
            begun, broken = offset, None
            try:
                for data in self._read(file.wanted, offset, end):
                    digest.update(data)
                    file.write(data, offset)
                    offset += len(data)
                    self._count(len(data))
            except StoreUnreachableError as error:
                broken = error
            stalls = 0 if offset > begun else stalls + 1
            if broken is None and offset < end:
                raise CorruptObjectError(
                    f"{self._bucket.url(file.wanted.key)} is damaged: it ends at byte {offset},"
                    f" but should have {file.wanted.size} bytes"
                )
            if broken is not None and stalls > STALLS:
                raise broken
            if broken is not None and self._stop.wait(_pause(stalls)):
                raise _CancelledError
        with self._lock:
            self.fetched += length
        return digest.hexdigest()

    def _read(self, wanted: Wanted, first: int, end: int) -> Iterator[bytes]:
        """Pieces of a range, in order. Raises StoreUnreachableError when the wire breaks."""
        try:
            body = self._bucket.open_range(wanted.key, first, end - 1, etag=wanted.etag)
        except AlreadyThereError as error:
            raise CorruptObjectError(
                f"{self._bucket.url(wanted.key)} was overwritten while it was read"
            ) from error
        with body:
            while first < end:
                if self._stop.is_set():
                    raise _CancelledError
                try:
                    data = body.read(min(BUFFER_BYTES, end - first))
                except WIRE_ERRORS as error:
                    raise self._bucket.explain(error, "get_object", wanted.key) from error
                if not data:
                    return
                yield data
                first += len(data)

    def _count(self, count: int) -> None:
        if self._progress is not None:
            self._progress(count)


def _pause(stalls: int) -> float:
    """Seconds before the next try: at once after progress, then longer and longer, spread out."""
    if not stalls:
        return 0.0
    longest = min(_LONGEST_PAUSE, 0.2 * 2.0**stalls)
    return random.uniform(longest / 2, longest)


def _check_space(files: Sequence[_PartialFile]) -> None:
    if not files:
        return
    folder = files[0].wanted.path.parent
    missing = sum(file.missing for file in files)
    if missing > shutil.disk_usage(folder).free:
        raise _disk_full(folder, missing)


def _disk_full(folder: Path, missing: int) -> DiskFullError:
    free = shutil.disk_usage(folder).free
    return DiskFullError(
        f"{folder} has {readable(free)} free, but {readable(missing)} are still to be fetched:"
        " give the pod more disk"
    )
