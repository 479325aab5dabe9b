"""Our code against the real TensorRT 10 and 11, as far as that goes without a GPU.

TensorRT-RTX is the one that builds on a CPU. Its module is that of TensorRT 11 in all that we call,
but it takes no plugins: our layer of attention is replaced by one that only has its shapes.

Not of `make test`, for it fetches 1.8 GB: see CONTRIBUTING.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from llmengine.api.v1alpha1 import DType
from llmengine.artifact import Cache, Limits
from llmengine.requests import BuildReason
from llmengine_builder.backends import tensorrt_compiler
from llmengine_builder.backends.tensorrt_compiler import CompilationError, Order
from llmengine_builder.backends.tensorrt_process import run_compiler
from llmengine_builder.backends.tensorrt_shapes import profiles
from llmengine_builder.backends.tensorrt_weights import prepared
from llmengine_builder.errors import WrongDeviceError
from llmengine_builder.graph import Decoder, read_model
from llmengine_server.session.tensorrt_library import LIBRARIES_VARIABLE
from tests.cluster.paths import REPOSITORY
from tests.gpu.nvidia import BINDINGS, NEWEST, VERSION, libraries, modules
from tests.models.tiny import Family, TinyModel

RTX = ("tensorrt_rtx_cu13_libs==1.7.1.116", "tensorrt_rtx_cu13_bindings==1.7.1.116")
NVML = "nvidia-ml-py==13.615.71"
VERSIONS = pytest.mark.parametrize("version", [VERSION, NEWEST])
NO_GPU = pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is an NVIDIA driver")
LIMITS = Limits(max_batch_size=32, max_sequence_length=256, max_batch_tokens=64)

# What is called on a GPU only: no object of these classes can be had here.
CALLED = """
Builder.build_serialized_network Builder.create_builder_config Builder.create_network
Builder.create_optimization_profile IBuilderConfig.add_optimization_profile
IBuilderConfig.clear_flag IBuilderConfig.create_timing_cache
IBuilderConfig.hardware_compatibility_level IBuilderConfig.progress_monitor
IBuilderConfig.set_timing_cache IOptimizationProfile.set_shape ITimingCache.serialize
BuilderFlag.TF32 NetworkDefinitionCreationFlag.STRONGLY_TYPED
OnnxParser.parse OnnxParser.get_error OnnxParser.num_errors
IProgressMonitor.phase_start IProgressMonitor.step_complete IProgressMonitor.phase_finish
Runtime.deserialize_cuda_engine ICudaEngine.create_execution_context
ICudaEngine.device_memory_size_v2 ExecutionContextAllocationStrategy.USER_MANAGED
IExecutionContext.set_device_memory IExecutionContext.set_optimization_profile_async
IExecutionContext.set_input_shape IExecutionContext.set_tensor_address
IExecutionContext.execute_async_v3
DynamicPluginTensorDesc.desc PluginTensorDesc.dims PluginTensorDesc.format PluginTensorDesc.type
DimsExprs IExprBuilder.constant TensorFormat.LINEAR IPluginV3OneRuntime.enqueue
IPluginV3OneBuild.get_output_shapes IPluginV3OneBuild.supports_format_combination
IPluginV3OneRuntime.attach_to_context
"""
REGISTERED = """
import json, operator, sys
import numpy as np
from llmengine_server.session import tensorrt_attention as ours
from llmengine_server.session.tensorrt_library import load_tensorrt, tensorrt_version

trt = load_tensorrt()
missing = []
for name in sys.argv[1].split():
    try:
        operator.attrgetter(name)(trt)
    except AttributeError:
        missing.append(name)
ours.register_attention()
creator = trt.get_plugin_registry().get_creator(ours.NAME, ours.VERSION, ours.NAMESPACE)
kept = [np.array([value], np.int32) for value in (5, 32, 8, 64)]
fields = [trt.PluginField(name, value, trt.PluginFieldType.INT32)
          for name, value in zip(ours.FIELDS, kept)]
made = creator.create_plugin("layer", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)
again = creator.create_plugin("layer", made.get_fields_to_serialize(), trt.TensorRTPhase.RUNTIME)
values = [int(field.data[0]) for field in again.get_fields_to_serialize()]
print(json.dumps([tensorrt_version(), missing, values]))
"""
LOADED = """
import sys
from pathlib import Path
from llmengine_server.session import EngineError
from llmengine_server.session.tensorrt_engine import TensorRtEngine

try:
    TensorRtEngine(Path(sys.argv[1]))
except EngineError as error:
    print(error)
