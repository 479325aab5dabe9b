"""What an engine is tied to: a CPU family, or a GPU's compute capability and name."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

_CPU = ("amd64", "arm64")
_GPU = re.compile(r"sm_([1-9]\d?)(\d)(?:/([A-Za-z0-9][A-Za-z0-9_.-]{0,99}))?")
_SLUG_WORD = 15
_SLUG_HASH = 5


# What the labels of a shared GPU, or of a slice of one, add to its name.
_SHARE = re.compile(r"(-SHARED|-MIG-[0-9a-z.]+)+$")


def device_name(name: str) -> str:
    """A GPU's name as architectures have it, from a node's label `nvidia.com/gpu.product` or from
    what the device says of itself: `NVIDIA-H100-80GB-HBM3`.

    Labels have no spaces, as label values cannot, and a suffix for how the GPU is divided.
    """
    return _SHARE.sub("", re.sub(r"\s+", "-", name.strip()))


class InvalidArchitectureError(ValueError):
    """The text names no architecture."""


@dataclass(frozen=True)
class Architecture:
    """Exactly one of `cpu` and `compute_capability` is set; `device` only with the latter.

    Sorted by how they are written, CPUs and GPUs together.
    """

    cpu: str | None = None
    compute_capability: tuple[int, int] | None = None
    device: str | None = None

    @classmethod
    def parse(cls, text: str) -> Architecture:
        """Read `amd64`, `arm64`, `sm_90` or `sm_90/NVIDIA-H100-80GB-HBM3`.

        Raises InvalidArchitectureError for anything else.
        """
        if text in _CPU:
            return cls(cpu=text)
        if match := _GPU.fullmatch(text):
            major, minor, device = match.groups()
            return cls(compute_capability=(int(major), int(minor)), device=device)
        raise InvalidArchitectureError(
            f'"{text}" is not an architecture: write amd64, arm64, sm_90 or sm_90/DEVICE-NAME'
        )

    def __str__(self) -> str:
        if self.compute_capability is None:
            return self.cpu or ""
        name = "sm_{}{}".format(*self.compute_capability)
        return f"{name}/{self.device}" if self.device else name

    def __lt__(self, other: Architecture) -> bool:
        return str(self) < str(other)

    @property
    def is_cpu(self) -> bool:
        return self.cpu is not None

    @property
    def slug(self) -> str:
        """For names and label values: lowercase, `[a-z0-9-]`, at most 21 characters.

        A CPU family is its own slug. A GPU keeps 15 characters to be read and gets 5 hex digits
        of its hash, so that two long names with one beginning stay apart.
        """
        text = str(self)
        if self.is_cpu:
            return text
        word = re.sub(r"[^a-z0-9]+", "-", text.lower())[:_SLUG_WORD].strip("-")
        return f"{word}-{hashlib.sha256(text.encode()).hexdigest()[:_SLUG_HASH]}"
