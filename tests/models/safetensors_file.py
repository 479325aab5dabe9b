"""Safetensors files, one tensor in memory at a time and offsets where a test wants them.

The `safetensors` package aligns its headers to 8 bytes and takes all tensors at once; checkpoints
in the field do neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Dtype = Literal["F32", "F16", "BF16"]
NUMPY_DTYPES: Mapping[Dtype, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Names as config.json spells them.
CONFIG_DTYPES: Mapping[Dtype, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file; `values` gives it as float32, any shape with the right size."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], NDArray[np.float32]]

    @property
    def size(self) -> int:
        size = 1
        for length in self.shape:
            size *= length
        return size


def encode(values: NDArray[np.float32], dtype: Dtype) -> bytes:
    """The little-endian bytes of `values`, rounded to the nearest even value of `dtype`."""
    return values.astype(NUMPY_DTYPES[dtype]).tobytes()


def write(
    path: Path, tensors: Sequence[Tensor], dtype: Dtype, data_offset_modulo_8: int = 0
) -> int:
    """Write `tensors` to `path` in order and return the bytes of data.

    The header is padded with spaces so that the data starts at `data_offset_modulo_8` modulo 8.
    Raises ValueError when a tensor's values do not fill its shape.
    """
    item = NUMPY_DTYPES[dtype].itemsize
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.size * item
        header[tensor.name] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * ((data_offset_modulo_8 - 8 - len(text)) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            values = tensor.values()
            if values.size != tensor.size:
                raise ValueError(
                    f"{tensor.name}: {values.size} values for a shape of {tensor.shape}"
                )
            file.write(encode(values, dtype))
    path.chmod(0o644)
    return end


def write_shards(
    directory: Path, tensors: Sequence[Tensor], dtype: Dtype, shards: int, *, unaligned: bool
) -> list[Path]:
    """Spread `tensors` over files named as the hub names them, with an index when `shards` > 1.

    With `unaligned` every file's data starts at an odd offset, another one in each file.
    """
    bounds = [len(tensors) * i // shards for i in range(shards + 1)]
    weight_map: dict[str, str] = {}
    paths: list[Path] = []
    total = 0
    for i in range(shards):
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        path = directory / ("model.safetensors" if shards == 1 else name)
        part = tensors[bounds[i] : bounds[i + 1]]
        total += write(path, part, dtype, (2 * i + 1) % 8 if unaligned else 0)
        weight_map |= dict.fromkeys((tensor.name for tensor in part), path.name)
        paths.append(path)
    if shards > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        (directory / INDEX).chmod(0o644)
    return paths
