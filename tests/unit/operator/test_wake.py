"""Whom a change of a node wakes."""

from __future__ import annotations

from typing import Any

import pytest

from llmengine.api.v1alpha1 import Accelerator
from llmengine_operator.build_queue import BuildQueue
from llmengine_operator.node_book import NodeBook
from llmengine_operator.reconciler import Key, Known, Wake
from tests.unit.operator.gpu_nodes import H100, L4, labels_of, node_object
from tests.unit.operator.job_kube import JobKube
from tests.unit.operator.world import CONFIG

CPU, GPU, NEW = ("team", "cpu"), ("team", "gpu"), ("team", "new")
ENGINES = {
    CPU: Known("onnxruntime", Accelerator.CPU),
    GPU: Known("tensorrt", Accelerator.NVIDIA),
    NEW: Known("tensorrt", None),
}
PLAIN = node_object("plain", {}, allocatable={})
WITH_GPU = node_object("with-gpu", labels_of(L4))


@pytest.mark.parametrize(
    ("name", "obj", "woken"),
    [
        pytest.param("other", node_object("other", labels_of(H100)), {CPU, GPU, NEW}, id="a GPU"),
        pytest.param(
            "other",
            node_object("other", {}, allocatable={}),
            {CPU, NEW},
            id="CPUs: who is still being looked at may be for them",
        ),
        pytest.param("with-gpu", None, {CPU, GPU, NEW}, id="a GPU that goes"),
        pytest.param(
            "with-gpu",
            node_object("with-gpu", labels_of(L4, driver="570.00.01")),
            {CPU, GPU, NEW},
            id="another driver",
        ),
        pytest.param("with-gpu", WITH_GPU, set(), id="nothing that matters"),
        pytest.param(
            "plain",
            {**PLAIN, "status": {"conditions": [{"type": "Ready", "status": "False"}]}},
            set(),
            id="a heartbeat",
        ),
        pytest.param("never-seen", None, set(), id="the end of what nobody knew"),
    ],
)
def test_a_node_wakes_those_whom_it_may_concern(
    name: str, obj: dict[str, Any] | None, woken: set[Key]
) -> None:
    nodes = NodeBook()
    nodes.load(lambda: [PLAIN, WITH_GPU])
    heard: list[Key] = []
    wake = Wake(BuildQueue(JobKube(), CONFIG), heard.append, nodes, lambda: ENGINES)
    wake.node(name, obj)
    assert set(heard) == woken
