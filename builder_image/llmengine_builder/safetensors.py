"""The headers of a model's safetensors files: every tensor, its place, and nothing of its data.

A checkpoint that this module hands out is whole: each tensor lies inside its file, in one piece,
under one name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmengine.requests import BuildReason
from llmengine_builder.errors import BadInputError, UnsupportedError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# The format's own limit, which keeps a damaged length from asking for all memory.
_LONGEST_HEADER = 100_000_000
_ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: `length` bytes from byte `offset` of `file`, little-endian.

    `file` is the name within the model's folder; `dtype` is spelled as the format does (`BF16`).
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a model's folder, by name."""

    folder: Path
    files: tuple[str, ...]
    tensors: Mapping[str, StoredTensor]

    @property
    def elements(self) -> int:
        """How many numbers the model has."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    def read(self, name: str) -> bytes:
        """The bytes of one tensor. Raises KeyError for a name that is not there."""
        tensor = self.tensors[name]
        with (self.folder / tensor.file).open("rb") as file:
            file.seek(tensor.offset)
            return file.read(tensor.length)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of all safetensors files that make up the model in `folder`.

    Takes the files of `model.safetensors.index.json` where there is one, else
    `model.safetensors`. Raises BadInputError for a missing, truncated or contradictory file, and
    UnsupportedError for weights that are stored as pickles only.
    """
    expected = _read_index(folder)
    files = sorted(set(expected.values())) if expected else [_single_file(folder)]
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in _read_header(folder, file):
            if (first := tensors.get(tensor.name)) is not None:
                raise BadInputError(
                    BuildReason.MODEL_INVALID,
                    f"tensor {tensor.name} is in both {first.file} and {tensor.file}:"
                    " remove one of them",
                )
            tensors[tensor.name] = tensor
    _compare_with_index(tensors, expected)
    return Checkpoint(folder=folder, files=tuple(files), tensors=tensors)


def _read_index(folder: Path) -> Mapping[str, str]:
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
        pairs = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            BuildReason.MODEL_INVALID,
            f"{INDEX} has no readable weight_map ({error}): upload the file again",
        ) from error
    if not pairs:
        raise BadInputError(
            BuildReason.MODEL_INVALID, f"{INDEX} names no tensor: upload the file again"
        )
    for name, file in pairs.items():
        # A path that leaves the folder would read, and publish, somebody else's file.
        if file != Path(file).name or not file.endswith(".safetensors"):
            raise BadInputError(
                BuildReason.MODEL_INVALID,
                f'{INDEX} puts tensor {name} into "{file}", which is not a .safetensors file of'
                " the model's folder",
            )
    return pairs


def _single_file(folder: Path) -> str:
    if (folder / SINGLE).is_file():
        return SINGLE
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise BadInputError(
            BuildReason.MODEL_INVALID,
            f"the model has {len(found)} safetensors files ({', '.join(found[:3])}, ...) but no"
            f" {INDEX} that says which belong to it: add the index",
        )
    if pickles := sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern)):
        raise UnsupportedError(
            BuildReason.WEIGHTS_ARE_PICKLED,
            f"the model's weights are pickle files only ({', '.join(pickles[:3])}), which can run"
            " code when they are read: convert them to safetensors",
        )
    raise BadInputError(
        BuildReason.MODEL_INVALID,
        f"the model's folder has no {SINGLE} and no {INDEX}: add the weights",
    )


def _read_header(folder: Path, name: str) -> Iterator[StoredTensor]:
    path = folder / name
    if not path.is_file():
        raise BadInputError(
            BuildReason.MODEL_INVALID, f"{INDEX} names {name}, which is not there: add it"
        )
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise BadInputError(
                BuildReason.MODEL_INVALID,
                f"{name} is truncated or no safetensors file: it has {size} bytes, which is less"
                " than its header says; upload it again",
            )
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_distinct)
        entries = {key: value for key, value in header.items() if key != "__metadata__"}
        tensors = [_entry(name, 8 + length, key, value) for key, value in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            BuildReason.MODEL_INVALID,
            f"the header of {name} cannot be read: {error}; upload it again",
        ) from error
    _refuse_overlap(name, tensors)
    for tensor in tensors:
        if tensor.offset + tensor.length > size:
            raise BadInputError(
                BuildReason.MODEL_INVALID,
                f"{name} is truncated: tensor {tensor.name} ends at byte"
                f" {tensor.offset + tensor.length}, the file at byte {size}; upload it again",
            )
        yield tensor


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} is in it twice")
        found[name] = value
    return found


def _entry(file: str, base: int, name: str, value: Any) -> StoredTensor:
    dtype, shape = str(value["dtype"]), tuple(int(length) for length in value["shape"])
    start, end = (int(offset) for offset in value["data_offsets"])
    if dtype not in _ITEM_BYTES:
        raise ValueError(f"tensor {name} has the unknown dtype {dtype}")
    if any(length < 0 for length in shape) or start < 0:
        raise ValueError(f"tensor {name} has a negative length or offset")
    if end - start != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise ValueError(
            f"tensor {name} of shape {list(shape)} and dtype {dtype} does not fill bytes"
            f" {start} to {end}"
        )
    return StoredTensor(name, file, dtype, shape, base + start, end - start)


def _refuse_overlap(file: str, tensors: list[StoredTensor]) -> None:
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset < end and tensor.length:
            raise BadInputError(
                BuildReason.MODEL_INVALID,
                f"tensors {before} and {tensor.name} of {file} overlap; upload it again",
            )
        end, before = tensor.offset + tensor.length, tensor.name


def _compare_with_index(tensors: Mapping[str, StoredTensor], expected: Mapping[str, str]) -> None:
    for name, file in expected.items():
        if name not in tensors or tensors[name].file != file:
            raise BadInputError(
                BuildReason.MODEL_INVALID,
                f"{INDEX} puts tensor {name} into {file}, but it is not there: upload the model"
                " again",
            )
