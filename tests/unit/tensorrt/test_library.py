"""The last step of the image's build says which TensorRT is in it, or what is wrong with it."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from llmengine_server.session import EngineError, tensorrt_library


def test_a_library_of_the_version_of_its_module_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = SimpleNamespace(__version__="10.6.0")
    monkeypatch.setattr(tensorrt_library, "load_tensorrt", lambda: here)
    assert tensorrt_library.main() == 0
    assert capsys.readouterr().out == "TensorRT 10.6.0\n"


def test_another_library_ends_the_build_of_the_image_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = SimpleNamespace(getInferLibVersion=lambda: 100600)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)

    def load() -> None:
        tensorrt_library._compare_with_library(SimpleNamespace(__version__="10.7.0"))

    monkeypatch.setattr(tensorrt_library, "load_tensorrt", load)
    assert tensorrt_library.main() == 1
    assert capsys.readouterr().err == (
        "error: TensorRT's Python module is of version 10.7.0, its library of version 10.6.0:"
        " give the image both in one version\n"
    )


@pytest.mark.parametrize("version", ["11.2.1.2", "10.13.3.9.post1"])
def test_a_build_number_is_no_part_of_the_librarys_version(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = {"11.2.1.2": 110201, "10.13.3.9.post1": 101303}[version]
    library = SimpleNamespace(getInferLibVersion=lambda: number)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    tensorrt_library._compare_with_library(SimpleNamespace(__version__=version))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(EngineError, match=r"libnvinfer\.so\.11 cannot be loaded"):
        tensorrt_library._compare_with_library(SimpleNamespace(__version__="11.2.1.2"))
