"""Where a model's files come from: one module a scheme, one way to ask.

A source is asked for names first, then for the beginnings of the weights, and only then for the
weights: a model that cannot be built is refused before it is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llmengine.requests import BuildReason, BuildRequest, S3Endpoint
from llmengine.store import Credentials
from llmengine_builder.errors import BadInputError

Progress = Callable[[int], None]


@dataclass(frozen=True)
class SourceFile:
    """A file of a model, by its name in the model's folder. `sha256`, where the source tells."""

    path: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True)
class Access:
    """What a source may use to be let in; None of either means an anonymous or ambient identity."""

    s3: Credentials | None = None
    hf_token: str | None = None


class Source(Protocol):
    """One model. All methods raise BuildError."""

    @property
    def folder(self) -> Path:
        """Where fetched files lie; known once `files` has answered."""
        ...

    @property
    def takes_disk(self) -> bool:
        """Whether fetching copies, or the files are read where they are."""
        ...

    def files(self) -> Sequence[SourceFile]:
        """The files directly in the model's folder."""
        ...

    def head(self, path: str, length: int) -> bytes:
        """The first bytes of a file; fewer when it is shorter."""
        ...

    def fetch(self, paths: Sequence[str], progress: Progress) -> None:
        """Make files be in `folder`. `progress` gets the bytes that arrived since."""
        ...


def open_source(request: BuildRequest, access: Access, scratch: Path, mount: Path) -> Source:
    """The source of a request's model, which may copy into `scratch`; asks nothing of it yet.

    `mount`: where the claim of a pvc:// model is mounted. Raises BuildError.
    """
    scheme, folder = request.uri.partition("://")[0], scratch / "model"
    if scheme == "s3":
        from llmengine_builder.source.s3 import S3Source  # noqa: PLC0415

        return S3Source(request.uri, request.model_endpoint or S3Endpoint(), access.s3, folder)
    if scheme == "pvc":
        from llmengine_builder.source.claim import ClaimSource  # noqa: PLC0415

        return ClaimSource(request.uri, mount, folder)
    if scheme == "hf":
        _prepare_hub(scratch)
        from llmengine_builder.source.hub import HubSource  # noqa: PLC0415

        return HubSource(
            request.uri, request.revision, request.hf_endpoint, access.hf_token, folder
        )
    raise BadInputError(
        BuildReason.REQUEST_INVALID,
        f'"{request.uri}" names no model: write hf://OWNER/NAME, s3://BUCKET/PATH or'
        " pvc://CLAIM/PATH",
    )


def _prepare_hub(scratch: Path) -> None:
    """Set what huggingface_hub reads when it is imported.

    The only writable place of a build is its scratch disk, which a cache of chunks must not fill
    a second time; nobody sees progress bars.
    """
    os.environ.setdefault("HF_HOME", str(scratch / "huggingface"))
    os.environ.setdefault("HF_XET_CHUNK_CACHE_SIZE_BYTES", "0")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
