"""The command `llmengine-build`: one engine, then the end.

Everything that it is told stands in its environment; everything that it has to say stands on
stdout, a JSON object a line, and its last words in the termination message.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from llmengine.artifact import BuildProgress
from llmengine.interruption import on_sigterm
from llmengine.last_words import Ending, LastWords
from llmengine.requests import BuildReason, BuildRequest, ExitCode
from llmengine.store import (
    MODEL_PREFIX,
    STORE_PREFIX,
    Credentials,
    IncompleteCredentialsError,
    Store,
)
from llmengine_builder.errors import BadInputError, BuildError
from llmengine_builder.ordered import read_order
from llmengine_builder.pipeline import Places, build
from llmengine_builder.progress import Progress
from llmengine_builder.source import Access

SCRATCH_VARIABLE = "LLMENGINE_SCRATCH"
MOUNT_VARIABLE = "LLMENGINE_MODEL_MOUNT"
# A pod gets 10 s to end; most of them are for the kubelet.
_GOODBYE_SECONDS = 3.0
# malloc(3) of glibc: M_MMAP_THRESHOLD, and what it is at first, in bytes.
_MMAP_THRESHOLD, _SHORTEST_MAPPED = -3, 128 << 10


def main() -> None:
    """Ends with one of llmengine.requests.ExitCode, or 1 for a bug."""
    _give_memory_back()
    words = LastWords(os.environ)
    sys.exit(words.speak(run(os.environ, words)))


def run(environment: Mapping[str, str], words: LastWords) -> Ending:
    """The whole build, as an ending; SIGTERM may be heard meanwhile."""
    try:
        request = read_order(environment)
        store = Store(request.store, _credentials(STORE_PREFIX, environment))
        access = Access(
            s3=_credentials(MODEL_PREFIX, environment),
            hf_token=environment.get(f"{MODEL_PREFIX}HF_TOKEN", "").strip() or None,
        )
        places = Places(
            scratch=_empty(Path(environment.get(SCRATCH_VARIABLE, "/scratch")) / "build"),
            mount=Path(environment.get(MOUNT_VARIABLE, "/model")),
        )
        on_sigterm(lambda: words.speak(_interrupted(store)))
        with Progress(request.key, request.job, _teller(store, request)) as progress:
            return Ending(ExitCode.OK, build(request, access, places, store, progress))
    except BuildError as error:
        return Ending.failure(error.exit_code, error.reason, error.message)
    except Exception as error:  # whatever it is, the pod's last words must tell it
        ending = Ending.of(error, disk=BuildReason.SCRATCH_TOO_SMALL)
        if ending.code not in set(ExitCode):
            words.log(error)
        return ending


def _give_memory_back() -> None:
    """Large blocks are given back to the system as soon as they are free.

    Else glibc takes the first large block that is freed, such as a download's, for a habit, and
    keeps those that come after for itself: a twentieth of a small model's weights.
    """
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _SHORTEST_MAPPED)


def _teller(store: Store, request: BuildRequest) -> Callable[[BuildProgress], None]:
    return lambda progress: store.put_progress(progress, request.scope)


def _credentials(prefix: str, environment: Mapping[str, str]) -> Credentials | None:
    try:
        return Credentials.from_environment(prefix, environment)
    except IncompleteCredentialsError as error:
        mine = prefix == STORE_PREFIX
        reason = BuildReason.STORE_DENIED if mine else BuildReason.MODEL_ACCESS_DENIED
        raise BadInputError(reason, str(error)) from error


def _empty(folder: Path) -> Path:
    """A container that is started again finds what its predecessor left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _interrupted(store: Store) -> Ending:
    # Parts of unfinished blobs cost space for ever, but a dead store must not delay the end.
    abort = threading.Thread(target=store.abort_uploads, daemon=True)
    abort.start()
    abort.join(_GOODBYE_SECONDS)
    return Ending.failure(
        ExitCode.TRANSIENT,
        BuildReason.INTERRUPTED,
        "the build was stopped by SIGTERM: its pod was deleted, evicted, preempted or over its"
        " deadline; it starts again from the beginning",
    )


if __name__ == "__main__":
    main()
