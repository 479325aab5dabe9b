"""A model on a PersistentVolumeClaim: pvc://CLAIM/PATH, read where it lies, and never written to.

Symbolic links, which the cache of huggingface_hub is made of, are copied to the scratch disk:
ONNX Runtime refuses weights behind a link that leaves the folder, and hard links do not reach
from one volume to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmengine.requests import BuildReason
from llmengine_builder.errors import BadInputError
from llmengine_builder.source import Progress, SourceFile

_PIECE = 4 << 20


class ClaimSource:
    """`mount`: where the claim is mounted; `scratch`: where links are resolved to, if need be."""

    def __init__(self, uri: str, mount: Path, scratch: Path) -> None:
        self._uri = uri
        self._mount = mount
        _, _, path = uri.removeprefix("pvc://").partition("/")
        self._origin = mount / path
        self._scratch = scratch
        self._linked = False

    @property
    def folder(self) -> Path:
        return self._scratch if self._linked else self._origin

    @property
    def takes_disk(self) -> bool:
        return self._linked

    def files(self) -> Sequence[SourceFile]:
        if not self._origin.is_dir():
            raise BadInputError(
                BuildReason.MODEL_NOT_FOUND,
                f"{self._uri} is no folder of its claim, which has {self._nearby()}: correct the"
                " path in spec.model.uri",
            )
        try:
            entries = sorted(self._origin.iterdir())
        except PermissionError as error:
            raise self._denied(self._origin) from error
        self._linked = any(entry.is_symlink() for entry in entries)
        return [
            SourceFile(entry.name, self._inside(entry).stat().st_size)
            for entry in entries
            if entry.is_file()
        ]

    def head(self, path: str, length: int) -> bytes:
        try:
            with self._inside(self._origin / path).open("rb") as file:
                return file.read(length)
        except PermissionError as error:
            raise self._denied(self._origin / path) from error

    def fetch(self, paths: Sequence[str], progress: Progress) -> None:
        for path in paths:
            if self._linked:
                self._copy(path, progress)
            else:
                self.head(path, 1)
                progress((self._origin / path).stat().st_size)

    def _copy(self, path: str, progress: Progress) -> None:
        self._scratch.mkdir(parents=True, exist_ok=True)
        try:
            with (
                self._inside(self._origin / path).open("rb") as source,
                (self._scratch / path).open("wb") as target,
            ):
                while piece := source.read(_PIECE):
                    target.write(piece)
                    progress(len(piece))
        except PermissionError as error:
            raise self._denied(self._origin / path) from error

    def _inside(self, path: Path) -> Path:
        """Where a path leads. A link out of the claim would read, and publish, other files."""
        target = path.resolve()
        if not target.is_relative_to(self._mount.resolve()):
            raise BadInputError(
                BuildReason.MODEL_INVALID,
                f"{path.name} of {self._uri} is a link that leaves the claim: put the file itself"
                " there",
            )
        return target

    def _denied(self, path: Path) -> BadInputError:
        return BadInputError(
            BuildReason.MODEL_ACCESS_DENIED,
            f"{path.relative_to(self._mount)} on the claim of {self._uri} may not be read by the"
            " build's user: let everyone read it, with chmod -R a+rX",
        )

    def _nearby(self) -> str:
        folder = self._origin
        while not folder.is_dir() and folder != self._mount:
            folder = folder.parent
        names = sorted(entry.name for entry in folder.iterdir())
        where = folder.relative_to(self._mount)
        place = f"in {where}" if folder != self._mount else "at its top"
        return f"{place}: {', '.join(names[:5])}" if names else f"nothing {place}"
