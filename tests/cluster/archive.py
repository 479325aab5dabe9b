"""Images of a single file, packed without any tool: what `docker save` would write of them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def pack_program(archive: Path, reference: str, program: Path, machine: str) -> None:
    """Writes an image that holds one static program, as /NAME, and runs it."""
    layer = pack_files({program.name: program.read_bytes()}, mode=0o755)
    digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps(
        {
            "architecture": _ARCHITECTURES.get(machine, machine),
            "os": "linux",
            "config": {"Entrypoint": [f"/{program.name}"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
            "history": [{"created_by": program.name}],
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    layer_name = f"{digest}/layer.tar"
    manifest = [{"Config": config_name, "RepoTags": [reference], "Layers": [layer_name]}]
    contents = {
        layer_name: layer,
        config_name: config,
        "manifest.json": json.dumps(manifest).encode(),
    }
    new = archive.with_suffix(f".{os.getpid()}")
    new.write_bytes(pack_files(contents, mode=0o644))
    new.rename(archive)


def pack_files(contents: Mapping[str, bytes], *, mode: int) -> bytes:
    """A tar file of them; the same contents make the same bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in contents.items():
            entry = tarfile.TarInfo(name)  # owner root, time 0: the digest is stable
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()
