"""Which architectures an engine is for: which nodes count, since when, and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from llmengine.api.v1alpha1 import EngineState, EngineStatus, LLMEngineStatus, ServingStatus
from llmengine_operator.architectures import Candidate, Landscape, choose
from llmengine_operator.conditions import rfc3339
from llmengine_operator.config import Config
from llmengine_operator.observation import Node, Runtime
from tests.unit.operator.gpu_nodes import A10, H100, H100_PCIE, L4, T4, gpu_node
from tests.unit.operator.world import CONFIG, NOW, make_engine, make_node, make_runtime, seconds

HOUR = timedelta(hours=1)
ANY_DEVICE: dict[str, Any] = {"engine": {"portability": "ComputeCapability"}}
MIXED = [
    gpu_node("a", H100),
    gpu_node("b", L4),
    gpu_node("c", A10),
    gpu_node("d", T4),
    make_node("cpu"),
]


def gpu_runtime(**spec: Any) -> Runtime:
    gpu = {"backend": "tensorrt", "version": "10.6.0", "accelerator": "nvidia"}
    return make_runtime(**{**gpu, **spec})


TENSORRT = gpu_runtime()


def row(architecture: str, **fields: Any) -> EngineStatus:
    return EngineStatus(
        key="k" * 64,
        architecture=architecture,
        state=EngineState.CACHED,
        **{"node_count": 1, **fields},
    )


def serving(architecture: str, ready: int = 1) -> ServingStatus:
    return ServingStatus(
        architecture=architecture,
        key="k" * 64,
        manifest_digest="",
        image="",
        replicas=1,
        ready_replicas=ready,
    )


def status(*rows: EngineStatus, serves: Sequence[ServingStatus] = ()) -> LLMEngineStatus:
    """Of an engine whose spec was not edited since."""
    return LLMEngineStatus(observed_generation=1, engines=list(rows), serving=list(serves))


def chosen(
    nodes: Sequence[Node],
    *,
    runtime: Runtime = TENSORRT,
    config: Config = CONFIG,
    now: datetime = NOW,
    **engine: Any,
) -> dict[str, Candidate]:
    made = make_engine(**engine)
    landscape = Landscape(made, runtime, nodes, config)
    return {str(c.architecture): c for c in choose(landscape, made, now)}


def skipped(nodes: Sequence[Node], runtime: Runtime = TENSORRT, **engine: Any) -> dict[str, str]:
    landscape = Landscape(make_engine(**engine), runtime, nodes, CONFIG)
    return {str(s.reason): s.message for s in landscape.skipped()}


H, L, A, T = f"sm_90/{H100}", f"sm_89/{L4}", f"sm_86/{A10}", f"sm_75/{T4}"


def test_a_gpu_engine_is_for_every_kind_of_gpu_and_for_no_cpu() -> None:
    found = chosen([*MIXED, gpu_node("e", L4)])
    assert {name: c.nodes for name, c in found.items()} == {H: 1, L: 2, A: 1, T: 1}
    assert found[L].builders == ("b", "e")


def test_a_cpu_engine_is_for_the_cpus_of_gpu_nodes_too() -> None:
    found = chosen(MIXED, runtime=make_runtime())
    assert {name: c.nodes for name, c in found.items()} == {"amd64": 5}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param({}, {H, f"sm_90/{H100_PCIE}"}, id="Device: an engine for each product"),
        pytest.param(ANY_DEVICE, {"sm_90"}, id="ComputeCapability: one for both"),
    ],
)
def test_products_of_one_compute_capability(spec: dict[str, Any], expected: set[str]) -> None:
    found = chosen([gpu_node("a", H100), gpu_node("b", H100_PCIE)], **spec)
    assert found.keys() == expected
    assert sum(c.nodes for c in found.values()) == 2


def test_an_engine_for_every_product_is_not_for_arm64_hosts() -> None:
    nodes = [gpu_node("a", H100), gpu_node("grace", "NVIDIA-GH200", capability="9.0", arch="arm64")]
    assert chosen(nodes, **ANY_DEVICE)["sm_90"].nodes == 1
    assert "node grace has arm64 CPUs" in skipped(nodes, **ANY_DEVICE)["HostUnsupported"]
    assert "sm_90/NVIDIA-GH200" in chosen(nodes)


def test_a_shared_gpu_is_the_same_architecture_as_a_whole_one() -> None:
    assert chosen([gpu_node("a", L4), gpu_node("b", f"{L4}-SHARED")])[L].nodes == 2


TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
POOL = {"key": "pool", "value": "gpu", "effect": "NoSchedule"}
TOLERANT = {"tolerations": [{"key": "pool", "operator": "Exists"}]}


@pytest.mark.parametrize(
    ("node", "more", "nodes", "builders"),
    [
        pytest.param({"taints": [TAINT]}, {}, 1, 1, id="the taint of GPU nodes is tolerated"),
        pytest.param({"taints": [POOL]}, {}, 0, 0, id="another taint is not"),
        pytest.param(
            {"taints": [POOL]},
            {"runtime": gpu_runtime(podDefaults=TOLERANT)},
            1,
            1,
            id="the runtime tolerates",
        ),
        pytest.param({"taints": [POOL]}, {"serving": TOLERANT}, 1, 0, id="serving tolerates"),
        pytest.param({"taints": [POOL]}, {"build": TOLERANT}, 0, 0, id="only the build does"),
        pytest.param(
            {}, {"build": {"nodeSelector": {"a": "b"}}}, 1, 0, id="the build wants another pool"
        ),
        pytest.param(
            {"labels": {"a": "b"}}, {"serving": {"nodeSelector": {"a": "b"}}}, 1, 1, id="a pool"
        ),
    ],
)
def test_nodes_are_those_that_selectors_and_tolerations_allow(
    node: dict[str, Any], more: dict[str, Any], nodes: int, builders: int
) -> None:
    found = chosen([gpu_node("a", L4, **node)], **more).get(L)
    assert (found.nodes if found else 0, len(found.builders) if found else 0) == (nodes, builders)


@pytest.mark.parametrize(
    ("node", "reason", "words"),
    [
        pytest.param(
            gpu_node("n", f"{H100}-MIG-1g.10gb"),
            "MIGUnsupported",
            "node n has GPUs that MIG divides (1g.10gb), and engines take whole ones: switch MIG",
            id="slices",
        ),
        pytest.param(
            gpu_node("n", H100, labels={"nvidia.com/gpu.product": ""}),
            "GPUUnlabelled",
            "node n has GPUs, but not the labels nvidia.com/gpu.product and"
            " nvidia.com/gpu.compute.*: run NVIDIA's GPU Feature Discovery there",
            id="no labels",
        ),
        pytest.param(
            gpu_node("n", H100, driver="535.104.05"),
            "DriverTooOld",
            'node n has NVIDIA driver 535.104.05, and EngineRuntime "onnxruntime-1.32.0" needs'
            " 550.54: update the driver, or use another runtime",
            id="an old driver",
        ),
    ],
)
def test_a_node_that_cannot_run_the_engine_is_named_with_the_next_step(
    node: Node, reason: str, words: str
) -> None:
    strict = gpu_runtime(minimumDriver="550.54")
    assert chosen([node], runtime=strict) == {}
    assert skipped([node, gpu_node("fine", L4)], strict).keys() == {reason}
    assert words in skipped([node], strict)[reason]


def test_many_such_nodes_are_counted_and_four_of_them_named() -> None:
    nodes = [gpu_node(f"n{i}", f"{H100}-MIG-1g.10gb") for i in range(9)]
    assert "nodes n0, n1, n2, n3 and 5 more have GPUs" in skipped(nodes)["MIGUnsupported"]


def test_what_the_engines_selectors_leave_out_is_not_worth_a_word() -> None:
    node = gpu_node("n", f"{H100}-MIG-1g.10gb")
    assert skipped([node], serving={"nodeSelector": {"pool": "x"}}) == {}
    assert skipped([node], make_runtime()) == {}


@pytest.mark.parametrize(
    ("driver", "minimum", "enough"),
    [
        pytest.param("550.54.15", "550", True, id="the major version"),
        pytest.param("550.54.15", "550.54.15", True, id="exactly this one"),
        pytest.param("550.54.15", "550.54.16", False, id="an older revision"),
        pytest.param("550.54.15", "550.100", False, id="an older minor, compared as a number"),
        pytest.param("1000.1.1", "999", True, id="a major of four digits"),
    ],
)
def test_drivers_are_compared_as_numbers(driver: str, minimum: str, enough: bool) -> None:
    found = chosen([gpu_node("n", L4, driver=driver)], runtime=gpu_runtime(minimumDriver=minimum))
    assert bool(found) == enough


# Coming.


def test_a_new_engine_takes_at_once_what_has_been_there_for_two_minutes() -> None:
    found = chosen([gpu_node("a", L4), gpu_node("b", T4, created=NOW - seconds(30))])
    assert found[L].seen is None
    assert found[T].seen == NOW - seconds(30)


def test_an_edited_engine_does_so_too() -> None:
    before = status(row(L)).model_copy(update={"observed_generation": 0})
    assert chosen([gpu_node("a", T4)], status=before)[T].seen is None


@pytest.mark.parametrize(
    ("ago", "settles"),
    [
        pytest.param(119, True, id="a second before two minutes"),
        pytest.param(120, False, id="after two minutes"),
    ],
)
def test_a_new_architecture_counts_after_two_minutes_of_being_seen(ago: int, settles: bool) -> None:
    seen = rfc3339(NOW - seconds(ago))
    found = chosen([gpu_node("a", T4)], status=status(row(T, seen_time=seen)))
    assert (found[T].seen is not None) == settles


def test_one_that_is_seen_for_the_first_time_waits_however_old_its_node_is() -> None:
    assert chosen([gpu_node("a", T4)], status=status(row(L)))[T].seen == NOW


def test_one_that_goes_while_it_settles_leaves_nothing_behind() -> None:
    rows = status(row(T, seen_time=rfc3339(NOW - seconds(60))))
    assert chosen([], status=rows) == {}


def test_cpus_need_not_settle_for_their_label_is_the_kubelets() -> None:
    node = make_node("n", "arm64")
    found = chosen([node], runtime=make_runtime(), status=status(row("amd64")))
    assert found["arm64"].seen is None


# Going.


def test_what_has_no_node_stays_and_its_time_begins() -> None:
    found = chosen([gpu_node("a", L4)], status=status(row(L), row(T)))
    assert (found[T].nodes, found[T].gone) == (0, NOW)
    assert found[L].gone is None


@pytest.mark.parametrize(
    ("gone", "ready", "stays"),
    [
        pytest.param(23 * HOUR, 0, True, id="for less than 24 hours"),
        pytest.param(24 * HOUR, 0, False, id="for 24 hours"),
        pytest.param(24 * HOUR, 1, True, id="for 24 hours, while its pods are ready"),
    ],
)
def test_what_is_gone_is_given_up_after_a_day_without_node_and_ready_pod(
    gone: timedelta, ready: int, stays: bool
) -> None:
    before = status(
        row(L), row(T, gone_time=rfc3339(NOW - gone)), serves=[serving(L), serving(T, ready)]
    )
    found = chosen([gpu_node("a", L4)], status=before)
    assert (T in found) == stays
    if ready:
        assert found[T].gone is None


def test_what_comes_back_has_never_been_gone() -> None:
    before = status(row(T, gone_time=rfc3339(NOW - 23 * HOUR)))
    found = chosen([gpu_node("a", T4)], status=before)
    assert (found[T].gone, found[T].seen) == (None, None)


def test_when_all_are_gone_all_stay() -> None:
    long = rfc3339(NOW - 48 * HOUR)
    assert chosen([], status=status(row(L, gone_time=long), row(T, gone_time=long))).keys() == {
        L,
        T,
    }


def test_what_was_required_and_never_had_a_node_goes_with_the_requirement() -> None:
    before = status(row(L), row(T, node_count=0)).model_copy(update={"observed_generation": 0})
    assert chosen([gpu_node("a", L4)], status=before).keys() == {L}


def test_a_new_selector_leaves_out_at_once_what_is_there_and_not_selected() -> None:
    before = status(row(L), row(T), row(A)).model_copy(update={"observed_generation": 0})
    nodes = [gpu_node("a", L4, labels={"pool": "x"}), gpu_node("b", T4)]
    found = chosen(nodes, status=before, serving={"nodeSelector": {"pool": "x"}})
    assert found.keys() == {L, A}


def test_another_portability_or_runtime_is_for_other_architectures() -> None:
    before = status(row(H), serves=[serving(H)])
    assert chosen([gpu_node("a", H100)], status=before, **ANY_DEVICE).keys() == {"sm_90"}
    assert chosen(MIXED, status=before, runtime=make_runtime()).keys() == {"amd64"}


def test_what_serves_without_a_row_is_on_its_way_out() -> None:
    before = status(row(L), serves=[serving(L), serving(T)])
    assert chosen([gpu_node("a", L4)], status=before).keys() == {L}
    assert chosen([], status=status(serves=[serving(L), serving(T)])).keys() == {L, T}


# By name.


def test_what_the_spec_lists_is_required_and_nothing_else_counts() -> None:
    found = chosen(MIXED, architectures=[H, "sm_100/NVIDIA-B200"])
    assert found.keys() == {H, "sm_100/NVIDIA-B200"}
    assert all(c.required for c in found.values())
    assert found[H].lack is None


@pytest.mark.parametrize(
    ("nodes", "name", "engine", "reason", "words"),
    [
        pytest.param([], L, {}, "NoNode", "no node of the cluster is sm_89/NVIDIA-L4", id="none"),
        pytest.param(
            [gpu_node("n", L4)],
            L,
            {"build": {"nodeSelector": {"a": "b"}}},
            "NoNode",
            "node n is sm_89/NVIDIA-L4, but spec.build.nodeSelector and tolerations",
            id="none that may build",
        ),
        pytest.param(
            [gpu_node("n", L4, taints=[POOL])],
            L,
            {},
            "NoNode",
            "node n is sm_89/NVIDIA-L4, but spec.serving.nodeSelector and tolerations",
            id="none that may do anything",
        ),
        pytest.param(
            [gpu_node("n", f"{H100}-MIG-1g.10gb")],
            H,
            {},
            "MIGUnsupported",
            "node n has GPUs that MIG divides",
            id="only slices",
        ),
        pytest.param(
            [gpu_node("n", f"{H100}-MIG-1g.10gb")],
            f"{H}-MIG-1g.10gb",
            {},
            "MIGUnsupported",
            "slices of a GPU are not supported: name the whole GPU",
            id="a slice by its name",
        ),
    ],
)
def test_a_required_architecture_that_nothing_can_build_says_why(
    nodes: list[Node], name: str, engine: dict[str, Any], reason: str, words: str
) -> None:
    lack = chosen(nodes, architectures=[name], **engine)[name].lack
    assert lack is not None
    assert lack.reason == reason
    assert words in lack.message


# Pools without a node.


def pools(*expected: dict[str, Any]) -> Config:
    return CONFIG.model_validate(
        {**CONFIG.model_dump(), "architectures": {"expected": list(expected)}}
    )


def test_a_pool_that_is_scaled_to_zero_counts_and_may_be_built_for() -> None:
    config = pools({"architecture": L, "labels": {"pool": "l4"}})
    found = chosen([gpu_node("a", T4)], config=config)
    assert found.keys() == {L, T}
    assert (found[L].nodes, found[L].expected, found[L].lack) == (0, True, None)
    assert chosen([], config=config, architectures=[L])[L].lack is None


@pytest.mark.parametrize(
    ("pool", "more"),
    [
        pytest.param(
            {"architecture": L}, {"serving": {"nodeSelector": {"pool": "x"}}}, id="a selector"
        ),
        pytest.param(
            {"architecture": L, "taints": [{"key": "x"}]}, {}, id="a taint that is not tolerated"
        ),
        pytest.param({"architecture": "arm64"}, {}, id="CPUs, for a GPU engine"),
        pytest.param({"architecture": L}, {"runtime": make_runtime()}, id="GPUs, for a CPU engine"),
    ],
)
def test_a_pool_counts_for_those_only_whom_its_nodes_would_take(
    pool: dict[str, Any], more: dict[str, Any]
) -> None:
    assert L not in chosen([gpu_node("a", T4)], config=pools(pool), **more)


def test_the_first_node_of_such_a_pool_need_not_settle() -> None:
    config = pools({"architecture": L})
    found = chosen([gpu_node("a", L4)], config=config, status=status(row(L, node_count=0)))
    assert found[L].seen is None


def test_a_pool_for_every_product_is_of_the_compute_capability() -> None:
    assert chosen([], config=pools({"architecture": L}), **ANY_DEVICE).keys() == {"sm_89"}


@pytest.mark.parametrize("name", ["sm_89", "h100"])
def test_a_pool_names_its_device(name: str) -> None:
    with pytest.raises(ValueError, match=r"names no device|is not an architecture"):
        pools({"architecture": name})
