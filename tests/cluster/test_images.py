"""An image is named by what its Dockerfile copies, and keeps no trace of the build."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from tests.cluster import dockerfile, images
from tests.cluster.paths import ClusterError

DOCKERFILE = """\
ARG BASE_IMAGE
FROM ${BASE_IMAGE} AS build
# COPY ignored /
COPY --chown=1:1 requirements.lock \\
     pyproject.toml /src/
RUN --mount=type=bind,source=wheels,target=/wheels --mount=type=cache,target=/c true
COPY ["a b.txt", "/x"]
FROM build AS final
COPY --from=build /src /src
copy package/*.py /app/
"""


def test_sources_are_what_copy_add_and_bind_mounts_take() -> None:
    taken = ["requirements.lock", "pyproject.toml", "wheels", "a b.txt", "package/*.py"]
    assert dockerfile.sources(DOCKERFILE) == taken


def test_a_variable_source_is_refused() -> None:
    with pytest.raises(ClusterError, match="without variables"):
        dockerfile.sources("COPY $WHAT /x")


def test_a_source_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("COPY gone /x")
    with pytest.raises(ClusterError, match='copies "gone"'):
        dockerfile.files(tmp_path / "Dockerfile", tmp_path)


def test_only_copied_files_change_the_digest(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text("COPY app /app")
    app = tmp_path / "app"
    (app / "__pycache__").mkdir(parents=True)
    (app / "main.py").write_text("1")

    def digest() -> str:
        return dockerfile.digest(file, tmp_path, dockerfile.files(file, tmp_path))

    first = digest()
    (tmp_path / "README.md").write_text("x")
    (app / "__pycache__" / "main.pyc").write_text("x")
    assert digest() == first
    (app / "main.py").chmod(0o755)
    executable = digest()
    assert executable != first
    (app / "main.py").write_text("2")
    assert digest() not in (first, executable)


@pytest.mark.cluster
def test_a_build_leaves_no_trace_of_the_machine_in_the_image(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("print('app')")
    file = tmp_path / "Dockerfile"
    file.write_text(
        "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nARG WHAT\nCOPY app.py /app/\n"
        "RUN python3 -m venv /venv && /venv/bin/pip install six && echo $WHAT >/app/what\n"
        "ENV APP=1\nUSER 65532\n"
    )
    image = images.build(file, None, tmp_path, "selftest", build_args={"WHAT": "that"})
    again = images.build(file, None, tmp_path, "selftest", build_args={"WHAT": "that"})
    assert again == image
    with tarfile.open(image.archive) as archive:
        (manifest,) = json.load(_member(archive, "manifest.json"))
        config = json.load(_member(archive, manifest["Config"]))["config"]
        names = []
        for layer in manifest["Layers"][1:]:
            with tarfile.open(fileobj=_member(archive, layer)) as content:
                names += content.getnames()
    assert manifest["RepoTags"] == [image.reference]
    assert config["User"] == "65532"
    assert {variable.partition("=")[0] for variable in config["Env"]} <= {"APP", "PATH", "WHAT"}
    assert {"app/app.py", "app/what"} <= set(names)
    assert not [name for name in names if "xdg" in name or ".cache" in name or "pip.conf" in name]


def _member(archive: tarfile.TarFile, name: str) -> tarfile.ExFileObject:
    file = archive.extractfile(name)
    assert isinstance(file, tarfile.ExFileObject)
    return file
