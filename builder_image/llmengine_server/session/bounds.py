"""What every session refuses before it starts a step. Raises ValueError, each with the limit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def token_ids(tokens: Sequence[int], vocabulary: int) -> NDArray[np.int32]:
    """Tokens as an engine takes them, `[n]`."""
    ids = np.asarray(tokens, np.int32)
    # ONNX Runtime counts a negative token from the end of the vocabulary.
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise ValueError(f"a token is not within 0 to {vocabulary - 1}")
    return ids


def check_chunk(tokens: int, most: int) -> None:
    """The length of one chunk of a prompt, in tokens."""
    if not 0 < tokens <= most:
        raise ValueError(f"a chunk has 1 to {most} tokens, and not {tokens}")


def check_step(tokens: int, pasts: int, slots: int) -> None:
    """The sizes of what one decode step is given."""
    if not 0 < tokens == pasts <= slots:
        raise ValueError(
            f"a step takes 1 to {slots} tokens with as many pasts, and not {tokens} and {pasts}"
        )


def check_length(tokens: int, most: int) -> None:
    """The length that a sequence comes to, in tokens."""
    if tokens > most:
        raise ValueError(f"the sequence would have {tokens} tokens, and the engine takes {most}")