"""


def environment(version: str) -> dict[str, str]:
    places = [modules(BINDINGS[version]), modules(NVML)]
    ours = [REPOSITORY / "builder_image", REPOSITORY / "operator"]
    return {
        "PYTHONPATH": ":".join(map(str, (*places, *ours))),
        LIBRARIES_VARIABLE: str(libraries(version)),
    }


def python(version: str, code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment(version)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@VERSIONS
def test_all_that_we_call_is_there_and_the_registry_makes_our_layer(version: str) -> None:
    here, missing, values = json.loads(python(version, REGISTERED, CALLED))
    assert here.startswith(version)
    assert missing == []
    assert values == [5, 32, 8, 64]


@NO_GPU
@VERSIONS
def test_a_compiler_without_a_driver_says_so(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(version).items():
        monkeypatch.setenv(name, value)
    for name in ("graph", "timing"):
        (tmp_path / name).touch()
    order = Order(
        graph=str(tmp_path / "graph"),
        weights=str(tmp_path),
        plan=str(tmp_path / "plan"),
        timing=str(tmp_path / "timing"),
        profiles=(),
    )
    with pytest.raises(WrongDeviceError) as caught:
        run_compiler(order, version, lambda percent: None, lambda line: None)
    assert caught.value.reason == BuildReason.DRIVER_TOO_OLD


@NO_GPU
@VERSIONS
def test_a_server_without_a_driver_says_so(version: str, tmp_path: Path) -> None:
    plan = tmp_path / "engine.plan"
    plan.write_bytes(b"ftrt" + bytes(1000))
    assert "does not start: createInferRuntime" in python(version, LOADED, str(plan))


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> Any:
    """TensorRT-RTX, told for which GPU it builds, since it can ask none."""
    monkeypatch.syspath_prepend(str(modules(*RTX)))
    import tensorrt_rtx_bindings as trt

    create = trt.Builder.create_builder_config

    def create_for_one(builder: Any) -> Any:
        config = create(builder)
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        return config

    monkeypatch.setattr(trt.Builder, "create_builder_config", create_for_one)
    monkeypatch.setattr(tensorrt_compiler, "load_tensorrt", lambda: trt)
    monkeypatch.setattr(tensorrt_compiler, "register_attention", lambda: None)
    monkeypatch.setattr(tensorrt_compiler.DeviceMemory, "_used", lambda self: 0)
    return trt


RTX_LACKS = pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops in TensorRT")


@RTX_LACKS
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_graph_of_each_family_is_parsed_and_compiled(
    family: Family, dtype: DType, rtx: Any, tmp_path: Path
) -> None:
    order = prepare(TinyModel(family=family, dtype="BF16"), dtype, tmp_path)
    said: list[str] = []
    tensorrt_compiler.compile_order(order, lambda severity, _: said.append(severity), lambda: True)
    assert not {"ERROR", "INTERNAL_ERROR"} & set(said)
    assert Path(order.plan).stat().st_size > 100_000


@RTX_LACKS
def test_a_build_that_nobody_waits_for_ends(rtx: Any, tmp_path: Path) -> None:
    order = prepare(TinyModel(dtype="BF16"), DType.BFLOAT16, tmp_path)
    with pytest.raises(CompilationError, match="no plan was built"):
        tensorrt_compiler.compile_order(order, lambda *_: None, lambda: False)


def prepare(tiny: TinyModel, dtype: DType, folder: Path) -> Order:
    model = prepared(read_model(tiny.write(folder / "model")), dtype, folder / "weights")
    order = Order(
        graph=str(folder / "graph.onnx"),
        weights=str(model.checkpoint.folder),
        plan=str(folder / "plan"),
        timing=str(folder / "timing"),
        profiles=tuple(profiles(_cache(model.decoder, dtype), LIMITS)),
    )
    Path(order.graph).write_bytes(without_attention(model.graph(dtype, "address"), model.decoder))
    Path(order.timing).touch()
    return order


def without_attention(graph: bytes, decoder: Decoder) -> bytes:
    """The same, with the query's part of its input as the output of each of our layers."""
    model = onnx.load_model_from_string(graph)
    bounds = {"first": 0, "last": decoder.heads * decoder.head_dim, "axis": 1}
    for name, value in bounds.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    ours = [node for node in model.graph.node if node.op_type == "CachedAttention"]
    assert len(ours) == decoder.layers
    for node in ours:
        heads = node.input[0]
        del node.input[:], node.attribute[:]
        node.input.extend([heads, *bounds])
        node.op_type, node.domain = "Slice", ""
    return bytes(model.SerializeToString())


def _cache(decoder: Decoder, dtype: DType) -> Cache:
    return Cache(
        layout="plain",
        dtype=dtype.value,
        layers=decoder.layers,
        kv_heads=decoder.kv_heads,
        head_dim=decoder.head_dim,
        buckets=(256,),
        batches=(1, 8, 32),
    )
