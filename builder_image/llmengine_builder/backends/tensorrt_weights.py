"""Weights as the engine computes with them, so that no engine casts or joins them when it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmengine.api.v1alpha1 import DType
from llmengine_builder.graph import Model
from llmengine_builder.safetensors import Checkpoint, StoredTensor

STORED: Mapping[DType, str] = {
    DType.FLOAT32: "F32",
    DType.FLOAT16: "F16",
    DType.BFLOAT16: "BF16",
}
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_TYPES: Mapping[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
PREPARED = "prepared.bin"
# Numbers that are converted at once.
_PIECE = 1 << 24


def prepared_bytes(model: Model, dtype: DType) -> int:
    """Size of the file that `prepared` writes."""
    tensors = model.checkpoint.tensors
    numbers = sum(math.prod(tensors[name].shape) for name in _written(model, dtype))
    return numbers * _ITEM_BYTES[STORED[dtype]]


def prepared(model: Model, dtype: DType, folder: Path) -> Model:
    """The model with all tensors stored in `dtype`, and with each layer's projections of query, key
    and value one behind the other. In `folder`, which is made: links to the model's files, and one
    with what had to be written.

    Rounds to nearest, ties to even; what float16 cannot hold becomes infinite.
    """
    folder.mkdir()
    checkpoint, wanted = model.checkpoint, STORED[dtype]
    tensors = dict(checkpoint.tensors)
    with (folder / PREPARED).open("wb") as file:
        for name in _written(model, dtype):
            offset = file.tell()
            _write(file, checkpoint.folder, checkpoint.tensors[name], wanted)
            length = file.tell() - offset
            shape = checkpoint.tensors[name].shape
            tensors[name] = StoredTensor(name, PREPARED, wanted, shape, offset, length)
    files = tuple(sorted({tensor.file for tensor in tensors.values()}))
    for name in files:
        if name != PREPARED:
            (folder / name).symlink_to((checkpoint.folder / name).resolve())
    return replace(model, checkpoint=Checkpoint(folder, files, tensors))


def _written(model: Model, dtype: DType) -> list[str]:
    """Names of the tensors that are written: projections, and whatever has another dtype."""
    tensors = model.checkpoint.tensors
    together = [
        f"model.layers.{layer}.self_attn.{letter}_proj.{part}"
        for layer in range(model.decoder.layers)
        for part in ("weight", "bias")
        for letter, _ in model.decoder.projections
    ]
    found = dict.fromkeys(name for name in together if name in tensors)
    other = sorted(name for name, tensor in tensors.items() if tensor.dtype != STORED[dtype])
    return list(found | dict.fromkeys(other))


def _write(file: Any, folder: Path, tensor: StoredTensor, wanted: str) -> None:
    source = np.memmap(
        folder / tensor.file,
        dtype=_TYPES[tensor.dtype],
        mode="r",
        offset=tensor.offset,
        shape=(int(np.prod(tensor.shape, dtype=np.int64)),),
    )
    for start in range(0, len(source), _PIECE):
        piece = source[start : start + _PIECE]
        file.write((piece if tensor.dtype == wanted else _convert(piece, wanted)).tobytes())


def _convert(stored: NDArray[Any], wanted: str) -> NDArray[Any]:
    wide = (
        np.left_shift(stored, 16, dtype=np.uint32).view(np.float32)
        if stored.dtype == np.uint16
        else stored.astype(np.float32)
    )
    if wanted == "F16":
        with np.errstate(over="ignore"):
            return wide.astype(np.float16)
    if wanted == "BF16":
        bits = wide.view(np.uint32)
        # Half of the last kept bit, less one where that bit is 0: ties go to even.
        rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
        return np.where(np.isnan(wide), np.uint32(0x7FC0), rounded).astype(np.uint16)
    return wide
