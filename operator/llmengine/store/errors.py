"""Ways in which the store fails, by what the caller must do about them.

Every message is one sentence that names the object and the way out. None holds a secret: of a
credential only the beginning of the access key's id is shown.
"""

from __future__ import annotations

from typing import ClassVar

from llmengine.requests import BuildReason


class StoreError(Exception):
    """The store did not do what was asked.

    `reason` is one CamelCase word for conditions and last words; `retry` says whether the same
    request may succeed later without anybody changing anything.
    """

    reason: ClassVar[BuildReason]
    retry: ClassVar[bool] = False

    @property
    def message(self) -> str:
        return str(self)


class StoreUnreachableError(StoreError):
    """No answer, half an answer, or one that says that the server is in trouble (5xx)."""

    reason = BuildReason.STORE_UNREACHABLE
    retry = True


class StoreDeniedError(StoreError):
    """No credentials, wrong ones, or ones that do not reach far enough."""

    reason = BuildReason.STORE_DENIED


class StoreRefusedError(StoreError):
    """The store answered with an error that has no other name here: a configuration mistake."""

    reason = BuildReason.STORE_REFUSED


class BucketMissingError(StoreError):
    """There is no such bucket."""

    reason = BuildReason.BUCKET_MISSING


class ObjectMissingError(StoreError):
    """There is no such object."""

    reason = BuildReason.ENGINE_MISSING


class AlreadyThereError(StoreError):
    """A conditional write was refused: somebody, perhaps oneself, has written the object."""

    reason = BuildReason.STORE_REFUSED


class CorruptObjectError(StoreError):
    """An object does not hold the bytes that it should."""

    reason = BuildReason.ENGINE_CORRUPTED


class DamagedUploadError(CorruptObjectError):
    """Bytes changed on their way to the store; nothing was stored."""

    retry = True


class ManifestMismatchError(StoreError):
    """The manifest in the store is not the one that was pinned."""

    reason = BuildReason.ENGINE_CORRUPTED


class ManifestUnsupportedError(StoreError):
    """The manifest was written by another release, under a contract that this one cannot read."""

    reason = BuildReason.ENGINE_UNSUPPORTED


class DiskFullError(Exception):
    """The local disk cannot hold what is fetched. Not the store's fault, so no StoreError."""

    reason: ClassVar[BuildReason] = BuildReason.DISK_FULL

    @property
    def message(self) -> str:
        return str(self)
