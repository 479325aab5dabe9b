"""Amounts of bytes as people read them, and as Kubernetes wants them written."""

from __future__ import annotations

from decimal import Decimal

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_BINARY = {f"{letter}i": 1 << 10 * (i + 1) for i, letter in enumerate("KMGTPE")}
_DECIMAL = {letter: 1000 ** (i + 1) for i, letter in enumerate("kMGTPE")}
_SUFFIXES = {**_BINARY, **_DECIMAL, "m": Decimal("0.001")}
GIB = 1 << 30
MIB = 1 << 20


def readable(size: int) -> str:
    """Three digits at least: `17 B`, `1.46 GiB`, `538 MiB`."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    digits = 0 if unit == 0 or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {_UNITS[unit]}"


def whole_bytes(quantity: int | str) -> int:
    """A Kubernetes quantity of bytes, such as `6Gi`, `1.5G` or `1e9`, rounded down.

    Raises decimal.InvalidOperation for what is no quantity.
    """
    text = str(quantity)
    for suffix, factor in _SUFFIXES.items():
        if text.endswith(suffix):
            return int(Decimal(text.removesuffix(suffix)) * factor)
    return int(Decimal(text))


def enough(size: int) -> str:
    """A Kubernetes quantity that holds at least `size` bytes: `6Gi`, or `300Mi` below 1 GiB."""
    if size >= GIB:
        return f"{-(-size // GIB)}Gi"
    return f"{max(1, -(-size // MIB))}Mi"
