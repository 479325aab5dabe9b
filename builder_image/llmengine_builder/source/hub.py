"""A model on the Hugging Face Hub or a mirror of it: hf://OWNER/NAME at one commit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from llmengine.requests import BuildReason
from llmengine_builder.errors import BadInputError, BuildError, TransientError
from llmengine_builder.source import Progress, SourceFile

_FILES_AT_ONCE = 4
# Answers that a hub gives when it is busy or being repaired, not because of what was asked.
_BUSY = (408, 425, 429)


class HubSource:
    """`endpoint` empty: the public hub. Never uses a token that was not given."""

    takes_disk = True

    def __init__(
        self, uri: str, revision: str, endpoint: str, token: str | None, folder: Path
    ) -> None:
        self.folder = folder
        self._uri = uri
        self._repository = uri.removeprefix("hf://")
        self._revision = revision
        self._token = token
        # False, not None: huggingface_hub would look for a token of its own.
        self._api = HfApi(endpoint=endpoint or None, token=token or False)

    def files(self) -> Sequence[SourceFile]:
        with self._explained():
            info = self._api.model_info(
                self._repository, revision=self._revision, files_metadata=True
            )
        if info.sha != self._revision:
            raise BadInputError(
                BuildReason.MODEL_INVALID,
                f"{self._hub} answered with commit {info.sha} of {self._uri}, not with"
                f" {self._revision}: correct the mirror",
            )
        files = [file for file in info.siblings or [] if "/" not in file.rfilename]
        if any(file.size is None for file in files):
            raise BadInputError(
                BuildReason.MODEL_UNREACHABLE,
                f"{self._hub} does not tell the sizes of the files of {self._uri}: use a mirror"
                " that answers ?blobs=true as the hub does",
            )
        return [
            SourceFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None)
            for file in files
        ]

    def head(self, path: str, length: int) -> bytes:
        url = hf_hub_url(
            self._repository, path, revision=self._revision, endpoint=self._api.endpoint
        )
        headers = {"Range": f"bytes=0-{length - 1}"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        with self._explained(), get_session().stream("GET", url, headers=headers) as response:
            hf_raise_for_status(response)
            found = b""
            # Of a mirror that ignores ranges no more is read than was asked for.
            for piece in response.iter_bytes():
                found += piece
                if len(found) >= length:
                    break
            return found[:length]

    def fetch(self, paths: Sequence[str], progress: Progress) -> None:
        def one(path: str) -> None:
            self._api.hf_hub_download(
                self._repository,
                path,
                revision=self._revision,
                local_dir=self.folder,
                tqdm_class=_counting(progress),
            )

        with self._explained(), ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            for _ in pool.map(one, paths):
                pass

    @property
    def _hub(self) -> str:
        return self._api.endpoint

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except HfHubHTTPError as error:
            raise self._refused(error.response.status_code, error) from error
        except (HTTPError, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # the disk's, not the network's
            raise TransientError(
                BuildReason.MODEL_UNREACHABLE,
                f"{self._uri} cannot be fetched from {self._hub} ({_first_line(error)}): check"
                " the network policies and models.hfEndpoint of the operator's values",
            ) from error

    def _refused(self, status: int, error: Exception) -> BuildError:
        if status >= 500 or status in _BUSY:
            return TransientError(
                BuildReason.MODEL_UNREACHABLE,
                f"{self._hub} is in trouble: it answered {status} for {self._uri}; try again later",
            )
        for kinds, reason, sentence in self._refusals(status, error):
            if isinstance(error, kinds):
                return BadInputError(reason, sentence)
        return BadInputError(
            BuildReason.MODEL_UNREACHABLE,
            f"{self._hub} refused {self._uri} with {status} ({_first_line(error)}): check"
            " models.hfEndpoint of the operator's values",
        )

    def _refusals(
        self, status: int, error: Exception
    ) -> Iterator[tuple[type[Exception], BuildReason, str]]:
        """What the hub's own errors mean; subclasses come before what they inherit from."""
        yield (
            GatedRepoError,
            BuildReason.MODEL_ACCESS_DENIED,
            f"{self._uri} is gated on {self._hub} and may not be read {self._as_whom}: ask for"
            " access on the model's page, and name a Secret with that account's HF_TOKEN in"
            " spec.model.secretName",
        )
        yield (
            RevisionNotFoundError,
            BuildReason.MODEL_NOT_FOUND,
            f"{self._uri} has no commit {self._revision} on {self._hub}: correct"
            " spec.model.revision",
        )
        # The hub does not tell a private model from one that does not exist.
        yield (
            RepositoryNotFoundError,
            BuildReason.MODEL_NOT_FOUND,
            f"{self._uri} does not exist on {self._hub}, or may not be read {self._as_whom}:"
            " correct spec.model.uri, or name a Secret with an HF_TOKEN that may read it in"
            " spec.model.secretName",
        )
        yield (
            EntryNotFoundError,
            BuildReason.MODEL_INVALID,
            f"{self._hub} lists a file of {self._uri} that it does not have"
            f" ({_first_line(error)}): upload the model again",
        )
        if status in (401, 403):
            yield (
                HfHubHTTPError,
                BuildReason.MODEL_ACCESS_DENIED,
                f"{self._hub} refused {self._uri} {self._as_whom} ({status}): renew HF_TOKEN in the"
                " Secret that spec.model.secretName names, and let it read this model",
            )

    @property
    def _as_whom(self) -> str:
        return "with the HF_TOKEN that was given" if self._token else "without a token"


def _counting(progress: Progress) -> type:
    """A progress bar that is a counter: huggingface_hub tells bytes in no other way."""

    class Counter(tqdm):
        def update(self, n: float | None = 1) -> None:
            progress(int(n or 0))

    return Counter


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
