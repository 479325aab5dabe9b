"""How much of the prompts is run at once: little enough that nobody who generates waits long."""

from __future__ import annotations

import statistics
from collections import deque

# All chunks between two decode steps take about as long as this many of them.
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

    def expected(self, tokens: int) -> float:
        """Seconds that a chunk should take, by what is known."""
        return tokens * (self._seconds_per_token or 0.0)

    def expected_of(self, prompt: int, tokens: int) -> float:
        """Seconds that a prompt and so many tokens after it take at the least, by what is known."""
        step = statistics.median(self._steps) if self._steps else 0.0
        return self.expected(prompt) + tokens * step

    def prefilled(self, tokens: int, seconds: float) -> None:
        if tokens >= min(SMALLEST_CHUNK, self._max) or self._seconds_per_token is None:
            self._seconds_per_token = seconds / tokens

    def decoded(self, seconds: float) -> None:
        self._steps.append(seconds)

    def size_alone(self, rest: int) -> int:
        """Tokens of the next chunk of a prompt of which `rest` are left; nobody else waits."""
        return self._fitting(ALONE_SECONDS, rest)

    def size_between_steps(self, rest: int, spent: float) -> int:
        """Tokens of the next chunk while others wait for their next token.

        `spent`: seconds of prefill since the last decode step. The first chunk always gets some
        tokens, a further one none when there is no time left for it.
        """
        if not self._steps:
            return 0 if spent else self._fitting(0, rest)
        # The median: one step that the machine held up must not let a huge chunk in.
        left = DECODE_STEPS * statistics.median(self._steps) - spent
        if spent and left < SMALLEST_CHUNK * (self._seconds_per_token or 0):
            return 0
        return self._fitting(left, rest)

    def _fitting(self, seconds: float, rest: int) -> int:
        most = min(rest, self._max)
        if not self._seconds_per_token:
            return most
        size = max(int(seconds / self._seconds_per_token), SMALLEST_CHUNK)
        # A last chunk of a few tokens would cost as much again as it holds up now.
        return most if rest <= size + SMALLEST_CHUNK else min(size, most)
