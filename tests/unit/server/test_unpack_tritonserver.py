"""What the image takes out of the wheel that carries tritonserver."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / "builder_image" / "unpack_tritonserver.py"
SERVER = "pytriton/tritonserver"
WHEEL = {
    f"{SERVER}/bin/tritonserver": "server",
    f"{SERVER}/backends/python/libtriton_python.so": "backend",
    f"{SERVER}/backends/python/triton_python_backend_utils.py": "utils",
    f"{SERVER}/python_backend_stubs/3.11/triton_python_backend_stub": "stub 3.11",
    f"{SERVER}/python_backend_stubs/3.12/triton_python_backend_stub": "stub 3.12",
    f"{SERVER}/caches/local/libtritoncache_local.so": "cache",
    "nvidia_pytriton.libs/libcurl.so": "curl",
    "nvidia_pytriton.libs/libpython3-1.13.so.1.0": "a Python",
    "pytriton/triton.py": "the pytriton package",
}


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("unpack_tritonserver", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "nvidia_pytriton-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in WHEEL.items():
            archive.writestr(name, content)
    return path


def test_the_server_its_libraries_and_the_stub_of_one_python_are_taken(
    script: ModuleType, wheel: Path, tmp_path: Path
) -> None:
    target = tmp_path / "tritonserver"
    script.unpack(wheel, target, "3.11")
    found = {
        str(path.relative_to(target)): path.read_text()
        for path in target.rglob("*")
        if path.is_file()
    }
    assert found == {
        "bin/tritonserver": "server",
        "lib/libcurl.so": "curl",
        "backends/python/libtriton_python.so": "backend",
        "backends/python/triton_python_backend_utils.py": "utils",
        "backends/python/triton_python_backend_stub": "stub 3.11",
    }
    assert (target / "bin/tritonserver").stat().st_mode & 0o111 == 0o111


def test_a_python_without_a_stub_is_refused(
    script: ModuleType, wheel: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"has no Python backend for Python 3\.14"):
        script.unpack(wheel, tmp_path / "target", "3.14")
