"""The part of a build context that a Dockerfile takes, and no more.

The image is built from a copy of just these files and named by their digest, so that what the name
does not cover cannot be in the image.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.paths import ClusterError

_NEVER = frozenset(
    (".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis")
)


def sources(dockerfile: str) -> list[str]:
    """What COPY, ADD and bind mounts take from the context, in all stages; may hold wildcards.

    Raises ClusterError for a source that is not written out.
    """
    found: list[str] = []
    for instruction, arguments in _instructions(dockerfile):
        if instruction in ("COPY", "ADD"):
            found += _copied(arguments)
        elif instruction == "RUN":
            found += _mounted(arguments)
    for source in found:
        if "$" in source:
            raise ClusterError(
                f'the Dockerfile copies "{source}": name the files without variables'
            )
    return found


def files(dockerfile: Path, context: Path) -> list[Path]:
    """The files that the image depends on, relative to the context and sorted."""
    chosen: set[Path] = set()
    for source in sources(dockerfile.read_text()):
        pattern = source.strip("/")
        matches = [context] if pattern in ("", ".") else list(context.glob(pattern))
        if not matches:
            raise ClusterError(f'{dockerfile} copies "{source}", which is not in {context}')
        for match in matches:
            chosen.update(_tree(match))
    ignore = context / ".dockerignore"
    if ignore.exists():
        chosen.add(ignore)
    return sorted(file.relative_to(context) for file in chosen)


def digest(dockerfile: Path, context: Path, chosen: list[Path], *more: str) -> str:
    """Of everything that goes into the image: hexadecimal."""
    total = hashlib.sha256(json.dumps([dockerfile.read_text(), *more]).encode())
    for file in chosen:
        path = context / file
        content = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        total.update(json.dumps([str(file), _mode(path), len(content)]).encode())
        total.update(content)
    return total.hexdigest()


def stage(context: Path, chosen: list[Path], target: Path) -> None:
    """Copies the chosen files; nothing of their owners, times or umask shows in the image."""
    for file in chosen:
        copy = target / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(context / file, copy, follow_symlinks=False)
        if not copy.is_symlink():
            copy.chmod(_mode(context / file))


def _mode(file: Path) -> int:
    return 0o755 if file.lstat().st_mode & 0o100 else 0o644


def _tree(path: Path) -> Iterator[Path]:
    if path.is_symlink() or not path.is_dir():
        if path.suffix != ".pyc":
            yield path
        return
    for below in path.iterdir():
        if below.name not in _NEVER:
            yield from _tree(below)


def _instructions(dockerfile: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\[ \t]*\n", " ", "\n".join(lines)).splitlines():
        instruction, _, arguments = line.strip().partition(" ")
        yield instruction.upper(), arguments.strip()


def _copied(arguments: str) -> list[str]:
    flags, words = [], arguments
    while words.startswith("--"):
        flag, _, words = words.partition(" ")
        flags.append(flag)
        words = words.strip()
    if any(flag.startswith("--from=") for flag in flags):
        return []
    parts = list(json.loads(words)) if words.startswith("[") else shlex.split(words)
    return [part for part in parts[:-1] if not part.startswith(("<<", "http:", "https:"))]


def _mounted(arguments: str) -> list[str]:
    found = []
    for mount in re.findall(r"--mount=(\S+)", arguments):
        options = dict(option.partition("=")[::2] for option in mount.split(","))
        source = options.get("source") or options.get("src")
        if options.get("type", "bind") == "bind" and "from" not in options and source:
            found.append(source)
    return found
