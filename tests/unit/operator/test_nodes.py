"""What a node's labels say of its GPUs, and what the operator remembers of nodes."""

from __future__ import annotations

from typing import Any

import pytest

from llmengine_operator.labels import GpuLabel
from llmengine_operator.node_book import NodeBook
from llmengine_operator.observation import Gpu
from llmengine_operator.parse import parse_node, parse_nodes
from tests.unit.operator.gpu_nodes import H100, L4, gpu_node, labels_of, node_object

MIG = "nvidia.com/mig-1g.10gb"


def gpu(**more: Any) -> Gpu:
    return Gpu(**{"compute_capability": (9, 0), "device": H100, "driver": (550, 54, 15), **more})


@pytest.mark.parametrize(
    ("product", "more", "expected"),
    [
        pytest.param(H100, {}, gpu(), id="a whole GPU"),
        pytest.param(f"{H100}-SHARED", {}, gpu(), id="a GPU that pods share is the same GPU"),
        pytest.param(
            f"{H100}-MIG-1g.10gb",
            {"labels": {GpuLabel.SLICES: "1"}},
            gpu(slices="1g.10gb"),
            id="slices that are offered as GPUs",
        ),
        pytest.param(
            f"{H100}-MIG-1g.10gb-SHARED",
            {},
            gpu(slices="1g.10gb-SHARED"),
            id="slices that pods share",
        ),
        pytest.param(
            H100,
            {"allocatable": {"nvidia.com/gpu": "0", MIG: "7", "nvidia.com/mig-2g.20gb": "0"}},
            gpu(slices="1g.10gb"),
            id="slices beside no whole GPU",
        ),
        pytest.param(
            H100,
            {"allocatable": {"nvidia.com/gpu": "1", MIG: "7"}},
            gpu(),
            id="slices beside a whole GPU",
        ),
        pytest.param(H100, {"driver": "535.104.05"}, gpu(driver=(535, 104, 5)), id="leading zeros"),
        pytest.param(
            H100,
            {"labels": {f"nvidia.com/cuda.driver-version.{x}": "" for x in ("major", "minor")}},
            gpu(driver=None),
            id="no driver in the labels",
        ),
        pytest.param(
            H100,
            {
                "labels": {
                    "nvidia.com/cuda.driver-version.major": "",
                    "nvidia.com/cuda.driver.major": "470",
                    "nvidia.com/cuda.driver.minor": "82",
                    "nvidia.com/cuda.driver.rev": "01",
                }
            },
            gpu(driver=(470, 82, 1)),
            id="the driver in the labels of old releases",
        ),
        pytest.param(L4, {"labels": {GpuLabel.MAJOR: ""}}, None, id="no compute capability"),
        pytest.param(L4, {"labels": {GpuLabel.MAJOR: "x"}}, None, id="no number"),
        pytest.param(L4, {"labels": {GpuLabel.PRODUCT: ""}}, None, id="no product"),
    ],
)
def test_the_labels_of_a_node_say_what_its_gpus_are(
    product: str, more: dict[str, Any], expected: Gpu | None
) -> None:
    node = gpu_node("n", product, **more)
    assert node.gpu == expected
    assert node.offers_gpus


@pytest.mark.parametrize(
    ("allocatable", "offers"),
    [
        pytest.param({"nvidia.com/gpu": "2"}, True, id="GPUs that nobody labelled"),
        pytest.param({MIG: "2"}, True, id="slices that nobody labelled"),
        pytest.param({"nvidia.com/gpu": "0", MIG: "0"}, False, id="a plugin that was taken off"),
        pytest.param({}, False, id="a CPU node"),
    ],
)
def test_a_node_that_nobody_labelled_has_gpus_if_it_offers_them(
    allocatable: dict[str, str], offers: bool
) -> None:
    node = parse_node(node_object("n", {}, allocatable=allocatable))
    assert node is not None
    assert (node.gpu, node.offers_gpus) == (None, offers)


def test_a_labelled_node_has_gpus_while_its_plugin_is_started_again() -> None:
    assert gpu_node("n", L4, labels={GpuLabel.PRESENT: ""}, allocatable={}).offers_gpus


def test_a_node_of_a_cpu_that_nothing_runs_on_is_none() -> None:
    assert parse_nodes([node_object("n", {}, arch="s390x")]) == ()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            {"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]},
            id="a node that is not ready for a minute",
        ),
        pytest.param({"labels": {GpuLabel.TIMESTAMP: "1721229911"}}, id="a label's time"),
    ],
)
def test_what_changes_often_changes_no_node(change: dict[str, Any]) -> None:
    assert gpu_node("n", L4, **change) == gpu_node("n", L4)


class Listed:
    """What the API server lists."""

    def __init__(self, *names: str) -> None:
        self.objects = [node_object(name, labels_of(L4)) for name in names]

    def __call__(self) -> list[dict[str, Any]]:
        return self.objects


def names(book: NodeBook) -> list[str]:
    return [node.name for node in book.all()]


def test_nodes_are_those_of_the_list_and_then_those_of_the_watch() -> None:
    book = NodeBook()
    book.load(Listed("b", "a"))
    assert names(book) == ["a", "b"]
    book.tell("c", node_object("c", labels_of(H100)))
    book.tell("a", None)
    assert names(book) == ["b", "c"]


def test_a_change_that_concerns_nobody_is_told_from_one_that_does() -> None:
    book = NodeBook()
    book.load(Listed("a"))
    before, after = book.tell("a", node_object("a", labels_of(L4)))
    assert before == after
    before, after = book.tell("a", node_object("a", labels_of(H100)))
    assert before is not None and before.gpu is not None and before.gpu.device == L4
    assert after is not None and after.gpu is not None and after.gpu.device == H100


def test_what_the_watch_tells_during_a_list_is_newer_than_the_list() -> None:
    book = NodeBook()
    book.load(Listed("gone", "changed"))

    def meanwhile() -> list[dict[str, Any]]:
        book.tell("gone", None)
        book.tell("changed", node_object("changed", labels_of(H100)))
        book.tell("new", node_object("new", labels_of(L4)))
        return Listed("gone", "changed", "other")()

    book.load(meanwhile)
    assert names(book) == ["changed", "new", "other"]
    changed = book.all()[0].gpu
    assert changed is not None
    assert changed.device == H100


def test_a_list_forgets_what_a_watch_told_long_ago() -> None:
    book = NodeBook()
    book.tell("old", node_object("old", labels_of(L4)))
    book.load(Listed("a"))
    assert names(book) == ["a"]
