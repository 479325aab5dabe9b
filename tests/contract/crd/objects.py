"""Engines and runtimes that an API server accepts, with ways to spoil and to send them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from llmengine.api.v1alpha1 import API_VERSION, GROUP, VERSION
from tests.cluster.api import Api, ApiError

COMMIT = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
REMOVED = object()
"""As a value: the field is left out."""


def engine(changes: Mapping[str, Any] | None = None, *, name: str = "chat") -> dict[str, Any]:
    """An LLMEngine. `changes` maps paths such as `spec.model.uri` to values."""
    return _changed(
        {
            "apiVersion": API_VERSION,
            "kind": "LLMEngine",
            "metadata": {"name": name},
            "spec": {
                "runtime": "onnxruntime-1.32.0",
                "model": {
                    "uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct",
                    "revision": COMMIT,
                },
            },
        },
        changes or {},
    )


def runtime(
    changes: Mapping[str, Any] | None = None, *, name: str = "of-the-crd-tests"
) -> dict[str, Any]:
    """An EngineRuntime, with changes as those of `engine`."""
    return _changed(
        {
            "apiVersion": API_VERSION,
            "kind": "EngineRuntime",
            "metadata": {"name": name},
            "spec": {
                "backend": "onnxruntime",
                "version": "1.32.0",
                "accelerator": "cpu",
                "image": {"repository": "registry.test/engine", "tag": "v1"},
            },
        },
        changes or {},
    )


def _changed(obj: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    obj = copy.deepcopy(obj)
    for path, value in changes.items():
        *way, last = path.split(".")
        place = obj
        for step in way:
            place = place.setdefault(step, {})
        if value is REMOVED:
            del place[last]
        else:
            place[last] = value
    return obj


@dataclass(frozen=True)
class Server:
    """An API server with our CRDs; engines go into one namespace."""

    api: Api
    namespace: str

    def path(self, obj: Mapping[str, Any], *, named: bool = True, subresource: str = "") -> str:
        """Of an object, or of all of its kind."""
        place = f"/apis/{GROUP}/{VERSION}"
        if obj["kind"] == "LLMEngine":
            place += f"/namespaces/{self.namespace}/llmengines"
        else:
            place += "/engineruntimes"
        parts = [place, *([obj["metadata"]["name"]] if named else []), subresource]
        return "/".join(part for part in parts if part)

    def create(self, obj: Mapping[str, Any], *, keep: bool = True) -> dict[str, Any]:
        """As kubectl does, which asks for unknown fields to be refused."""
        query = "?fieldValidation=Strict" + ("" if keep else "&dryRun=All")
        created: dict[str, Any] = self.api.request("POST", self.path(obj, named=False) + query, obj)
        return created

    def get(self, obj: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get(self.path(obj))
        return found

    def merge(
        self, obj: Mapping[str, Any], patch: Mapping[str, Any], *, subresource: str = ""
    ) -> dict[str, Any]:
        patched: dict[str, Any] = self.api.merge(self.path(obj, subresource=subresource), patch)
        return patched

    def apply(
        self, obj: Mapping[str, Any], *, manager: str, subresource: str = ""
    ) -> dict[str, Any]:
        """Server-side apply."""
        path = self.path(obj, subresource=subresource)
        applied: dict[str, Any] = self.api.request(
            "PATCH", f"{path}?fieldManager={manager}", obj, "application/apply-patch+yaml"
        )
        return applied

    def delete(self, obj: Mapping[str, Any]) -> None:
        self.api.request("DELETE", self.path(obj))

    def refusal(self, obj: Mapping[str, Any]) -> str:
        """What a user reads after `... is invalid: `."""
        with pytest.raises(ApiError) as refused:
            self.create(obj, keep=False)
        return sentence(refused.value)


def sentence(refused: ApiError) -> str:
    """The part that is about the fields."""
    assert refused.status == 422, refused
    _, _, says = str(refused).partition(" is invalid: ")
    return says
