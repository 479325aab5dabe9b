"""Text to tokens and back, one token at a time: what has been given out is never taken back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as _Tokenizer

# What a decoder writes for bytes that are no character (yet).
_UNFINISHED = "\ufffd"
# A character is at most 4 bytes and so 4 tokens; where more are unfinished, it is not text.
_MAX_UNFINISHED = 8
# Tokens of the prompt that decide how the first generated ones read (a leading space).
_CONTEXT = 64


class Tokenizer:
    """A model's tokenizer, with the ids that begin and end its texts."""

    def __init__(
        self, tokenizer: _Tokenizer, *, bos_id: int | None, eos_ids: frozenset[int]
    ) -> None:
        # What tokenizer.json says of these concerns training batches; here it would cut prompts.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._bos_id = bos_id
        self.eos_ids = eos_ids

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read tokenizer.json and the eos ids of generation_config.json, else of config.json.

        Raises FileNotFoundError without a tokenizer.json.
        """
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: the engine has no tokenizer")
        tokenizer = _Tokenizer.from_file(str(path))
        configs = [
            read_json(directory / name) for name in ("generation_config.json", "config.json")
        ]
        return cls(
            tokenizer,
            bos_id=next(iter(_first(configs, "bos_token_id")), None),
            eos_ids=frozenset(_first(configs, "eos_token_id")),
        )

    def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """The tokens of a text.

        `special`: with what the tokenizer puts around a text; a text that brings its own BOS
        does not get a second one.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        if self._bos_id is not None and ids[:2] == [self._bos_id, self._bos_id]:
            ids = ids[1:]
        return tuple(ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text


class Detokenizer:
    """The text that generated tokens add to their prompt.

    The pieces, joined, are the text of all tokens. A piece never ends inside a character.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        # The window begins and, at `clean`, ends between characters. `given` counts the
        # characters of its text that are out already.
        self._window = list(prompt[-_CONTEXT:])
        self._given = len(tokenizer.decode(self._window))
        self._clean = len(self._window)

    def push(self, token: int) -> str:
        """The text that is certain now, perhaps none."""
        self._window.append(token)
        fresh = self._tokenizer.decode(self._window)[self._given :]
        text = fresh.rstrip(_UNFINISHED)
        if len(fresh) - len(text) > _MAX_UNFINISHED:
            text = fresh
        self._given += len(text)
        if text and text == fresh:
            self._slide()
        return text

    def flush(self) -> str:
        """What was held back, at the end of a text."""
        text = self._tokenizer.decode(self._window)[self._given :]
        self._given += len(text)
        return text

    def _slide(self) -> None:
        # The window keeps some text: a decoder treats the very first word differently.
        window = self._window[self._clean :]
        if text := self._tokenizer.decode(window):
            self._window, self._given = window, len(text)
        self._clean = len(self._window)


class StopWords:
    """Ends a text before the first stop word in it, however the text arrives in pieces.

    The first is the one that is complete first; of two that end together, the longer.
    """

    def __init__(self, words: Sequence[str] = ()) -> None:
        self._words = tuple(word for word in dict.fromkeys(words) if word)
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """The text that no stop word can begin in any more; after a match, nothing."""
        if self.matched:
            return ""
        if not self._words:
            return text
        text = self._held + text
        found = [
            (start + len(word), start) for word in self._words if (start := text.find(word)) >= 0
        ]
        if found:
            self.matched, self._held = True, ""
            return text[: min(found)[1]]
        keep = len(text) - self._beginning(text)
        self._held = text[keep:]
        return text[:keep]

    def flush(self) -> str:
        """What was held back, at the end of a text that has no stop word."""
        text, self._held = self._held, ""
        return text

    def _beginning(self, text: str) -> int:
        """The length of the longest end of `text` that a stop word begins with."""
        longest = min(max(map(len, self._words)) - 1, len(text))
        for length in range(longest, 0, -1):
            if any(word.startswith(text[-length:]) for word in self._words):
                return length
        return 0


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file. Raises ValueError for anything else."""
    if not path.is_file():
        return {}
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds no JSON object")  # noqa: TRY004 - a bad file, not a bad call
    return data


def _first(configs: Sequence[dict[str, Any]], key: str) -> list[int]:
    """A config's token id or list of ids, from the first config that has any."""
    for config in configs:
        value = config.get(key)
        if value is not None:
            return [int(v) for v in (value if isinstance(value, list) else [value])]
    return []
