"""A model's config.json, read key by key; what nobody read must be harmless by name or value.

The rule for keys that no family reads, in order:
1. a key of `_HARMLESS`, or of training (`*dropout*`, ...), changes nothing about inference;
2. a neutral value switches nothing on: null, false, "", {}, [], 0, but 1 for what multiplies;
3. a key whose name has a word of `_MATHS` is refused by name: it says that the model differs
   from what its family's code here computes, and guessing would publish another model;
4. any other key is a remark of some tool, as transformers itself takes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmengine.requests import BuildReason
from llmengine_builder.errors import BadInputError, UnsupportedError

_HARMLESS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_flash_attn_2_enabled",
        "attn_implementation",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "transformers_version",
        "torch_dtype",
        "use_cache",
        "use_flash_attn",
        "use_flash_attention",
        "use_flash_attention_2",
    }
)
_TRAINING = re.compile(r"dropout|pdrop|loss|aux|router_z|gradient|neftune|label")
_MULTIPLIER = re.compile(r"multiplier|scale|scaling|factor")
_MATHS = re.compile(
    r"(?:^|_)act(?:$|_|ivation)|alibi|attention|attn|audio|bias|cap(?:$|_|ping)|clip|compress"
    r"|(?:^|_)conv(?:$|_|olution|\d)|embed|encoder|expert|factor|ffn|gate|head|hidden|interleave"
    r"|kv|latent|layer|logit|loop|lora|mamba|mask|mixture|mlp|moe|multiplier|norm|position|quant"
    r"|query|qk|recurren|residual|rope|rotary|scal|shared|shortcut|sink|softmax|sparse|ssm"
    r"|text_config|theta|(?:^|_)tied?(?:$|_)|vision|window|yarn"
)
_REQUIRED: Any = object()


class Config:
    """config.json as an object that remembers which of its keys were read.

    Every reader takes `absent`, the value for a key that is missing; without it the key must be
    there. Readers raise BadInputError for a missing key and for a value of another type.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._read: set[str] = set()

    @classmethod
    def load(cls, folder: Path) -> Config:
        """Read `config.json` of a model's folder. Raises BadInputError."""
        path = folder / "config.json"
        if not path.is_file():
            raise BadInputError(
                BuildReason.MODEL_INVALID, "the model's folder has no config.json: add it"
            )
        try:
            values = json.loads(path.read_bytes())
        except ValueError as error:
            raise BadInputError(
                BuildReason.MODEL_INVALID, f"config.json is no JSON ({error}): upload it again"
            ) from error
        if not isinstance(values, dict):
            raise BadInputError(
                BuildReason.MODEL_INVALID, "config.json is not an object: upload it again"
            )
        return cls(values)

    def raw(self, key: str, absent: Any = _REQUIRED) -> Any:
        """The value as it stands, of any type."""
        self._read.add(key)
        if key not in self._values:
            if absent is _REQUIRED:
                raise BadInputError(
                    BuildReason.MODEL_INVALID,
                    f"config.json lacks {key}: add it as the model was trained",
                )
            return absent
        return self._values[key]

    def count(self, key: str, absent: int = _REQUIRED, least: int = 1) -> int:
        """An integer that is not below `least`."""
        value = self.raw(key, absent)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self._wrong(key, value, f"an integer from {least} on")
        return value

    def count_or_none(self, key: str, absent: int | None = _REQUIRED) -> int | None:
        """A positive integer, or None for null."""
        return None if self.raw(key, absent) is None else self.count(key, absent or _REQUIRED)

    def number(self, key: str, absent: float = _REQUIRED) -> float:
        """A positive, finite number."""
        value = self.raw(key, absent)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < float("inf")
        ):
            raise self._wrong(key, value, "a positive number")
        return float(value)

    def flag(self, key: str, absent: bool = _REQUIRED) -> bool:
        """True or false; null counts as false."""
        value = self.raw(key, absent)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, absent: str = _REQUIRED) -> str:
        value = self.raw(key, absent)
        if not isinstance(value, str):
            raise self._wrong(key, value, "text")
        return value

    def texts(self, key: str, absent: tuple[str, ...] = _REQUIRED) -> tuple[str, ...]:
        """A list of texts; null counts as an empty one."""
        value = self.raw(key, absent)
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise self._wrong(key, value, "a list of texts")
        return tuple(value)

    def mapping(self, key: str) -> Mapping[str, Any] | None:
        """An object; None where the key is missing, null or an empty object."""
        value = self.raw(key, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return value or None

    def refuse_unread(self) -> None:
        """Raise UnsupportedError when a key that was never read may change the model."""
        for key, value in self._values.items():
            if key in self._read or key in _HARMLESS or _TRAINING.search(key.lower()):
                continue
            if _is_neutral(key, value) or not _MATHS.search(key.lower()):
                continue
            raise UnsupportedError(
                BuildReason.MODEL_UNSUPPORTED,
                f"config.json has {key} = {_shorten(value)}, which this release does not know and"
                " whose name says that it changes what the model computes",
            )

    @staticmethod
    def _wrong(key: str, value: Any, wanted: str) -> BadInputError:
        return BadInputError(
            BuildReason.MODEL_INVALID,
            f"config.json has {key} = {_shorten(value)}, which must be {wanted}",
        )


def _is_neutral(key: str, value: Any) -> bool:
    if value is None or value is False or value in ("", {}, []):
        return True
    if value is True or not isinstance(value, int | float):
        return False
    return value == (1 if _MULTIPLIER.search(key.lower()) else 0)


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
