"""A model in an S3 bucket: s3://BUCKET/PATH, every object below PATH/ a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llmengine.requests import BuildReason, S3Endpoint
from llmengine.store import (
    Bucket,
    BucketMissingError,
    Credentials,
    ObjectMissingError,
    StoreDeniedError,
    StoredObject,
    StoreError,
    StoreUnreachableError,
    Wanted,
    download,
)
from llmengine_builder.errors import BadInputError, TransientError
from llmengine_builder.source import Progress, SourceFile


class S3Source:
    """Versions are pinned by ETag: an object that changes while it is read is noticed."""

    takes_disk = True

    def __init__(
        self, uri: str, endpoint: S3Endpoint, credentials: Credentials | None, folder: Path
    ) -> None:
        self.folder = folder
        self._uri = uri
        name, _, path = uri.removeprefix("s3://").partition("/")
        self._prefix = f"{path}/"
        self._objects: dict[str, StoredObject] = {}
        with self._explained():
            self._bucket = Bucket(endpoint, name, credentials)

    def files(self) -> Sequence[SourceFile]:
        with self._explained():
            found = list(self._bucket.objects(self._prefix))
        if not found:
            raise BadInputError(
                BuildReason.MODEL_NOT_FOUND,
                f"there is nothing below {self._uri}/ on {self._bucket.address}: correct"
                " spec.model.uri, or upload the model there",
            )
        names = ((entry.key.removeprefix(self._prefix), entry) for entry in found)
        self._objects = {name: entry for name, entry in names if name and "/" not in name}
        return [SourceFile(name, entry.size) for name, entry in self._objects.items()]

    def head(self, path: str, length: int) -> bytes:
        entry = self._objects[path]
        last = min(length, entry.size) - 1
        if last < 0:
            return b""
        with self._explained():
            return self._bucket.read_range(entry.key, 0, last, etag=entry.etag)

    def fetch(self, paths: Sequence[str], progress: Progress) -> None:
        objects = ((path, self._objects[path]) for path in paths)
        wanted = [
            Wanted(entry.key, self.folder / path, entry.size, etag=entry.etag)
            for path, entry in objects
        ]
        with self._explained():
            download(self._bucket, wanted, progress=progress)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            sentence = f"the model {self._uri} cannot be read: {error}"
            if isinstance(error, StoreUnreachableError):
                raise TransientError(BuildReason.MODEL_UNREACHABLE, sentence) from error
            raise BadInputError(_reason(error), sentence) from error


def _reason(error: StoreError) -> BuildReason:
    if isinstance(error, StoreDeniedError):
        return BuildReason.MODEL_ACCESS_DENIED
    if isinstance(error, BucketMissingError | ObjectMissingError):
        return BuildReason.MODEL_NOT_FOUND
    return BuildReason.MODEL_INVALID
