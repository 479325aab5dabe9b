"""Engines in a folder, as llmengine-fetch leaves them, made by the builder's own backend."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from llmengine.api.v1alpha1 import DType, Quantization
from llmengine.artifact import Device, Limits, Manifest, Verification
from llmengine.key import engine_key
from llmengine.requests import ServeRequest, StoreLocation
from llmengine_builder.backends import CompileOptions, find_backend
from llmengine_builder.graph import read_model
from llmengine_server.repository import render
from llmengine_server.session.onnxruntime import VERSION

# What an artifact carries beside graph and weights.
_TEXTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
FACTORS: Mapping[str, str | int] = {
    "format": 1,
    "backend": "onnxruntime",
    "backendVersion": VERSION,
}
LIMITS = Limits(max_batch_size=8, max_sequence_length=4096, max_batch_tokens=256)


def make_engine(model: Path, folder: Path, limits: Limits = LIMITS) -> Manifest:
    """Write the engine of a model into `folder`; its weights are links to the model's."""
    folder.mkdir(parents=True)
    engine = find_backend("onnxruntime", VERSION).compile(
        read_model(model),
        CompileOptions(DType.FLOAT32, Quantization(), limits),
        folder,
        lambda _: None,
    )
    for name, path in engine.files.items():
        target = folder / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(path, target)
    for name in _TEXTS:
        if (model / name).exists():
            _link(model / name, folder / name)
    manifest = Manifest(
        key=engine_key(FACTORS),
        factors=FACTORS,
        created="2026-11-24T00:00:00Z",
        builder_version="0.1.0",
        model_type=engine.model_type,
        vocabulary=engine.vocabulary,
        limits=engine.limits,
        cache=engine.cache,
        device=Device(name="cpu"),
        seconds={},
        verification=Verification(tokens=1, mean_relative_error=0, max_logit_gap=0),
        model_files=(),
        files=(),
    )
    (folder / "manifest.json").write_bytes(manifest.serialize())
    return manifest


def render_repository(engine: Path, manifest: Manifest, name: str, repository: Path) -> None:
    """Triton's model repository for an engine, as the init container renders it."""
    request = ServeRequest(
        key=manifest.key,
        manifest_digest="sha256:" + "0" * 64,
        model_name=name,
        store=StoreLocation(bucket="unused"),
    )
    render(engine, request, manifest, repository)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        target.write_bytes(source.read_bytes())
