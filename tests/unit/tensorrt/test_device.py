"""Only the device itself says what it is, and nothing runs on another one than was meant."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from llmengine.architecture import Architecture, device_name
from llmengine_server.session.device import Gpu, WrongDeviceError, find_gpu, visible

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), "580.159.04", 85_520_809_984)
WANTED = Architecture.parse("sm_90/NVIDIA-H100-80GB-HBM3")


@dataclass
class FakeGpus:
    """What a container was given."""

    gpus: tuple[Gpu, ...] = (H100,)

    def list(self) -> tuple[Gpu, ...]:
        return self.gpus


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("NVIDIA H100 80GB HBM3", id="the device's own name"),
        pytest.param("NVIDIA-H100-80GB-HBM3", id="a label"),
        pytest.param("NVIDIA-H100-80GB-HBM3-SHARED", id="the label of a shared GPU"),
        pytest.param("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", id="the label of a slice"),
        pytest.param("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb-SHARED", id="of a shared slice"),
        pytest.param(" NVIDIA H100 80GB  HBM3 ", id="stray spaces"),
    ],
)
def test_labels_and_devices_name_a_gpu_alike(name: str) -> None:
    assert device_name(name) == "NVIDIA-H100-80GB-HBM3"


def test_a_suffix_that_is_part_of_the_name_stays() -> None:
    assert device_name("NVIDIA-A100-SXM4-40GB") == "NVIDIA-A100-SXM4-40GB"
    assert device_name("NVIDIA-SHARED-X") == "NVIDIA-SHARED-X"


def test_the_right_device_is_found_and_recorded_as_architectures_name_it() -> None:
    device = find_gpu(FakeGpus(), WANTED).record()
    assert device.name == "NVIDIA-H100-80GB-HBM3"
    assert device.compute_capability == "9.0"
    assert device.driver == "580.159.04"
    assert device.memory_bytes == 85_520_809_984


def test_an_engine_for_a_whole_compute_capability_takes_any_of_its_devices() -> None:
    find_gpu(FakeGpus((replace(H100, name="NVIDIA H200"),)), Architecture.parse("sm_90"))


@pytest.mark.parametrize(
    ("gpus", "sentence"),
    [
        pytest.param((), "this pod has no GPU", id="no GPU"),
        pytest.param(
            (replace(H100, name="NVIDIA H200"),),
            r"for sm_90/NVIDIA-H100-80GB-HBM3, but its GPU is a sm_90/NVIDIA-H200: correct",
            id="another device of the same compute capability",
        ),
        pytest.param(
            (replace(H100, compute_capability=(8, 9)),),
            r"its GPU is a sm_89/NVIDIA-H100",
            id="another compute capability",
        ),
        pytest.param((replace(H100, divided=True),), r"is divided \(MIG\)", id="a slice"),
    ],
)
def test_any_other_device_is_refused(gpus: tuple[Gpu, ...], sentence: str) -> None:
    with pytest.raises(WrongDeviceError, match=sentence):
        find_gpu(FakeGpus(gpus), WANTED)


@pytest.mark.parametrize(
    ("named", "seen"),
    [
        pytest.param(None, [0, 1, 2], id="all where nothing is named"),
        pytest.param("1", [1], id="an index"),
        pytest.param("2, 0", [2, 0], id="in the order of their names"),
        pytest.param("GPU-b", [1], id="the beginning of a UUID"),
        pytest.param("0,9,1", [0], id="up to the first that is none"),
        pytest.param("GPU-", [], id="a beginning of several names none"),
        pytest.param("", [], id="none of them"),
        pytest.param("-1", [], id="a negative index is none"),
    ],
)
def test_the_gpus_here_are_those_that_cuda_uses(named: str | None, seen: list[int]) -> None:
    assert visible(("GPU-a1", "GPU-b2", "GPU-c3"), named) == seen
