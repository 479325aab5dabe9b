"""What can go wrong with a request to the API server, typed by what the caller may do about it."""

from __future__ import annotations

import json
from dataclasses import dataclass


class KubeError(Exception):
    """The API server refused a request, or did not answer it.

    `status` is the HTTP status, 0 when there was no answer; `reason` the API's CamelCase word;
    `message` what it said; `what` the request, e.g. "get Job team-a/build-1".
    """

    def __init__(self, status: int, reason: str, message: str, what: str) -> None:
        super().__init__(status, reason, message, what)
        self.status = status
        self.reason = reason
        self.message = message
        self.what = what

    def __str__(self) -> str:
        return f"cannot {self.what}: {self.message} ({self.status} {self.reason})"


class NotFoundError(KubeError):
    """404: no such object, or no such kind."""


class AlreadyExistsError(KubeError):
    """409: an object of that name exists."""


class ConflictError(KubeError):
    """409: the object changed meanwhile, or is not the one that was meant."""


class ForbiddenError(KubeError):
    """401 or 403: who we are may not do this. A quota's refusal is one, too."""


class ExpiredError(KubeError):
    """410: a resourceVersion or a page that the server remembers no more."""


class UnavailableError(KubeError):
    """5xx, 429, or no answer: the same request may succeed later."""


@dataclass(frozen=True)
class FieldCause:
    """What is wrong with one field."""

    field: str
    message: str


class InvalidError(KubeError):
    """The object is not valid. `causes` says which fields, if the server did."""

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        what: str,
        causes: tuple[FieldCause, ...] = (),
    ) -> None:
        super().__init__(status, reason, message, what)
        self.causes = causes


def error_of(status: int, http_reason: str, body: bytes, what: str) -> KubeError:
    """The error for an answer of 400 or more, from the API's Status object if that was sent."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or answer.get("kind") != "Status":
        # A proxy on the way said it, and what it said may be a page of HTML.
        answer = {"message": body[:200].decode(errors="replace").strip()}
    reason = answer.get("reason") or http_reason.replace(" ", "")
    message = answer.get("message") or "no message"
    # A field that does not exist is a 400 in a create, but in an apply it is said like this.
    untyped = status == 500 and "failed to create typed patch object" in message
    if status in (400, 422) or untyped:
        details = answer.get("details") or {}
        causes = tuple(
            FieldCause(cause.get("field", ""), cause.get("message", ""))
            for cause in details.get("causes") or ()
        )
        return InvalidError(status, reason, message, what, causes)
    return _error_class(status, reason)(status, reason, message, what)


def _error_class(status: int, reason: str) -> type[KubeError]:
    if status == 409:
        return AlreadyExistsError if reason == "AlreadyExists" else ConflictError
    if status == 429 or status >= 500:
        return UnavailableError
    classes: dict[int, type[KubeError]] = {
        401: ForbiddenError,
        403: ForbiddenError,
        404: NotFoundError,
        410: ExpiredError,
    }
    return classes.get(status, KubeError)
