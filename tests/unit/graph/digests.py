"""Digests of graphs that must not change unless `llmengine.key.FORMAT` does.

Run `python -m tests.unit.graph.digests` after raising FORMAT, to record them anew.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from llmengine.api.v1alpha1 import DType
from llmengine.key import FORMAT
from llmengine_builder.graph import CacheForm, read_model
from tests.models.tiny import LLAMA3, YARN, TinyModel

RECORDED = Path(__file__).parent / "digests.json"

_MODELS: Mapping[str, TinyModel] = {
    "llama": TinyModel(),
    "llama with biases, llama3 rope, two shards": TinyModel(
        attention_bias=True, mlp_bias=True, rope=LLAMA3, shards=2
    ),
    "mistral, tied": TinyModel(family="mistral", tied=True),
    "qwen2 of bfloat16": TinyModel(family="qwen2", dtype="BF16"),
    "qwen3 with yarn": TinyModel(family="qwen3", rope=YARN),
}
_WRITTEN: tuple[tuple[DType, CacheForm], ...] = (
    (DType.FLOAT32, "inputs"),
    (DType.BFLOAT16, "address"),
)


def digests() -> dict[str, str]:
    """SHA-256 of the graph of every model, written each way, by a name that says which."""
    found = {}
    with tempfile.TemporaryDirectory() as root:
        for number, (name, model) in enumerate(_MODELS.items()):
            understood = read_model(model.write(Path(root) / str(number)))
            for dtype, cache in _WRITTEN:
                graph = understood.graph(dtype, cache)
                key = f"{name}; {dtype.value}, cache by {cache}"
                found[key] = hashlib.sha256(graph).hexdigest()
    return found


if __name__ == "__main__":
    recorded = {"format": FORMAT, "digests": digests()}
    RECORDED.write_text(json.dumps(recorded, indent=2) + "\n")
