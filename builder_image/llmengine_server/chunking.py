"""How much of a prompt is run at once: little enough that nobody who generates waits long."""

from __future__ import annotations

import statistics
from collections import deque

# A chunk between two decode steps takes about as long as this many of them.
DECODE_STEPS = 2.0
# With nobody to wait, a chunk is still short enough to notice a cancellation or a newcomer.
ALONE_SECONDS = 1.0
# Below this many tokens a chunk costs its overhead, not its tokens.
SMALLEST_CHUNK = 16
_REMEMBERED_STEPS = 5


class Chunking:
    """Sizes prefill chunks by what the last chunk and the last decode steps took.

    A chunk of T tokens takes a + b*T seconds. Taking the last chunk's (a + b*T) / T for the rate
    converges on the T that fills the time allowed.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        self._max = max_batch_tokens
        self._seconds_per_token: float | None = None
        self._steps: deque[float] = deque(maxlen=_REMEMBERED_STEPS)

    def prefilled(self, tokens: int, seconds: float) -> None:
        if tokens >= min(SMALLEST_CHUNK, self._max) or self._seconds_per_token is None:
            self._seconds_per_token = seconds / tokens

    def decoded(self, seconds: float) -> None:
        self._steps.append(seconds)

    def size(self, *, others_decode: bool) -> int:
        """Tokens of the next chunk, at most; `max_batch_tokens` until something was measured."""
        if not self._seconds_per_token:
            return self._max
        allowed = ALONE_SECONDS
        if others_decode and self._steps:
            # The median: one step that the machine held up must not let a huge chunk in.
            allowed = DECODE_STEPS * statistics.median(self._steps)
        fitting = int(allowed / self._seconds_per_token)
        return min(max(fitting, SMALLEST_CHUNK), self._max)
