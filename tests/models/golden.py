"""What transformers computed, as small committed files: read here, made by `record_golden`.

A golden is only given out together with the model that it was recorded from, byte for byte.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.models.tiny import TinyModel

DIRECTORY = Path(__file__).parent / "recorded"
REMEDY = "remake the goldens with 'make golden' if the change was meant"


class StaleGoldenError(Exception):
    """The model that a golden was recorded from cannot be made any more."""


@dataclass(frozen=True, eq=False)
class Golden:
    """Logits of a tiny model, computed in float32 by transformers with eager attention.

    `token_ids` [length] int64 is one sequence; `logits` [positions, vocabulary] float32 are those
    after the tokens at `positions` [positions] int64, of which the last is the sequence's last.
    `window_crossed`: the sequence is longer than the model's sliding window, so full attention
    differs from it on purpose.
    """

    name: str
    model: TinyModel
    weights_digest: str
    window_crossed: bool
    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    logits: NDArray[np.float32]

    def write_model(self, directory: Path) -> Path:
        """Write the model into `directory` and return it. Raises StaleGoldenError."""
        if self.model.digest() != self.weights_digest:
            raise StaleGoldenError(
                f"golden {self.name}: TinyModel makes other weights than it did: {REMEDY}"
            )
        return self.model.write(directory)

    def save(self, directory: Path) -> Path:
        """Write `NAME.npz`; equal goldens make equal bytes."""
        path = directory / f"{self.name}.npz"
        description = {
            "model": self.model.describe(),
            "weights_digest": self.weights_digest,
            "window_crossed": self.window_crossed,
        }
        np.savez_compressed(
            path,
            description=np.frombuffer(json.dumps(description).encode(), dtype=np.uint8),
            token_ids=self.token_ids,
            positions=self.positions,
            logits=self.logits,
        )
        return path


@dataclass(frozen=True, eq=False)
class LogitSample:
    """Some logits after one token: `values` [n] float32 of the vocabulary entries `ids` [n].

    `position` is an index into prompt and output together. The largest logits are among them.
    """

    position: int
    ids: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Conversation:
    """A chat with SmolLM2 and its greedy answer in float32.

    `prompt` is `messages` through the chat template; `output_ids` end with the end-of-turn token
    when `finished`, else after 64 tokens; `text` leaves special tokens out. `margin` is the
    smallest distance between the two largest logits over the output: no implementation whose
    logits err by less may choose another token.
    """

    name: str
    messages: list[dict[str, str]]
    prompt: str
    prompt_ids: list[int]
    output_ids: list[int]
    text: str
    finished: bool
    margin: float
    logits: list[LogitSample]


@dataclass(frozen=True, eq=False)
class SmolLM2:
    """All conversations, and the SHA-256 of the model.safetensors that answered them."""

    weights_digest: str
    conversations: list[Conversation]


def names() -> list[str]:
    """The names of all tiny goldens, sorted."""
    return sorted(path.stem for path in DIRECTORY.glob("*.npz"))


def load(name: str) -> Golden:
    """One golden by its name."""
    with np.load(DIRECTORY / f"{name}.npz", allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    description = json.loads(arrays.pop("description").tobytes())
    model = TinyModel(**description.pop("model"))
    return Golden(name=name, model=model, **description, **arrays)


def load_all() -> list[Golden]:
    """All goldens that an engine with full attention has to reproduce."""
    return [golden for golden in map(load, names()) if not golden.window_crossed]


def load_smollm2() -> SmolLM2:
    """What SmolLM2, as `smollm2.directory()` makes it, answered."""
    stored = json.loads((DIRECTORY / "smollm2.json").read_text(encoding="utf-8"))
    conversations = [
        Conversation(**entry | {"logits": [_sample(sample) for sample in entry["logits"]]})
        for entry in stored["conversations"]
    ]
    return SmolLM2(weights_digest=stored["weights_digest"], conversations=conversations)


def _sample(entry: dict[str, Any]) -> LogitSample:
    return LogitSample(
        position=entry["position"],
        ids=np.array(entry["ids"], dtype=np.int64),
        values=np.array(entry["values"], dtype=np.float32),
    )
