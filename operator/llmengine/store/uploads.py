"""Files into content-addressed objects, in parallel parts.

Each part carries the SHA-256 that was computed when the file was hashed, and the store refuses
other bytes: what lies under a digest is what the digest says.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

from s3transfer.utils import ReadFileChunk

from llmengine.store.bucket import Bucket
from llmengine.store.contents import Contents, chunk_range
from llmengine.store.errors import StoreError

CONNECTIONS = 4


class Uploader:
    """Uploads of one process, so that one that is told to stop can give back what it began.

    Parts of an unfinished object cost space until they are aborted. Those of a builder that was
    killed outright stay: a lifecycle rule of the bucket (AbortIncompleteMultipartUpload) or its
    like removes them.
    """

    def __init__(self, bucket: Bucket, connections: int = CONNECTIONS) -> None:
        self._bucket = bucket
        self._connections = connections
        self._lock = threading.Lock()
        self._open: dict[str, str] = {}

    def upload(
        self,
        key: str,
        path: Path,
        contents: Contents,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Write `path`, which holds `contents`, under `key`.

        The object appears as a whole or not at all. `progress` is called from several threads
        with the bytes sent since. Raises DamagedUploadError when the file has other bytes by now.
        """
        if len(contents.chunks) <= 1:
            with _part(path, 0, contents.size, progress) as body:
                sha256 = contents.digest.removeprefix("sha256:")
                self._bucket.put_file(key, body, sha256)
            return
        upload = self._bucket.start_upload(key)
        with self._lock:
            self._open[key] = upload
        try:
            etags = self._send_parts(key, upload, path, contents, progress)
            self._bucket.finish_upload(key, upload, list(zip(etags, contents.chunks, strict=True)))
        except BaseException:
            self._abort(key, upload)
            raise
        finally:
            with self._lock:
                self._open.pop(key, None)

    def abort_all(self) -> None:
        """Give back the parts of every upload that is under way; never raises StoreError."""
        with self._lock:
            uploads = list(self._open.items())
        for key, upload in uploads:
            self._abort(key, upload)

    def _send_parts(
        self,
        key: str,
        upload: str,
        path: Path,
        contents: Contents,
        progress: Callable[[int], None] | None,
    ) -> list[str]:
        def send(index: int) -> str:
            first, length = chunk_range(index, contents.size)
            with _part(path, first, length, progress) as body:
                return self._bucket.put_part(key, upload, index + 1, body, contents.chunks[index])

        with ThreadPoolExecutor(self._connections, thread_name_prefix="upload") as pool:
            futures = [pool.submit(send, index) for index in range(len(contents.chunks))]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            finally:
                pool.shutdown(cancel_futures=True)
        return [future.result() for future in futures]

    def _abort(self, key: str, upload: str) -> None:
        # The reason for aborting is what the caller must hear of, not that this failed too.
        with suppress(StoreError):
            self._bucket.abort_upload(key, upload)


def _part(
    path: Path, first: int, length: int, progress: Callable[[int], None] | None
) -> ReadFileChunk:
    """A slice of a file that boto3 can read, rewind and close."""

    def sent(*, bytes_transferred: int) -> None:
        if progress is not None:
            progress(bytes_transferred)

    return ReadFileChunk.from_filename(str(path), first, length, callbacks=[sent])
