"""Builds with one thing wrong, for tests of what the user then reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmengine.api.v1alpha1 import EngineOptions
from llmengine.key import Scope, engine_key
from llmengine.requests import BuildRequest, StoreLocation
from tests.cluster.ports import free_port
from tests.contract.builder.hub import Hub
from tests.contract.builder.run import OPTIONS, Bench, Run
from tests.models.tiny import TinyModel


@dataclass(frozen=True)
class Given:
    """What the cases below are made of."""

    bench: Bench
    hub: Hub
    tiny: Path

    def on_hub(self, name: str = "acme/tiny", **change: Any) -> BuildRequest:
        return self.bench.request(f"hf://{name}", hf_endpoint=self.hub.endpoint, **change)

    def on_s3(self, **change: Any) -> BuildRequest:
        return self.bench.request(self.bench.put_model(self.tiny), **change)

    def on_claim(self, path: str) -> BuildRequest:
        return self.bench.request(f"pvc://weights/{path}", scope=Scope("team-a", "uid"))

    def altered(self, alter: Callable[[Path], object], model: TinyModel | None = None) -> Run:
        """A build of a changed copy of a small model."""
        folder = self.bench.folder / "altered"
        if model is None:
            shutil.copytree(self.tiny, folder)
        else:
            model.write(folder)
        alter(folder)
        uri = self.bench.put_model(folder)
        return self.bench.build(self.bench.request(uri))


def with_factors(request: BuildRequest, change: dict[str, str | int]) -> BuildRequest:
    factors = {**request.factors, **change}
    return request.model_copy(update={"factors": factors, "key": engine_key(factors)})


def with_options(**change: Any) -> EngineOptions:
    return OPTIONS.model_copy(update=change)


def location(given: Given, **change: Any) -> StoreLocation:
    return given.bench.place.location.model_copy(update=change)


def nowhere() -> str:
    return f"http://127.0.0.1:{free_port('127.0.0.1')}"


def busy(given: Given, status: int) -> Run:
    given.hub.failing, given.hub.status = 1000, status
    return given.bench.build(given.on_hub())


def damaged(given: Given) -> Run:
    given.hub.damaged = True
    return given.bench.build(given.on_hub())


def on_claim(given: Given, path: str) -> BuildRequest:
    shutil.copytree(given.tiny, given.bench.folder / "claim/models/tiny")
    return given.on_claim(path)


def without_sizes(given: Given) -> Run:
    given.hub.tells_sizes = False
    return given.bench.build(given.on_hub())


def linked_out(given: Given) -> BuildRequest:
    request = on_claim(given, "models/tiny")
    weights = given.bench.folder / "claim/models/tiny/model-00001-of-00002.safetensors"
    weights.rename(given.bench.folder / "elsewhere")
    weights.symlink_to(given.bench.folder / "elsewhere")
    return request


def only(folder: Path, *instead: str) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    for name in instead:
        (folder / name).write_bytes(b"GGUF")


def configure(folder: Path, **change: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
