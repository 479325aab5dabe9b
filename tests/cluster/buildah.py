"""Debian's buildah with a storage of its own in the cache, one command at a time.

Each command has a mount namespace and a run folder of its own: whatever ends it, no mount stays.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.paths import ClusterError, cache


def folder() -> Path:
    return cache() / "buildah"


@contextmanager
def locked() -> Iterator[None]:
    """To be held from the look whether an image is there until it is."""
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(*arguments: str, verbose: bool = False) -> str:
    """What buildah prints, which is shown as it comes when `verbose`.

    Raises ClusterError with the end of its output when it fails.
    """
    if shutil.which("buildah") is None:
        raise ClusterError("buildah is not installed: run 'tests/cluster/cluster install'")
    with tempfile.TemporaryDirectory(prefix="run-", dir=folder()) as run_root:
        storage = ["--root", str(folder() / "storage"), "--runroot", run_root]
        command = ["unshare", "--mount", "buildah", "--storage-driver", "overlay", *storage]
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        lines = []
        with process:
            for line in process.stdout:
                lines.append(line)
                if verbose:
                    print(line, end="", file=sys.stderr, flush=True)
    if process.returncode != 0:
        raise ClusterError(f"buildah {arguments[0]} failed:\n{''.join(lines[-30:]).rstrip()}")
    return "".join(lines)


def has(reference: str) -> bool:
    try:
        run("inspect", "--type", "image", "--format", "{{.FromImageID}}", reference)
    except ClusterError:
        return False
    return True


def build(context: Path, reference: str, *flags: str, verbose: bool = False) -> None:
    """Builds an image from a folder; layers are kept for the next build, containers are not."""
    run("rm", "--all")  # of a build that was killed
    # chroot: the other isolations want to set limits, which takes CAP_SYS_RESOURCE.
    isolation = ["--isolation", "chroot", "--pull-never", "--layers", "--force-rm"]
    run("build", *isolation, *flags, "--tag", reference, str(context), verbose=verbose)


def export(reference: str, archive: Path) -> None:
    """Writes an image as `docker save` would."""
    new = archive.with_suffix(".new")
    new.unlink(missing_ok=True)
    run("push", "--quiet", reference, f"docker-archive:{new}:{reference}")
    new.rename(archive)


def remove_other_versions(reference: str) -> None:
    """Removes the images of the same name under other tags, and the layers that only they use."""
    repository = reference.rpartition(":")[0]
    tags = run("images", "--format", "{{.Name}}:{{.Tag}}").split()
    old = [tag for tag in tags if tag.rpartition(":")[0] == repository and tag != reference]
    if old:
        run("rmi", "--force", *old)
