"""What the store holds, as passes ask for it: an unchanged engine's pass reads no object.

A manifest never changes, so a hit is believed for a while; a miss is never remembered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Protocol

from llmengine.artifact import BuildProgress
from llmengine.key import Scope
from llmengine_operator.config import ConditionalWrites
from llmengine_operator.observation import Found, NotFound, Read, StoredEngine, Unreadable

# How long a manifest that was seen is taken to be there still.
BELIEVED = timedelta(minutes=5)
# How long an answer to "does the store honour If-None-Match" is kept when it could not be had.
PROBE_AGAIN = timedelta(seconds=30)


class StoreProblemError(Exception):
    """The store did not answer, or refused: a CamelCase reason and a sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class EngineStore(Protocol):
    """The operator's view of the store. Methods raise StoreProblemError."""

    def find(self, key: str, scope: Scope) -> StoredEngine | None: ...

    def progress(self, key: str, scope: Scope) -> BuildProgress | None: ...

    def honours_conditions(self) -> bool:
        """Whether a second conditional write of one key is refused."""
        ...


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
        self._honours: bool | None = None
        self._probed: datetime | None = None

    def find(self, key: str, scope: Scope) -> Read[StoredEngine]:
        """The engine of a key, as the store has it or had it a short while ago."""
        now = self._now()
        with self._lock:
            stored, seen = self._seen.get((key, scope), (None, None))
        if stored is not None and seen is not None and now - seen < BELIEVED:
            return Found(stored)
        try:
            found = self._store.find(key, scope)
        except StoreProblemError as problem:
            return Unreadable(problem.reason, problem.message)
        with self._lock:
            if found is None:
                self._seen.pop((key, scope), None)
                return NotFound()
            self._seen[key, scope] = found, now
        return Found(found)

    def progress(self, key: str, scope: Scope) -> BuildProgress | None:
        """How far a build is; None when it has not said, or cannot be read: it is a courtesy."""
        try:
            return self._store.progress(key, scope)
        except StoreProblemError:
            return None

    def unsafe(self) -> str:
        """A sentence when nothing must be built into this store, else nothing.

        Asked of the store once a process; again only while the store cannot be read, which
        hinders builds by itself.
        """
        with self._lock:
            now = self._now()
            overdue = self._probed is None or now - self._probed >= PROBE_AGAIN
            if self._honours is None and overdue:
                self._probed = now
                try:
                    self._honours = self._store.honours_conditions()
                except StoreProblemError:
                    self._honours = None
            honours = self._honours
        if honours is not False or self._writes is ConditionalWrites.PREFERRED:
            return ""
        return (
            "the store ignores If-None-Match, so two builders could overwrite each other's"
            " engine: use a store that honours it, or set store.conditionalWrites to Preferred in"
            " the operator's values if no other cluster writes to this bucket"
        )
