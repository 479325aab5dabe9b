"""The S3 client of operator, builder and server: engines in, engines out, nothing unverified."""

from llmengine.store.bucket import Bucket, StoredObject, Timeouts
from llmengine.store.contents import Contents
from llmengine.store.credentials import (
    MODEL_PREFIX,
    STORE_PREFIX,
    Credentials,
    IncompleteCredentialsError,
)
from llmengine.store.downloads import Fetched, Wanted, download
from llmengine.store.engines import Conditions, Published, Store, StoredManifest
from llmengine.store.errors import (
    AlreadyThereError,
    BucketMissingError,
    CorruptObjectError,
    DamagedUploadError,
    DiskFullError,
    ManifestMismatchError,
    ManifestUnsupportedError,
    ObjectMissingError,
    StoreDeniedError,
    StoreError,
    StoreRefusedError,
    StoreUnreachableError,
)

__all__ = [
    "MODEL_PREFIX",
    "STORE_PREFIX",
    "AlreadyThereError",
    "Bucket",
    "BucketMissingError",
    "Conditions",
    "Contents",
    "CorruptObjectError",
    "Credentials",
    "DamagedUploadError",
    "DiskFullError",
    "Fetched",
    "IncompleteCredentialsError",
    "ManifestMismatchError",
    "ManifestUnsupportedError",
    "ObjectMissingError",
    "Published",
    "Store",
    "StoreDeniedError",
    "StoreError",
    "StoreRefusedError",
    "StoreUnreachableError",
    "StoredManifest",
    "StoredObject",
    "Timeouts",
    "Wanted",
    "download",
]
