"""The kernels of the device, compiled for this CPU, do what the fake device does in numpy."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from llmengine_server.session import Choice
from llmengine_server.session.cuda import Argument
from llmengine_server.session.tensorrt import TensorRtSession
from tests.contract.cuda.library import compile_kernels
from tests.models.tiny import TinyModel
from tests.unit.tensorrt.fake_driver import FakeDriver
from tests.unit.tensorrt.fake_engine import fake_engine
from tests.unit.tensorrt.test_session import CACHE, LIMITS, LONG, OTHER, SHORT

KERNELS = ("survey", "choose", "move_rows", "move_state", "count")
ALIGNMENT = 256


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_kernels("cuda_kernels.cu", KERNELS, tmp_path_factory.mktemp("kernels"))


class CpuDriver(FakeDriver):
    """The fake device with the real kernels: its addresses are those of this process."""

    def __init__(self, kernels: ctypes.CDLL) -> None:
        super().__init__()
        self._kernels = kernels

    def allocate(self, size: int) -> int:
        block = np.zeros(size + ALIGNMENT, np.uint8)
        start = -block.ctypes.data % ALIGNMENT
        address = block.ctypes.data + start
        self._blocks[address] = block[start : start + size]
        return address

    def launch(
        self, kernel: str, grid: tuple[int, int, int], threads: int, *arguments: Argument
    ) -> None:
        run = getattr(self._kernels, f"run_{kernel}")
        # As many as a kernel needs to have several warps: each is a thread of this machine.
        threads = min(threads, 128)
        pointers = (ctypes.c_void_p * len(arguments))(
            *(ctypes.addressof(argument) for argument in arguments)
        )
        # `arguments` are kept as long as the work may be asked for again.
        self.enqueue(lambda: run(*grid, threads, pointers) if arguments else None)


def tokens(driver: FakeDriver, model: Path) -> list[list[int]]:
    """What a session chooses: greedy, drawn and penalised, over a growing cache, and moved."""
    engine = fake_engine(model, driver, CACHE, LIMITS)
    session = TensorRtSession(
        driver, engine, cache=CACHE, limits=LIMITS, vocabulary=engine.vocabulary
    )
    choices = [
        Choice(),
        Choice(temperature=0.9, top_k=20, number=lambda length: length * 0.377 % 1),
        Choice(temperature=1.2, top_p=0.8, number=lambda length: length * 0.591 % 1),
        Choice(repetition_penalty=1.4, presence_penalty=0.3, seen=tuple(OTHER)),
        Choice(temperature=0.7, banned=(3, 4, 200), banned_until=900, number=lambda _: 0.5),
    ]
    prompts = [LONG[:62], SHORT, OTHER, OTHER, SHORT[:3]]
    chosen: list[list[int]] = []
    for slot, (prompt, choice) in enumerate(zip(prompts, choices, strict=True)):
        (row,) = session.start_prefill(slot, prompt, 0, choice).collect()
        chosen.append([_token(row.chosen())])
    pasts = [len(prompt) for prompt in prompts]
    for _ in range(3):
        rows = session.start_decode(None, pasts).collect()
        for own, row in zip(chosen, rows, strict=True):
            own.append(_token(row.chosen()))
        pasts = [past + 1 for past in pasts]
    session.move(4, 0, pasts[4])
    (row, *_) = session.start_decode(None, [pasts[4], *pasts[1:4]]).collect()
    chosen.append([_token(row.chosen())])
    session.close()
    return chosen


def _token(chosen: int | None) -> int:
    assert chosen is not None
    return chosen


def test_a_session_chooses_the_same_tokens_with_the_real_kernels(
    kernels: ctypes.CDLL, tmp_path: Path
) -> None:
    model = TinyModel(family="qwen2", max_position_embeddings=1024).write(tmp_path / "tiny")
    assert tokens(CpuDriver(kernels), model) == tokens(FakeDriver(), model)
