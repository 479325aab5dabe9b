"""The store of engines: manifests, the blobs that they list, and how builds come along.

An engine exists once its manifest does. Blobs are written before it, it is written once, and
whoever writes second takes what the first has written.
"""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llmengine.architecture import Architecture
from llmengine.artifact import (
    BuildProgress,
    InvalidManifestError,
    Layout,
    Manifest,
    UnsupportedContractError,
    digest_of,
)
from llmengine.key import CLUSTER, Scope
from llmengine.requests import StoreLocation
from llmengine.store.bucket import Bucket, Timeouts
from llmengine.store.contents import Contents
from llmengine.store.credentials import Credentials
from llmengine.store.downloads import CONNECTIONS, Fetched, Progress, Wanted, download
from llmengine.store.errors import (
    AlreadyThereError,
    CorruptObjectError,
    ManifestMismatchError,
    ManifestUnsupportedError,
    ObjectMissingError,
    StoreError,
    StoreUnreachableError,
)
from llmengine.store.uploads import Uploader

# A lost answer leaves open whether a manifest was written; so often it is read back, and tried
# again when it is not there.
_PUBLISH_ATTEMPTS = 3
# Few enough for any store, enough that one which looks first and then writes is caught.
_RACERS = 8
_RACES = 3


@dataclass(frozen=True)
class StoredManifest:
    """A manifest, and the digest of the bytes that it was read from."""

    manifest: Manifest
    digest: str


@dataclass(frozen=True)
class Published:
    """The manifest that stands for a key now. `created`: it is one's own."""

    manifest: Manifest
    digest: str
    created: bool


@dataclass(frozen=True)
class Conditions:
    """How a store answered to conditional writes.

    `refuses`: a second `If-None-Match: *` write of a key gets 412. `winners`: how many of
    _RACERS simultaneous ones were told that they had written, in the worst of _RACES races.
    """

    refuses: bool
    winners: int

    @property
    def honoured(self) -> bool:
        """Whether two builders can never both believe that they have published a key."""
        return self.refuses and self.winners <= 1

    def __str__(self) -> str:
        if not self.refuses:
            return "the store ignores If-None-Match: a second write replaces the first"
        if self.winners > 1:
            return (
                "the store honours If-None-Match for one write after another, but let"
                f" {self.winners} of {_RACERS} simultaneous writes through"
            )
        return "the store honours If-None-Match"


