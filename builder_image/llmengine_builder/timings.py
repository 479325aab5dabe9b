"""What compilers measured on an architecture, kept in the store from build to build.

It only saves time: a store that does not give it, or does not take it, fails no build.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmengine.architecture import Architecture
from llmengine.last_words import print_line
from llmengine.requests import BuildRequest
from llmengine.store import Store, StoreError


@dataclass(frozen=True)
class Timings:
    """Those of one build's backend, version and architecture."""

    store: Store
    request: BuildRequest
    architecture: Architecture

    def read(self) -> bytes:
        """What the last build kept; empty when there is nothing to be had."""
        request = self.request
        try:
            found = self.store.get_timing(
                request.backend, request.backend_version, self.architecture, request.scope
            )
        except StoreError as error:
            print_line({"warning": f"the build starts without earlier timings: {error}"})
            return b""
        return found or b""

    def keep(self, timing: bytes) -> None:
        """For the next build; nothing where the backend measures nothing."""
        if not timing:
            return
        request = self.request
        try:
            self.store.put_timing(
                request.backend, request.backend_version, self.architecture, timing, request.scope
            )
        except StoreError as error:
            print_line({"warning": f"timings are not kept for the next build: {error}"})
