"""Writes Triton's model repository from this image: what the store holds is data, never code."""

from __future__ import annotations

import json
import re
from pathlib import Path

from llmengine.artifact import Manifest
from llmengine.requests import ServeRequest
from llmengine_server.dialect import INPUTS, Input

# The only version that is ever served.
VERSION = "1"
ENGINE_DIRECTORY = "engine_directory"

# Clients of TensorRT-LLM's ensemble send tensors with a batch dimension of 1.
_MAX_BATCH_SIZE = 64

_MODEL = '''"""Rendered by llmengine-fetch."""

from llmengine_server.triton_model import TritonPythonModel as TritonPythonModel
'''

_OUTPUTS = (
    Input("text_output", "STRING"),
    Input("finish_reason", "STRING"),
    Input("num_input_tokens", "INT32"),
    Input("num_output_tokens", "INT32"),
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def render(engine_dir: Path, request: ServeRequest, manifest: Manifest, out_dir: Path) -> None:
    """Write OUT_DIR/MODEL/config.pbtxt and OUT_DIR/MODEL/1/model.py, readable by everyone.

    Raises ValueError for a model name that would leave the folder, and for an engine that was
    fetched for another key than the request's.
    """
    if not _NAME.fullmatch(request.model_name):
        raise ValueError(f'"{request.model_name}" cannot be a model name in Triton')
    if manifest.key != request.key:
        raise ValueError(
            f"{engine_dir} holds engine {manifest.key[:12]}, not {request.key[:12]}: fetch it anew"
        )
    model = out_dir / request.model_name
    (model / VERSION).mkdir(parents=True, exist_ok=True)
    _write(model / "config.pbtxt", config(request.model_name, engine_dir))
    _write(model / VERSION / "model.py", _MODEL)


def config(model_name: str, engine_dir: Path) -> str:
    """config.pbtxt for a served model."""
    inputs = ",\n".join(_tensor(declared, optional=True) for declared in INPUTS)
    outputs = ",\n".join(_tensor(declared, optional=False) for declared in _OUTPUTS)
    return f"""name: {json.dumps(model_name)}
backend: "python"
max_batch_size: {_MAX_BATCH_SIZE}
model_transaction_policy {{ decoupled: true }}
instance_group [ {{ count: 1, kind: KIND_CPU }} ]
parameters {{
  key: "{ENGINE_DIRECTORY}"
  value {{ string_value: {json.dumps(str(engine_dir))} }}
}}
input [
{inputs}
]
output [
{outputs}
]
"""


def _tensor(declared: Input, *, optional: bool) -> str:
    fields = [
        f'name: "{declared.name}"',
        f"data_type: TYPE_{declared.data_type}",
        f"dims: {list(declared.dims)}",
    ]
    if optional:
        fields.append("optional: true")
    return "  { " + ", ".join(fields) + " }"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
