"""What the parts of the server tell one another about one request: asked once, ended once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from llmengine_server.sampling import Sampling


class Finish(StrEnum):
    """Why a request ended."""

    STOP = "stop"
    """The model said that it was done, or a stop word came up."""
    LENGTH = "length"
    """`max_tokens` tokens are there."""
    CANCELLED = "cancelled"
    """The client went away."""
    FAILED = "failed"
    """The engine could not go on with this request."""
    REFUSED = "refused"
    """There was no room for it: another server may have some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A request that passed every check.

    `prompt` has at least one token; `max_tokens` more fit the engine. `stop_ids` end the text.
    """

    id: int
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stop_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Event:
    """One token of a request, or its end, or both. `message` says what a client can do."""

    id: int
    token: int | None = None
    finish: Finish | None = None
    message: str = ""
