"""Amounts of bytes as people read them, and as Kubernetes wants them written."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
GIB = 1 << 30
MIB = 1 << 20


def readable(size: int) -> str:
    """Three digits at least: `17 B`, `1.46 GiB`, `538 MiB`."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    digits = 0 if unit == 0 or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {_UNITS[unit]}"


def enough(size: int) -> str:
    """A Kubernetes quantity that holds at least `size` bytes: `6Gi`, or `300Mi` below 1 GiB."""
    if size >= GIB:
        return f"{-(-size // GIB)}Gi"
    return f"{max(1, -(-size // MIB))}Mi"
