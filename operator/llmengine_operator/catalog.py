"""What the store holds, as passes ask for it: an unchanged engine's pass reads no object.

A manifest never changes, so a hit is believed for a while; a miss is never remembered.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Protocol

from llmengine.artifact import BuildProgress
from llmengine.key import Scope
from llmengine.store import Conditions, StoredManifest, StoreError
from llmengine_operator.config import ConditionalWrites
from llmengine_operator.observation import Found, NotFound, Read, StoredEngine, Unreadable
from llmengine_operator.reasons import Reason

log = logging.getLogger(__name__)

# How long a manifest that was seen is taken to be there still.
BELIEVED = timedelta(minutes=5)
# How long an answer to "does the store honour If-None-Match" is kept when it could not be had.
PROBE_AGAIN = timedelta(seconds=30)


class EngineStore(Protocol):
    """What the operator needs of `llmengine.store.Store`. Methods raise StoreError."""

    def get_manifest(self, key: str, scope: Scope) -> StoredManifest | None: ...

    def get_progress(self, key: str, scope: Scope) -> BuildProgress | None: ...

    def probe(self) -> Conditions: ...


class Catalog:
    """Shared by all workers."""

    def __init__(
        self, store: EngineStore, writes: ConditionalWrites, now: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._writes = writes
        self._now = now
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, Scope], tuple[StoredEngine, datetime]] = {}
        # Apart from the other lock: a store takes its time, and passes must not wait for that.
        self._probing = threading.Lock()
        self._conditions: Conditions | None = None
        self._probe_error: StoreError | None = None
        self._probed: datetime | None = None

    def find(self, key: str, scope: Scope, *, fresh: bool = False) -> Read[StoredEngine]:
        """The engine of a key, as the store has it or, unless `fresh`, had it a short while ago."""
        now = self._now()
        with self._lock:
            stored, seen = self._seen.get((key, scope), (None, None))
        if not fresh and stored is not None and seen is not None and now - seen < BELIEVED:
            return Found(stored)
        try:
            found = self._store.get_manifest(key, scope)
        except StoreError as error:
            return Unreadable(error.reason, error.message)
        with self._lock:
            if found is None:
                self._seen.pop((key, scope), None)
                return NotFound()
            stored = StoredEngine(found.manifest, found.digest)
            self._seen[key, scope] = stored, now
        return Found(stored)

    def progress(self, key: str, scope: Scope) -> BuildProgress | None:
        """How far a build is; None when it has not said, or cannot be read: it is a courtesy."""
        try:
            return self._store.get_progress(key, scope)
        except StoreError:
            return None

    def unsafe(self) -> Unreadable | None:
        """Why nothing must be built into this store; None when it may.

        The reason is StoreUnsafe, or the store's own while it does not answer. Asked of the store
        once a process; again only while there was no answer.
        """
        if self._writes is ConditionalWrites.PREFERRED:
            return None
        with self._probing:
            if self._conditions is None:
                self._probe(self._now())
            if self._conditions is not None:
                return _unsafe(self._conditions)
            error = self._probe_error
        if error is None or error.retry:
            return Unreadable(error.reason, error.message) if error else None
        return Unreadable(
            Reason.STORE_UNSAFE,
            f"nobody knows whether the store honours If-None-Match, for it cannot be tried:"
            f" {error.message}",
        )

    def _probe(self, now: datetime) -> None:
        if self._probed is not None and now - self._probed < PROBE_AGAIN:
            return
        self._probed = now
        try:
            self._conditions = self._store.probe()
        except StoreError as error:
            self._probe_error = error
            log.warning("cannot tell whether the store honours If-None-Match: %s", error)


def _unsafe(conditions: Conditions) -> Unreadable | None:
    if conditions.honoured:
        return None
    return Unreadable(
        Reason.STORE_UNSAFE,
        f"{conditions}, so two builders could replace each other's engine: use a store that"
        " honours it, or set store.conditionalWrites to Preferred in the operator's values if"
        " no other cluster writes to this bucket",
    )
