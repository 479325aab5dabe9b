"""containerd's store between two runs: it holds images, and nothing of the pods that ran.

The pods of a run leave containers and snapshots, which the next kubelet would have to clear away.
So the two databases are copied when the images have just been imported, and put back before each
start.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

_DATABASES = (
    Path("io.containerd.metadata.v1.bolt/meta.db"),
    Path("io.containerd.snapshotter.v1.overlayfs/metadata.db"),
)
_SNAPSHOTS = Path("io.containerd.snapshotter.v1.overlayfs/snapshots")
_CONTENT = Path("io.containerd.content.v1.content/blobs")
_OF_PODS = ("io.containerd.grpc.v1.cri", "io.containerd.runtime.v2.task", "tmpmounts")


@dataclass(frozen=True, slots=True)
class ImageStore:
    """The root folder of a containerd that does not run while one of these methods does."""

    root: Path

    @property
    def _sealed(self) -> Path:
        return self.root / "sealed"

    def images(self) -> set[str]:
        """The references that the store holds after reset()."""
        try:
            return set(json.loads((self._sealed / "contents.json").read_text())["images"])
        except FileNotFoundError:
            return set()

    def reset(self) -> None:
        """Puts back what seal() has kept, and removes everything else."""
        contents = self._sealed / "contents.json"
        if not contents.exists():
            shutil.rmtree(self.root, ignore_errors=True)
            return
        kept = set(json.loads(contents.read_text())["snapshots"])
        for database in _DATABASES:
            shutil.copyfile(self._sealed / database.name, self.root / database)
        # Their numbers will be given again: a folder in the way is an error.
        for snapshot in (self.root / _SNAPSHOTS).iterdir():
            if snapshot.name not in kept:
                shutil.rmtree(snapshot)
        for name in _OF_PODS:
            shutil.rmtree(self.root / name, ignore_errors=True)

    def unseal(self) -> None:
        """To be called before images are imported or removed: now only seal() keeps any."""
        (self._sealed / "contents.json").unlink(missing_ok=True)

    def seal(self, images: Collection[str]) -> None:
        self._sealed.mkdir(exist_ok=True)
        for database in _DATABASES:
            shutil.copyfile(self.root / database, self._sealed / database.name)
        contents: Mapping[str, list[str]] = {
            "images": sorted(images),
            "snapshots": sorted(folder.name for folder in (self.root / _SNAPSHOTS).iterdir()),
        }
        new = self._sealed / "contents.new"
        new.write_text(json.dumps(contents))
        new.rename(self._sealed / "contents.json")

    def clone(self, origin: ImageStore) -> None:
        """Becomes what seal() has kept of another one, which may be in use.

        The files of images are those of the other, by hard links: nothing writes to them.
        """
        shutil.rmtree(self.root, ignore_errors=True)
        contents = json.loads((origin._sealed / "contents.json").read_text())
        snapshots = self.root / _SNAPSHOTS
        for folder in (snapshots, self.root / _CONTENT.parent, self.root / _DATABASES[0].parent):
            folder.mkdir(parents=True)
        shutil.copytree(origin._sealed, self._sealed)
        _link(snapshots, *(origin.root / _SNAPSHOTS / name for name in contents["snapshots"]))
        _link(self.root / _CONTENT.parent, origin.root / _CONTENT)
        self.reset()


def _link(target: Path, *sources: Path) -> None:
    """Owners, attributes and the device files of layers are kept, which shutil cannot do."""
    subprocess.run(["cp", "--archive", "--link", *sources, target], check=True)


def superseded(present: Collection[str], wanted: Collection[str]) -> list[str]:
    """The images that are there in another version than the one that is wanted."""
    repositories = {reference.rpartition(":")[0] for reference in wanted}
    return sorted(
        reference
        for reference in set(present) - set(wanted)
        if reference.rpartition(":")[0] in repositories
    )
