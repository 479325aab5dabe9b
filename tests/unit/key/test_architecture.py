"""Architectures: one spelling each, and names that Kubernetes takes."""

from __future__ import annotations

import re

import pytest

from llmengine.architecture import Architecture, InvalidArchitectureError

H100 = "sm_90/NVIDIA-H100-80GB-HBM3"


@pytest.mark.parametrize("text", ["amd64", "arm64", "sm_75", "sm_90", "sm_120", H100, "sm_86/A10"])
def test_an_architecture_is_written_as_it_was_read(text: str) -> None:
    assert str(Architecture.parse(text)) == text


def test_a_gpu_has_a_compute_capability_and_a_name() -> None:
    gpu = Architecture.parse(H100)
    assert gpu.compute_capability == (9, 0)
    assert gpu.device == "NVIDIA-H100-80GB-HBM3"
    assert not gpu.is_cpu
    assert Architecture.parse("sm_120").compute_capability == (12, 0)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("x86_64", id="the kernel's name of a CPU"),
        pytest.param("AMD64", id="capitals"),
        pytest.param("sm_9", id="no minor version"),
        pytest.param("sm_090", id="a second spelling of sm_90"),
        pytest.param("sm_90/", id="an empty device"),
        pytest.param("sm_90/-H100", id="a device that begins with a dash"),
        pytest.param("sm_90\n", id="a line end"),
        pytest.param("sm_90/a b", id="a space"),
        pytest.param("sm_90/" + "x" * 101, id="a device that is too long"),
    ],
)
def test_anything_else_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(InvalidArchitectureError, match="write amd64, arm64, sm_90 or sm_90/DEVICE"):
        Architecture.parse(text)


@pytest.mark.parametrize(
    "text",
    ["amd64", "sm_90", H100, "sm_89/NVIDIA-L4", "sm_80/A.-_-.-_-.-_-.-x", "sm_90/" + "x" * 100],
)
def test_a_slug_is_a_name_and_a_label_value(text: str) -> None:
    slug = Architecture.parse(text).slug
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,19}[a-z0-9])?", slug), slug


def test_slugs_of_devices_with_one_beginning_differ() -> None:
    texts = ("sm_90/NVIDIA-H100-80GB-HBM3", "sm_90/NVIDIA-H100-PCIe", "sm_90/nvidia-h100-pcie")
    assert len({Architecture.parse(text).slug for text in texts}) == 3


def test_cpus_and_gpus_are_sorted_together() -> None:
    texts = [H100, "arm64", "sm_120", "amd64"]
    found = sorted(Architecture.parse(text) for text in texts)
    assert [str(architecture) for architecture in found] == ["amd64", "arm64", "sm_120", H100]
