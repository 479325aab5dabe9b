"""Waiting for a condition instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class WaitTimeoutError(AssertionError):
    """What was waited for did not happen in time."""


def wait_for(
    predicate: Callable[[], T],
    timeout: float = 30,
    describe: str | Callable[[], str] = "",
    *,
    interval: float = 0.1,
) -> T:
    """The first truthy value of `predicate`, which is asked every `interval` seconds.

    `describe` says what is waited for, and what is seen instead; it is called only at the end. An
    AssertionError or OSError of the predicate counts as "not yet". Raises WaitTimeoutError.
    """
    deadline = time.monotonic() + timeout
    last: T | Exception
    while True:
        try:
            last = predicate()
        except (AssertionError, OSError) as error:
            last = error
        else:
            if last:
                return last
        if time.monotonic() >= deadline:
            break
        time.sleep(interval)
    text = describe() if callable(describe) else describe
    what = text or getattr(predicate, "__name__", "the condition")
    raise WaitTimeoutError(f"after {timeout:g} s still waiting for: {what} (last: {last!r})")
