"""`CachedAttention` of our graphs as a layer of TensorRT: a plugin that starts our own kernels.

TensorRT asks for it whenever it reads such a graph or plan, so it has to be registered before.
While an engine is built nothing is computed: there is no cache yet, and nothing to be chosen
between.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from llmengine_server.session.cuda_attention import Heads, Tensors, attention_for
from llmengine_server.session.tensorrt_library import load_tensorrt

NAME = "CachedAttention"
VERSION = "1"
NAMESPACE = "llmengine"
FIELDS = ("layer", "heads", "kv_heads", "head_dim")
# Heads; cosine, sine; past_lens, new_lens; cache; the output.
_KINDS = ("element", "float32", "float32", "int32", "int32", "int64", "element")
_PAST_LENS = 3


@cache
def register_attention() -> Any:
    """Once a process. Raises EngineError where TensorRT cannot be loaded.

    Returns the creator, which TensorRT keeps no reference to, and this cache does.
    """
    trt = load_tensorrt()
    creator = _creator(trt)
    trt.get_plugin_registry().register_creator(creator, NAMESPACE)
    return creator


def _creator(trt: Any) -> Any:
    plugin = _plugin(trt)

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name = NAME
            self.plugin_namespace = NAMESPACE
            self.plugin_version = VERSION
            kind = trt.PluginFieldType.INT32
            self._fields = [trt.PluginField(name, np.array([], np.int32), kind) for name in FIELDS]
            # TensorRT points into the collection, and keeps neither it nor its fields.
            self._collection = trt.PluginFieldCollection(self._fields)
            self.field_names = self._collection

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            values = {field.name: int(np.asarray(field.data).ravel()[0]) for field in fields}
            runs = phase == trt.TensorRTPhase.RUNTIME
            return plugin(tuple(values[field] for field in FIELDS), runs)

    return Creator()


def _plugin(trt: Any) -> Any:
    names = {trt.float32: "float32", trt.float16: "float16", trt.bfloat16: "bfloat16"}
    whole = {trt.int32: "int32", trt.int64: "int64"}

    bases = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)

    class Plugin(*bases):  # type: ignore[misc]
        """`values`: those of FIELDS. `runs`: whether there is a cache to attend over."""

        def __init__(self, values: Sequence[int], runs: bool) -> None:
            for base in bases:
                base.__init__(self)
            # TensorRT deletes its half of this object; Python must not do it a second time.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))
            self.num_outputs = 1
            self.plugin_name = NAME
            self.plugin_namespace = NAMESPACE
            self.plugin_version = VERSION
            self._values = tuple(values)
            self._runs = runs

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            return Plugin(self._values, self._runs)

        def get_output_data_types(self, input_types: Any) -> Any:
            return [input_types[0]]

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, builder: Any) -> Any:
            _, heads, _, head_dim = self._values
            shape = trt.DimsExprs(inputs[0])
            shape[1] = builder.constant(heads * head_dim)
            return [shape]

        def supports_format_combination(self, at: int, tensors: Any, inputs: int) -> bool:
            found = tensors[at].desc
            if found.format != trt.TensorFormat.LINEAR:
                return False
            if _KINDS[at] == "element":
                first = tensors[0].desc.type
                return found.type in names and found.type == first
            return {**names, **whole}.get(found.type) == _KINDS[at]

        def configure_plugin(self, inputs: Any, outputs: Any) -> None: ...

        def on_shape_change(self, inputs: Any, outputs: Any) -> None: ...

        def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
            return 0

        def get_valid_tactics(self) -> list[int]:
            return []

        def set_tactic(self, tactic: int) -> None: ...

        def get_fields_to_serialize(self) -> Any:
            kind = trt.PluginFieldType.INT32
            self._fields = [
                trt.PluginField(name, np.array([value], np.int32), kind)
                for name, value in zip(FIELDS, self._values, strict=True)
            ]
            self._collection = trt.PluginFieldCollection(self._fields)
            return self._collection

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def enqueue(  # noqa: PLR0917 - TensorRT calls it
            self,
            input_desc: Any,
            output_desc: Any,
            inputs: Any,
            outputs: Any,
            workspace: int,
            stream: int,
        ) -> None:
            if not self._runs:
                return
            layer, heads, kv_heads, head_dim = self._values
            dtype = names[input_desc[0].type]
            attention = attention_for(Heads(heads, kv_heads, head_dim, dtype))
            # Heads are [rows * tokens, ...], past_lens [rows].
            rows = int(input_desc[_PAST_LENS].dims[0])
            tokens = int(input_desc[0].dims[0]) // rows
            tensors = Tensors(*inputs, *outputs)
            attention.enqueue(layer, tensors, rows, tokens, stream)

    return Plugin
