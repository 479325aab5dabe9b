"""The engine key: SHA-256 over everything that changes an engine's bytes or behaviour.

Two engines with one key are interchangeable; two keys differ by at least one named factor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from llmengine.api.v1alpha1 import (
    CacheQuantization,
    DType,
    EngineOptions,
    Portability,
    WeightQuantization,
)
from llmengine.architecture import Architecture

# The meaning of graph and contract. Raise it when the bytes of a graph or what a server may
# expect of an engine changes; a golden digest of small graphs fails the tests until then.
FORMAT = 2
# Newest first: what this release can load. A hit in any of them serves, a miss builds the newest.
READABLE_FORMATS = (2,)

Factor = str | int
Factors = Mapping[str, Factor]


@dataclass(frozen=True)
class Scope:
    """Who may share an engine: the whole cluster, or one namespace.

    `namespace` is empty for the cluster. `claim` is the UID of the PersistentVolumeClaim that a
    `pvc://` model lies on, and only set together with a namespace.
    """

    namespace: str = ""
    claim: str = ""

    def __post_init__(self) -> None:
        if self.claim and not self.namespace:
            raise ValueError(f"claim {self.claim} has no namespace")

    def __str__(self) -> str:
        return f"{self.namespace}/{self.claim}" if self.claim else self.namespace

    @property
    def is_cluster(self) -> bool:
        return not self.namespace


CLUSTER = Scope()


def resolve_dtype(dtype: DType, architecture: Architecture) -> DType:
    """What `auto` means on this architecture; any other dtype is returned as it is.

    float32 on a CPU; bfloat16 from compute capability 8.0 on, which is where tensor cores take
    it; float16 below.
    """
    if dtype is not DType.AUTO:
        return dtype
    if architecture.compute_capability is None:
        return DType.FLOAT32
    return DType.BFLOAT16 if architecture.compute_capability >= (8, 0) else DType.FLOAT16


def engine_factors(
    *,
    backend: str,
    backend_version: str,
    uri: str,
    revision: str,
    endpoint: str | None,
    scope: Scope,
    options: EngineOptions,
    architecture: Architecture,
    format_: int = FORMAT,
) -> dict[str, Factor]:
    """All factors of one engine, by name.

    `endpoint` names the S3 endpoint in the operator's configuration and is None unless the model
    is `s3://`. A factor at its neutral value is left out, so that a new option does not change
    the keys of engines that do not use it.
    """
    factors: dict[str, Factor] = {
        "format": format_,
        "backend": backend,
        "backendVersion": backend_version,
        "model.uri": uri,
        "model.revision": revision,
        "engine.dtype": resolve_dtype(options.dtype, architecture).value,
        "engine.maxBatchSize": options.max_batch_size,
        "engine.maxSequenceLength": options.max_sequence_length,
        "engine.maxBatchTokens": options.max_batch_tokens,
    }
    if endpoint is not None:
        factors["model.endpoint"] = endpoint
    if not scope.is_cluster:
        factors["scope"] = str(scope)
    if options.quantization.weights is not WeightQuantization.NONE:
        factors["engine.quantization.weights"] = options.quantization.weights.value
    if options.quantization.kv_cache is not CacheQuantization.NONE:
        factors["engine.quantization.kvCache"] = options.quantization.kv_cache.value
    if options.portability is not Portability.DEVICE:
        factors["engine.portability"] = options.portability.value
    if architecture.compute_capability is None:
        factors["architecture.cpu"] = architecture.cpu or ""
    else:
        factors["architecture.computeCapability"] = "{}.{}".format(*architecture.compute_capability)
        if options.portability is Portability.DEVICE:
            factors["architecture.device"] = architecture.device or ""
    return factors


def canonical_json(factors: Factors) -> bytes:
    """Sorted keys, no spaces, UTF-8; text and integers only, for floats have no one spelling.

    Raises TypeError for any other value.
    """
    for name, value in factors.items():
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise TypeError(f"factor {name} is {value!r}: only text and integers have one spelling")
    text = json.dumps(dict(factors), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def engine_key(factors: Factors) -> str:
    """The key of an engine: 64 hex digits."""
    return hashlib.sha256(canonical_json(factors)).hexdigest()


def readable_keys(factors: Factors, formats: tuple[int, ...] = READABLE_FORMATS) -> list[str]:
    """The keys under which this release may find such an engine, newest format first."""
    return [engine_key({**factors, "format": format_}) for format_ in formats]


def difference(old: Factors, new: Factors) -> list[str]:
    """Why two engines are not the same: one `name: old -> new` a differing factor, sorted."""

    def show(factors: Factors, name: str) -> str:
        return str(factors[name]) if name in factors else "unset"

    return [
        f"{name}: {show(old, name)} -> {show(new, name)}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
