"""Rotary position embedding: how fast each pair of a head's numbers turns with the position.

Frequencies are computed once, in the float32 steps of transformers' modeling_rope_utils (5.23),
because a model's weights were trained with exactly these roundings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmengine.requests import BuildReason
from llmengine_builder.errors import BadInputError, UnsupportedError
from llmengine_builder.graph.config import Config

# rope_theta of every family here where config.json has none (transformers 4 and 5).
_DEFAULT_THETA = 10000.0
_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_KEYS: Mapping[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor", "original_max_position_embeddings"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "finetuned",
    },
}


@dataclass(frozen=True)
class Rope:
    """What position `p` does to a head: pair `i` turns by `p * frequencies[i]` radians.

    `frequencies` has head_dim / 2 float32 values; cosine and sine are multiplied by `amplitude`
    (yarn). `longest` is the sequence length, in tokens, from which on the frequencies would have
    to change (dynamic), or None.
    """

    frequencies: tuple[float, ...]
    amplitude: float
    longest: int | None


def read_rope(config: Config, head_dim: int, max_positions: int) -> Rope:
    """Read `rope_parameters`, `rope_scaling` and `rope_theta`, which may all be there.

    Raises UnsupportedError for a rope that differs between layers, turns part of a head only, or
    has a type other than default, linear, dynamic, llama3 and yarn; BadInputError for settings
    that are incomplete or contradict each other.
    """
    settings = _settings(config)
    kind = settings.text("rope_type", "default")
    if kind not in _KEYS:
        raise UnsupportedError(
            BuildReason.MODEL_UNSUPPORTED,
            f"the model's rope type is {kind}; supported are {', '.join(_KEYS)}",
        )
    settings.refuse_other(_COMMON | _KEYS[kind], kind)
    theta = settings.number("rope_theta", _DEFAULT_THETA)
    original = settings.number("original_max_position_embeddings", max_positions)
    plain = _plain_frequencies(theta, head_dim)
    amplitude, longest = 1.0, None
    if kind == "linear":
        frequencies = plain / np.float32(settings.number("factor"))
    elif kind == "llama3":
        frequencies = _llama3(plain, settings, original)
    elif kind == "yarn":
        frequencies, amplitude = _yarn(settings, theta, head_dim, original, max_positions)
    else:
        frequencies = plain
        longest = int(min(original, max_positions)) if kind == "dynamic" else None
    return Rope(tuple(float(value) for value in frequencies), amplitude, longest)


class _Settings:
    """One flat object of rope settings, with its name for sentences."""

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self._name = name
        self.values = {key: value for key, value in values.items() if value is not None}

    def text(self, key: str, absent: str) -> str:
        return str(self.values.get(key, absent))

    def number(self, key: str, absent: float | None = None) -> float:
        value = self.values.get(key, absent)
        if value is None:
            raise BadInputError(
                BuildReason.MODEL_INVALID, f"{self._name} of config.json lacks {key}: add it"
            )
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < math.inf
        ):
            raise BadInputError(
                BuildReason.MODEL_INVALID,
                f"{self._name} of config.json has {key} = {value!r}, which must be a positive"
                " number",
            )
        return float(value)

    def refuse_other(self, known: set[str], kind: str) -> None:
        if self.values.get("partial_rotary_factor", 1) != 1:
            raise _partial(self.values["partial_rotary_factor"])
        if surplus := sorted(set(self.values) - known):
            raise UnsupportedError(
                BuildReason.MODEL_UNSUPPORTED,
                f"{self._name} of config.json has {surplus[0]} ="
                f" {self.values[surplus[0]]!r}, which rope type {kind} does not take here",
            )


def _settings(config: Config) -> _Settings:
    if config.raw("partial_rotary_factor", None) not in (None, 1, 1.0):
        raise _partial(config.raw("partial_rotary_factor"))
    sources = {
        name: _flat(name, values)
        for name in ("rope_parameters", "rope_scaling")
        if (values := config.mapping(name)) is not None
    }
    sources["config.json"] = {
        key: config.raw(key, None) for key in ("rope_theta", "original_max_position_embeddings")
    }
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, values in sources.items():
        for key, value in values.items():
            if value is None:
                continue
            if key in merged and merged[key] != value:
                raise BadInputError(
                    BuildReason.MODEL_INVALID,
                    f"config.json contradicts itself: {key} is {merged[key]!r} in {origin[key]}"
                    f" and {value!r} in {name}; keep the one that the model was trained with",
                )
            merged.setdefault(key, value)
            origin.setdefault(key, name)
    name = next((name for name in sources if name != "config.json"), "the rope")
    kind = merged.get("rope_type", "default")
    if kind not in ("llama3", "yarn", "dynamic"):
        # Beside a rope that does not stretch, the original length is a remark.
        merged.pop("original_max_position_embeddings", None)
    return _Settings(name, merged)


def _flat(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    if layered := sorted(key for key, value in values.items() if isinstance(value, dict)):
        raise UnsupportedError(
            BuildReason.MODEL_UNSUPPORTED,
            f"{name} of config.json differs between layers ({', '.join(layered)}), which is not"
            " supported",
        )
    flat = dict(values)
    old = flat.pop("type", None)
    if old is not None and flat.setdefault("rope_type", old) != old:
        raise BadInputError(
            BuildReason.MODEL_INVALID,
            f"{name} of config.json contradicts itself: type is {old!r}, rope_type"
            f" {flat['rope_type']!r}",
        )
    return flat


def _partial(value: Any) -> UnsupportedError:
    return UnsupportedError(
        BuildReason.MODEL_UNSUPPORTED,
        f"the model turns only a part of each head (partial_rotary_factor = {value}), which is"
        " not supported",
    )


def _plain_frequencies(theta: float, head_dim: int) -> NDArray[np.float32]:
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # torch's float32 power is within one rounding of the exact one.
    periods = np.power(theta, exponents.astype(np.float64)).astype(np.float32)
    return np.float32(1.0) / periods


def _llama3(
    plain: NDArray[np.float32], settings: _Settings, original: float
) -> NDArray[np.float32]:
    factor = settings.number("factor")
    low, high = settings.number("low_freq_factor"), settings.number("high_freq_factor")
    if low >= high:
        raise BadInputError(
            BuildReason.MODEL_INVALID,
            f"the rope of config.json has low_freq_factor {low} >= high_freq_factor {high}",
        )
    wavelength = np.float32(2 * math.pi) / plain
    slow = np.where(wavelength > original / low, plain / np.float32(factor), plain)
    share = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
    between = (1 - share) * slow / np.float32(factor) + share * slow
    medium = (wavelength >= original / high) & (wavelength <= original / low)
    return np.where(medium, between, slow).astype(np.float32)


def _yarn(
    settings: _Settings, theta: float, head_dim: int, original: float, max_positions: int
) -> tuple[NDArray[np.float32], float]:
    factor = settings.number("factor", max_positions / original)
    fast, slow = settings.number("beta_fast", 32), settings.number("beta_slow", 1)

    def pair(turns: float) -> float:
        """The (fractional) pair that makes `turns` turns within the original length."""
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(fast), pair(slow)
    if settings.values.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    if first == last:
        last += 0.001
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    periods = np.power(theta, exponents.astype(np.float64)).astype(np.float32)
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - np.float32(first)) / np.float32(
        last - first
    )
    kept = 1 - np.clip(ramp, 0, 1)
    stretched = np.float32(1.0) / (np.float32(factor) * periods)
    frequencies = stretched * (1 - kept) + np.float32(1.0) / periods * kept
    return frequencies.astype(np.float32), _yarn_amplitude(settings, factor)


def _yarn_amplitude(settings: _Settings, factor: float) -> float:
    if "attention_factor" in settings.values:
        return settings.number("attention_factor")

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if settings.values.get("mscale") and settings.values.get("mscale_all_dim"):
        return scale(settings.number("mscale")) / scale(settings.number("mscale_all_dim"))
    return scale(1.0)
