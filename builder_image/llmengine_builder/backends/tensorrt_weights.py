"""Weights in the type that the engine computes in, so that no engine casts them when it runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmengine.api.v1alpha1 import DType
from llmengine_builder.graph import Model, read_model
from llmengine_builder.safetensors import SINGLE, StoredTensor

STORED: Mapping[DType, str] = {
    DType.FLOAT32: "F32",
    DType.FLOAT16: "F16",
    DType.BFLOAT16: "BF16",
}
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_TYPES: Mapping[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
# Numbers that are converted at once.
_PIECE = 1 << 24


def converted_bytes(model: Model, dtype: DType) -> int:
    """Size of the file that `converted` writes; 0 where none is needed."""
    wanted = STORED[dtype]
    if all(tensor.dtype == wanted for tensor in model.checkpoint.tensors.values()):
        return 0
    return model.checkpoint.elements * _ITEM_BYTES[wanted]


def converted(model: Model, dtype: DType, folder: Path) -> Model:
    """The model with all tensors stored in `dtype`: itself, or a copy in `folder`, which is made.

    Rounds to nearest, ties to even; what float16 cannot hold becomes infinite.
    """
    if not converted_bytes(model, dtype):
        return model
    folder.mkdir()
    shutil.copyfile(model.checkpoint.folder / "config.json", folder / "config.json")
    wanted = STORED[dtype]
    tensors = sorted(model.checkpoint.tensors.values(), key=lambda tensor: tensor.name)
    header, offset = {}, 0
    for tensor in tensors:
        end = offset + int(np.prod(tensor.shape, dtype=np.int64)) * _ITEM_BYTES[wanted]
        header[tensor.name] = {
            "dtype": wanted,
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / SINGLE).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            _write(file, model.checkpoint.folder, tensor, wanted)
    return read_model(folder)


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
