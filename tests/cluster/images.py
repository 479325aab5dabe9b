"""Images without Docker: built from Dockerfiles over a local Debian, and named by their content."""

from __future__ import annotations

import argparse
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import archive, base_image, buildah
from tests.cluster import dockerfile as docker
from tests.cluster.package_index import write_configuration
from tests.cluster.paths import SOURCES, ClusterError, cache

PREFIX = "localhost/llmengine"
KEPT_ARCHIVES = 2  # of each image


@dataclass(frozen=True, slots=True)
class Image:
    """An image: the name that pods use, and the file (as `docker save` writes it) that holds it.

    `overlay`: a layer over those of the file, as a tar file; or nothing.
    """

    reference: str
    archive: Path
    overlay: bytes = b""


def build(
    dockerfile: Path,
    target: str | None,
    context: Path,
    name: str,
    *,
    build_args: Mapping[str, str] | None = None,
    verbose: bool = False,
) -> Image:
    """Builds localhost/llmengine/NAME:DIGEST, unless the same sources have been built before.

    The Dockerfile gets our Debian as its argument BASE_IMAGE; nothing is pulled. Of the context it
    sees what it copies. Raises ClusterError with the end of the build's output.
    """
    arguments = {"BASE_IMAGE": _base_reference(), **(build_args or {})}
    chosen = docker.files(dockerfile, context)
    recipe = repr((target, sorted(arguments.items())))
    image = _image(name, docker.digest(dockerfile, context, chosen, recipe))
    if image.archive.exists():
        return image
    debian = base(verbose=verbose)
    with buildah.locked():
        if image.archive.exists():  # built by another process meanwhile
            return image
        _say(f"building {image.reference}")
        if not buildah.has(debian.reference):
            buildah.run("pull", "--quiet", f"docker-archive:{debian.archive}")
        with tempfile.TemporaryDirectory() as folder:
            staged, settings = Path(folder, "context"), Path(folder, "settings")
            staged.mkdir()
            settings.mkdir()
            docker.stage(context, chosen, staged)
            caches = buildah.folder() / "package-caches"
            caches.mkdir(exist_ok=True)
            mounts = {"/root/.cache": caches, **write_configuration(settings)}
            flags = [f"--volume={path}:{place}:rw" for place, path in mounts.items()]
            flags += [f"--build-arg={key}={value}" for key, value in arguments.items()]
            flags += [f"--target={target}"] if target else []
            flags += [f"--file={dockerfile.resolve()}"]
            buildah.build(staged, image.reference, *flags, verbose=verbose)
        _export(image)
    return image


def base(*, verbose: bool = False) -> Image:
    """Our Debian (see base_image.py), made when it is not there."""
    reference = _base_reference()
    image = Image(reference, _archive("base", reference))
    if image.archive.exists():
        return image
    with buildah.locked():
        if image.archive.exists():
            return image
        _say(f"making {reference}")
        with tempfile.TemporaryDirectory(dir=buildah.folder()) as folder:
            base_image.make_root(Path(folder, "root.tar"))
            Path(folder, "Dockerfile").write_text("FROM scratch\nADD root.tar /\n")
            buildah.build(Path(folder), reference, verbose=verbose)
        _export(image)
    return image


def overlaid(image: Image, name: str, programs: Mapping[str, bytes]) -> Image:
    """The image with some of its programs exchanged, as localhost/llmengine/NAME:DIGEST."""
    overlay = archive.pack_files(programs, mode=0o755)
    digest = hashlib.sha256(image.reference.encode() + overlay).hexdigest()
    return Image(f"{PREFIX}/{name}:{digest[:12]}", image.archive, overlay)


def pause_image() -> Image:
    """What holds the namespaces of every pod: a static program and nothing else."""
    source = SOURCES / "pause.c"
    image = _image("pause", hashlib.sha256(source.read_bytes()).hexdigest())
    if image.archive.exists():
        return image
    if shutil.which("gcc") is None:
        raise ClusterError("gcc is not installed: run 'tests/cluster/cluster install'")
    image.archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "pause")
        command = ["gcc", "-static", "-Os", "-s", "-Wall", "-o", str(program), str(source)]
        compiled = subprocess.run(command, capture_output=True, text=True, check=False)
        if compiled.returncode != 0:
            raise ClusterError(f"compiling {source} failed:\n{compiled.stderr}")
        archive.pack_program(image.archive, image.reference, program, platform.machine())
    return image


def _image(name: str, digest: str) -> Image:
    reference = f"{PREFIX}/{name}:{digest[:12]}"
    return Image(reference, _archive(name, reference))


def _base_reference() -> str:
    return f"{PREFIX}/base:{base_image.digest()[:12]}"


def _archive(name: str, reference: str) -> Path:
    return cache() / "images" / f"{name}-{reference.rpartition(':')[2]}.tar"


def _export(image: Image) -> None:
    image.archive.parent.mkdir(parents=True, exist_ok=True)
    buildah.export(image.reference, image.archive)
    buildah.remove_other_versions(image.reference)
    name, _, _ = image.archive.stem.rpartition("-")
    versions = list(image.archive.parent.glob(f"{name}-{'[0-9a-f]' * 12}.tar"))
    versions.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    for old in versions[KEPT_ARCHIVES:]:
        old.unlink()


def prune() -> None:
    """Removes every image and all that buildah keeps for the next build."""
    with buildah.locked():
        shutil.rmtree(buildah.folder() / "storage", ignore_errors=True)
        shutil.rmtree(buildah.folder() / "package-caches", ignore_errors=True)
        shutil.rmtree(cache() / "images", ignore_errors=True)


def _say(step: str) -> None:
    print(step, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("base", help="the Debian that the others are built over")
    commands.add_parser("pause", help="what holds the namespaces of a pod")
    commands.add_parser("prune", help="remove every image and every cache of the builds")
    one = commands.add_parser("build", help="build a Dockerfile")
    one.add_argument("dockerfile", type=Path)
    one.add_argument("--target")
    one.add_argument("--context", type=Path, default=Path())
    one.add_argument("--name", required=True)
    options = parser.parse_args()
    try:
        if options.command == "prune":
            prune()
            return 0
        if options.command == "base":
            image = base(verbose=True)
        elif options.command == "pause":
            image = pause_image()
        else:
            sources = (options.dockerfile, options.target, options.context, options.name)
            image = build(*sources, verbose=True)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(image.reference, image.archive)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