class Store:
    """Engines of all scopes below one prefix. Safe to share between threads.

    All methods raise StoreError.
    """

    def __init__(
        self,
        location: StoreLocation,
        credentials: Credentials | None = None,
        *,
        timeouts: Timeouts | None = None,
    ) -> None:
        """`credentials` None: what boto3 finds, such as a workload identity."""
        self._bucket = Bucket(location, location.bucket, credentials, timeouts=timeouts)
        self._uploader = Uploader(self._bucket)
        self._prefix = location.prefix

    def get_manifest(self, key: str, scope: Scope = CLUSTER) -> StoredManifest | None:
        """The manifest of an engine; None when the store does not hold that engine.

        Raises CorruptObjectError for one that cannot be read or is that of another key, and
        ManifestUnsupportedError for one of a later contract.
        """
        name = self._layout(scope).manifest(key)
        try:
            data = self._bucket.read(name)
        except ObjectMissingError:
            return None
        return StoredManifest(self._parse(data, key, name), digest_of(data))

    def pinned_manifest(self, key: str, digest: str, scope: Scope = CLUSTER) -> Manifest:
        """The manifest that a pod was told to serve: its bytes are those of `digest`, or none.

        Raises ManifestMismatchError, and ObjectMissingError when the engine is gone.
        """
        name = self._layout(scope).manifest(key)
        url = self._bucket.url(name)
        try:
            data = self._bucket.read(name)
        except ObjectMissingError as error:
            raise ObjectMissingError(
                f"{url} does not exist any more: somebody deleted the engine from the store;"
                " set the annotation llmengine.io/requested-at to have it built again"
            ) from error
        if digest_of(data) != digest:
            raise ManifestMismatchError(
                f"{url} has digest {digest_of(data)}, but this pod was told to serve {digest}: it"
                " was damaged or replaced after this pod was planned; delete it to have the"
                " engine built again, unless the operator rolls out new pods by itself"
            )
        return self._parse(data, key, name)

    def publish_manifest(self, manifest: Manifest, scope: Scope = CLUSTER) -> Published:
        """Make an engine exist, after its blobs. The first to do so for a key wins.

        The write is conditional, and its outcome is what is read back afterwards, never what
        the write answered: the answer may be lost, and a 412 may be for one's own write that
        boto3 repeated. Bytes are compared; no two builds write the same ones.

        A store that ignores conditions can let two builders replace each other's manifest
        within the milliseconds between the look and the write, and tell both that they won.
        Then the later manifest stands, and a pod that pins the earlier digest refuses to start
        with ManifestMismatchError until the operator has read the store again. `probe` tells
        such a store; the operator's `store.conditionalWrites` decides.
        """
        data = manifest.serialize()
        name = self._layout(scope).manifest(manifest.key)
        for _ in range(_PUBLISH_ATTEMPTS):
            if (found := self._published(data, manifest.key, name)) is not None:
                return found
            # Both leave open who has written what: the next look tells.
            with suppress(AlreadyThereError, StoreUnreachableError):
                self._bucket.write(name, data, only_new=True)
        if (found := self._published(data, manifest.key, name)) is not None:
            return found
        raise StoreUnreachableError(
            f"{self._bucket.url(name)} could not be written: {_PUBLISH_ATTEMPTS} writes got no"
            " answer or were refused because it is there, yet it is not there to read; try again"
        )

    def put_blob(
        self,
        path: Path,
        contents: Contents,
        scope: Scope = CLUSTER,
        progress: Progress | None = None,
    ) -> bool:
        """Keep a file under its digest. Returns False when the store has it already.

        What is there is believed by its size: it was checked by the store when it was written.
        """
        name = self._layout(scope).blob(contents.digest)
        if self._bucket.size(name) == contents.size:
            return False
        self._uploader.upload(name, path, contents, progress)
        return True

    def abort_uploads(self) -> None:
        """Give back the parts of unfinished blobs, when the process has to end now."""
        self._uploader.abort_all()

    def fetch(
        self,
        manifest: Manifest,
        folder: Path,
        scope: Scope = CLUSTER,
        *,
        connections: int = CONNECTIONS,
        progress: Progress | None = None,
    ) -> Fetched:
        """Bring an engine's files into `folder`, every byte of them verified.

        Files of an earlier call are verified again and kept. Raises CorruptObjectError that
        names the object and the bytes, ObjectMissingError, or DiskFullError.
        """
        layout = self._layout(scope)
        wanted = [
            Wanted(layout.blob(file.digest), folder / file.path, file.size, file.chunks)
            for file in manifest.files
        ]
        try:
            return download(self._bucket, wanted, connections=connections, progress=progress)
        except (CorruptObjectError, ObjectMissingError) as error:
            manifest_url = self._bucket.url(layout.manifest(manifest.key))
            raise type(error)(
                f"{error}. Delete it and {manifest_url}, then set the annotation"
                " llmengine.io/requested-at to have the engine built again"
            ) from error

    def put_progress(self, progress: BuildProgress, scope: Scope = CLUSTER) -> None:
        """Replace what is known of a running build."""
        name = self._layout(scope).progress(progress.key)
        self._bucket.write(name, progress.model_dump_json(by_alias=True).encode())

    def get_progress(self, key: str, scope: Scope = CLUSTER) -> BuildProgress | None:
        """What a build last said of itself; None when it has said nothing that can be read."""
        try:
            data = self._bucket.read(self._layout(scope).progress(key))
            return BuildProgress.model_validate_json(data)
        except (ObjectMissingError, ValueError):
            return None

    def put_timing(
        self,
        backend: str,
        version: str,
        architecture: Architecture,
        timing: bytes,
        scope: Scope = CLUSTER,
    ) -> None:
        """Keep what a compiler measured on an architecture, instead of what was kept before."""
        self._bucket.write(self._layout(scope).timing(backend, version, architecture), timing)

    def get_timing(
        self, backend: str, version: str, architecture: Architecture, scope: Scope = CLUSTER
    ) -> bytes | None:
        """What `put_timing` kept last; None when nothing was."""
        try:
            return self._bucket.read(self._layout(scope).timing(backend, version, architecture))
        except ObjectMissingError:
            return None

    def probe(self) -> Conditions:
        """Find out whether the store honours `If-None-Match: *`, also under contention.

        Writes a few objects of some bytes below PREFIX/v1/probe/ and deletes them again, where
        it may; objects that it may not delete stay.
        """
        root = f"{self._layout(CLUSTER).root}/probe/{uuid.uuid4()}"
        names = [f"{root}-{number}" for number in range(_RACES + 1)]
        try:
            self._bucket.write(names[0], b"first")
            refuses = not self._wins(names[0], b"second")
            winners = max(self._race(name) for name in names[1:])
            return Conditions(refuses, winners)
        finally:
            for name in names:
                with suppress(StoreError):
                    self._bucket.delete(name)

    def _race(self, name: str) -> int:
        """How many of _RACERS win."""
        start = threading.Barrier(_RACERS)

        def run(number: int) -> bool:
            start.wait()
            return self._wins(name, f"racer {number}".encode())

        with ThreadPoolExecutor(_RACERS, thread_name_prefix="probe") as pool:
            return sum(pool.map(run, range(_RACERS)))

    def _wins(self, name: str, data: bytes) -> bool:
        try:
            self._bucket.write(name, data, only_new=True)
        except AlreadyThereError:
            return False
        return True

    def _layout(self, scope: Scope) -> Layout:
        return Layout(self._prefix, scope)

    def _published(self, own: bytes, key: str, name: str) -> Published | None:
        try:
            data = self._bucket.read(name)
        except ObjectMissingError:
            return None
        return Published(self._parse(data, key, name), digest_of(data), created=data == own)

    def _parse(self, data: bytes, key: str, name: str) -> Manifest:
        url = self._bucket.url(name)
        try:
            manifest = Manifest.parse(data)
        except UnsupportedContractError as error:
            raise ManifestUnsupportedError(f"{url}: {error}") from error
        except InvalidManifestError as error:
            raise CorruptObjectError(
                f"{url}: {error}. Delete it to have the engine built again"
            ) from error
        if manifest.key != key:
            raise CorruptObjectError(
                f"{url} is the manifest of another engine ({manifest.key}): delete it to have"
                " the engine built again"
            )
        return manifest
