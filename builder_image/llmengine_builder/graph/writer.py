"""Writes ONNX nodes, with weights left where they are: inside the model's own files.

The same calls give the same bytes. Standard operators are those of opset 18, which ONNX Runtime and
every TensorRT since 10.0 can read.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from llmengine.api.v1alpha1 import DType
from llmengine.requests import BuildReason
from llmengine_builder.errors import BadInputError, UnsupportedError
from llmengine_builder.safetensors import Checkpoint, StoredTensor

OPSET = 18
# Of operators of our own.
DOMAIN = "llmengine"
# The first that opset 18's release allows which knows bfloat16 everywhere.
IR_VERSION = 10
ONNX_TYPES: Mapping[DType, int] = {
    DType.FLOAT32: TensorProto.FLOAT,
    DType.FLOAT16: TensorProto.FLOAT16,
    DType.BFLOAT16: TensorProto.BFLOAT16,
}
_STORED_TYPES: Mapping[str, DType] = {
    "F32": DType.FLOAT32,
    "F16": DType.FLOAT16,
    "BF16": DType.BFLOAT16,
}


class Writer:
    """Collects nodes and initializers; `dtype` is that of weights and activations.

    Values are named by the caller's `scope`; a name that is used again gets a number.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: DType) -> None:
        self._checkpoint = checkpoint
        self.dtype = dtype
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._names: dict[str, int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._weights: dict[str, str] = {}
        self._domains = {"": OPSET}
        self.scope = ""

    @property
    def consumed(self) -> frozenset[str]:
        """Names of the tensors that the graph uses."""
        return frozenset(self._weights)

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Write one node and return the name of its only output."""
        name = output or self._unique(operator)
        self._nodes.append(
            helper.make_node(operator, list(inputs), [name], name=name, **attributes)
        )
        return name

    def own_node(self, operator: str, *inputs: str, **attributes: int) -> str:
        """Write a node of an operator of our own, and return the name of its only output."""
        self._domains[DOMAIN] = 1
        # By what TensorRT's parser finds the operator's plugin.
        return self.node(
            operator,
            *inputs,
            domain=DOMAIN,
            plugin_namespace=DOMAIN,
            plugin_version="1",
            output="",
            **attributes,
        )

    def constant(self, value: NDArray[Any] | np.generic | list[int] | int) -> str:
        """A small tensor inside the graph; equal ones are stored once. Integers are int64."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = name
            self._initializers.append(onnx.numpy_helper.from_array(array, name))
        return self._constants[key]

    def cast(self, value: str, source: DType, target: DType) -> str:
        """`value`, of dtype `source`, as `target`; no node where they are the same."""
        if source is target:
            return value
        return self.node("Cast", value, to=ONNX_TYPES[target])

    def to_float32(self, value: str) -> str:
        return self.cast(value, self.dtype, DType.FLOAT32)

    def from_float32(self, value: str) -> str:
        return self.cast(value, DType.FLOAT32, self.dtype)

    def stored(self, name: str, shape: tuple[int, ...]) -> tuple[str, DType]:
        """A tensor of the model as its file has it: its name in the graph, and its dtype.

        Raises BadInputError when it is missing or has another shape, UnsupportedError when it
        has a dtype that no engine computes with.
        """
        tensor, dtype = self._checked(name, shape)
        if name not in self._weights:
            self._weights[name] = name
            self._initializers.append(_external(tensor, dtype))
        return name, dtype

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        """A tensor of the model in the graph's dtype."""
        stored, dtype = self.stored(name, shape)
        if self._weights[name] == stored and dtype is not self.dtype:
            self._weights[name] = self.cast(stored, dtype, self.dtype)
        return self._weights[name]

    def merged(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> str:
        """Several tensors, one below the other, in the graph's dtype: one reference where they lie
        one behind the other in a file."""
        parts = list(zip(names, shapes, strict=True))
        checked = [self._checked(name, shape) for name, shape in parts]
        tensors = [tensor for tensor, _ in checked]
        follow = all(
            (one.file, one.offset + one.length) == (other.file, other.offset)
            for one, other in itertools.pairwise(tensors)
        )
        if not follow or any(dtype is not self.dtype for _, dtype in checked):
            return self.node("Concat", *(self.weight(name, shape) for name, shape in parts), axis=0)
        self._weights |= {name: name for name in names}
        first = tensors[0]
        whole = replace(
            first,
            name=f"{self.scope}/{first.name.rpartition('.')[2]}",
            shape=(sum(tensor.shape[0] for tensor in tensors), *first.shape[1:]),
            length=sum(tensor.length for tensor in tensors),
        )
        self._initializers.append(_external(whole, self.dtype))
        return whole.name

    def serialize(
        self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> bytes:
        """The whole model, without the weights."""
        graph = helper.make_graph(
            self._nodes, "decoder", inputs, outputs, initializer=self._initializers
        )
        opsets = [helper.make_opsetid(*each) for each in self._domains.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        return bytes(model.SerializeToString(deterministic=True))

    def _checked(self, name: str, shape: tuple[int, ...]) -> tuple[StoredTensor, DType]:
        tensor = self._checkpoint.tensors.get(name)
        if tensor is None:
            raise BadInputError(
                BuildReason.MODEL_INVALID,
                f"tensor {name} is missing from {', '.join(self._checkpoint.files[:3])}, though"
                " config.json calls for it",
            )
        if tensor.shape != shape:
            raise BadInputError(
                BuildReason.MODEL_INVALID,
                f"tensor {name} of {tensor.file} has shape {list(tensor.shape)}, but config.json"
                f" makes it {list(shape)}",
            )
        if tensor.dtype not in _STORED_TYPES:
            raise UnsupportedError(
                BuildReason.MODEL_UNSUPPORTED,
                f"tensor {name} of {tensor.file} has dtype {tensor.dtype}; supported are"
                f" {', '.join(_STORED_TYPES)}",
            )
        return tensor, _STORED_TYPES[tensor.dtype]

    def _unique(self, operator: str) -> str:
        base = f"{self.scope}/{operator}" if self.scope else operator
        number = self._names.get(base, 0)
        self._names[base] = number + 1
        return f"{base}_{number}" if number else base


def _external(tensor: StoredTensor, dtype: DType) -> onnx.TensorProto:
    proto = TensorProto(
        name=tensor.name,
        data_type=ONNX_TYPES[dtype],
        dims=tensor.shape,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (
        ("location", tensor.file),
        ("offset", str(tensor.offset)),
        ("length", str(tensor.length)),
    ):
        proto.external_data.add(key=key, value=value)
    return proto
