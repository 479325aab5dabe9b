"""Images of a running containerd: imported without the layers that it has already.

An archive holds every layer of its image, most of them the same as in the version before. So what
containerd is handed is an OCI archive that lacks those.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.cluster.paths import ClusterError
from tests.cluster.processes import Supervisor

_CTR = ("ctr", "--address", "/run/containerd/containerd.sock", "--namespace", "k8s.io")
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True)
class Containerd:
    """The containerd of a node."""

    supervisor: Supervisor

    def answers(self) -> bool:
        try:
            return bool(self._run("version"))
        except ClusterError:
            return False

    def images(self) -> dict[str, str]:
        """The digest of each name. Each image has a second name of its own, sha256:..."""
        rows = (line.split() for line in self._run("images", "ls").splitlines()[1:])
        return {row[0]: row[2] for row in rows}

    def load(self, reference: str, archive: Path, overlay: bytes = b"") -> None:
        """Imports what `docker save` wrote, with a layer over it. Raises ClusterError when it is
        refused.
        """
        present = self._run("content", "ls", "--quiet").split()
        command = self.supervisor.enter(*_CTR, "images", "import", "-")
        importing = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert importing.stdin is not None
        assert importing.stdout is not None
        try:
            write_oci_archive(importing.stdin, reference, archive, present, overlay)
            importing.stdin.close()
        except BrokenPipeError:
            pass  # it has said why
        with importing:
            output = importing.stdout.read().decode(errors="replace")
        if importing.returncode != 0:
            raise ClusterError(f"importing {archive} failed: {output.strip()}")

    def remove(self, references: Collection[str]) -> None:
        """Removes images under all their names, and whatever only they have needed."""
        images = self.images()
        digests = {images[reference] for reference in references if reference in images}
        kept = {digest for name, digest in images.items() if not _removed(name, references)}
        names = [name for name, digest in images.items() if digest in digests - kept]
        names += [reference for reference in references if images.get(reference) in kept]
        if names:
            self._run("images", "rm", "--sync", *names)

    def _run(self, *arguments: str) -> str:
        return self.supervisor.on_node(*_CTR, *arguments)


def _removed(name: str, references: Collection[str]) -> bool:
    return name in references or name.startswith("sha256:")


def write_oci_archive(
    output: IO[bytes], reference: str, archive: Path, present: Collection[str], overlay: bytes = b""
) -> None:
    """Writes what `docker save` wrote as an OCI archive, without the blobs in `present`.

    `overlay`: one more layer, a tar file, over those of the archive; or nothing.
    """
    with tarfile.open(archive) as saved, tarfile.open(fileobj=output, mode="w|") as oci:
        (image,) = json.loads(_read(saved, "manifest.json"))
        config = _read(saved, image["Config"])
        layers = {}
        for digest, name in zip(
            json.loads(config)["rootfs"]["diff_ids"], image["Layers"], strict=True
        ):
            member = saved.getmember(name)
            layers[digest] = {"mediaType": _LAYER, "digest": digest, "size": member.size}
            if digest not in present:
                _add(oci, _blob(digest), saved.extractfile(member), member.size)
        if overlay:
            config = _with_layer(config, overlay)
            layers[_digest(overlay)] = _descriptor(_LAYER, overlay)
            _add(oci, _blob(_digest(overlay)), io.BytesIO(overlay), len(overlay))
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": _descriptor(_CONFIG, config),
                "layers": list(layers.values()),
            }
        )
        index = {
            "schemaVersion": 2,
            "manifests": [
                {
                    **_descriptor(_MANIFEST, manifest),
                    "annotations": {"io.containerd.image.name": reference},
                }
            ],
        }
        for content in (config, manifest):
            _add(oci, _blob(_digest(content)), io.BytesIO(content), len(content))
        for name, document in (
            ("oci-layout", _json({"imageLayoutVersion": "1.0.0"})),
            ("index.json", _json(index)),
        ):
            _add(oci, name, io.BytesIO(document), len(document))


def _with_layer(config: bytes, overlay: bytes) -> bytes:
    content = json.loads(config)
    content["rootfs"]["diff_ids"].append(_digest(overlay))
    content.setdefault("history", []).append({"created_by": "an overlay"})
    return _json(content)


def _add(archive: tarfile.TarFile, name: str, content: IO[bytes] | None, size: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = size
    archive.addfile(entry, content)


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise ClusterError(f"{name} is not a file of the archive")
    return file.read()


def _json(document: object) -> bytes:
    return json.dumps(document).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content)}
