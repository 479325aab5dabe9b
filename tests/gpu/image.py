"""The image for GPUs, built for real over a Triton image that is made here.

What NVIDIA publishes as one image comes from where anybody gets its parts. The result has 2.4 GB.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from tests.cluster import buildah, images
from tests.cluster.images import PREFIX, Image
from tests.cluster.package_index import write_configuration
from tests.cluster.paths import REPOSITORY
from tests.gpu.nvidia import BINDINGS, VERSION, libraries

_TRITON = Path(__file__).with_name("triton")
_NEEDED = ("tritonserver.lock", "unpack_tritonserver.py")
_DOCKERFILE = REPOSITORY / "builder_image/Dockerfile"


def build(bindings: str = BINDINGS[VERSION]) -> Image:
    """The target `tensorrt` of our Dockerfile. Raises ClusterError with what the build said."""
    arguments = {"TRITON_IMAGE": triton(), "TENSORRT_BINDINGS": bindings}
    return images.build(_DOCKERFILE, "tensorrt", REPOSITORY, "tensorrt", build_args=arguments)


def triton() -> str:
    """The Triton image, which is only in buildah's storage."""
    base = images.base()
    files = sorted(_TRITON.iterdir()) + [REPOSITORY / "builder_image" / name for name in _NEEDED]
    recipe = [base.reference, VERSION, *(file.read_text() for file in files)]
    reference = f"{PREFIX}/triton:{hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]}"
    found = libraries()
    with buildah.locked(), tempfile.TemporaryDirectory(dir=buildah.folder()) as folder:
        if buildah.has(reference):
            return reference
        print(f"building {reference}", flush=True)
        if not buildah.has(base.reference):
            buildah.run("pull", "--quiet", f"docker-archive:{base.archive}")
        context, settings = Path(folder, "context"), Path(folder, "settings")
        (context / "libraries").mkdir(parents=True)
        settings.mkdir()
        for file in files:
            shutil.copy(file, context)
        for library in found.glob("libnv*.so.*"):
            _link(library.resolve(), context / "libraries" / library.name)
        mounts = write_configuration(settings)
        flags = [f"--volume={path}:{place}:rw" for place, path in mounts.items()]
        flags += [f"--build-arg=BASE_IMAGE={base.reference}"]
        buildah.build(context, reference, *flags)
        buildah.remove_other_versions(reference)
    return reference


def _link(file: Path, name: Path) -> None:
    """All of them are 1.7 GB."""
    try:
        name.hardlink_to(file)
    except OSError:  # of another disk
        shutil.copy(file, name)
