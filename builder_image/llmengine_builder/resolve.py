"""The Resolve phase: everything that can be known of a build before its weights are downloaded.

The beginnings of the weight files are enough for the graph, so a model that cannot be built, or
not here, is refused in seconds.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmengine.requests import BuildReason, BuildRequest
from llmengine_builder.errors import BadInputError
from llmengine_builder.graph import Model, read_model
from llmengine_builder.safetensors import INDEX
from llmengine_builder.source import Source, SourceFile
from llmengine_builder.source.selection import descriptions, weights

_LENGTH_BYTES = 8
# The format's own limit.
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Resolved:
    """A model that this image understands, by its descriptions and headers alone.

    `descriptions` are in the source's folder already; `weights` are still to be fetched.
    """

    model: Model
    descriptions: Mapping[str, SourceFile]
    weights: Mapping[str, SourceFile]

    @property
    def weight_bytes(self) -> int:
        return sum(file.size for file in self.weights.values())


def resolve(request: BuildRequest, source: Source, scratch: Path) -> Resolved:
    """Look at a model, and go through all that could refuse it. Raises BuildError."""
    name = request.uri
    files = {file.path: file for file in source.files()}
    small = descriptions(name, files)
    # Before anything else, because weights in a wrong format are what users get wrong most.
    if INDEX not in files:
        weights(name, files, None)
    source.fetch(small, lambda count: None)
    index = (source.folder / INDEX).read_bytes() if INDEX in small else None
    heavy = weights(name, files, index)
    headers = scratch / "headers"
    headers.mkdir()
    for path in small:
        shutil.copyfile(source.folder / path, headers / path)
    for path in heavy:
        _write_header(name, source, files[path], headers / path)
    model = read_model(headers)
    model.decoder.check_length(request.max_sequence_length)
    # Thrown away: how the cache comes changes no refusal.
    model.graph(request.dtype, "inputs")
    return Resolved(
        model=model,
        descriptions={path: files[path] for path in small if path != INDEX},
        weights={path: files[path] for path in heavy},
    )


def _write_header(name: str, source: Source, file: SourceFile, target: Path) -> None:
    """A file of the full length, of which only the header is there."""
    length = int.from_bytes(source.head(file.path, _LENGTH_BYTES), "little")
    if length > _LONGEST_HEADER:
        raise BadInputError(
            BuildReason.MODEL_INVALID,
            f"{file.path} of {name} is no safetensors file: its header would have {length} bytes;"
            " upload it again",
        )
    head = source.head(file.path, min(_LENGTH_BYTES + length, file.size))
    with target.open("wb") as sparse:
        sparse.write(head)
        sparse.truncate(file.size)
