"""What the platform's admin offers with an EngineRuntime: a backend, its version and its image."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from llmengine.api.schema import (
    SET,
    ApiModel,
    Name,
    NodeSelector,
    PodAnnotations,
    PodLabels,
    Resources,
    Toleration,
    cel,
    keyed_by,
    matching,
    rules,
    sentence,
)


class BackendName(StrEnum):
    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    TENSORRTLLM = "tensorrtllm"


class Accelerator(StrEnum):
    CPU = "cpu"
    NVIDIA = "nvidia"


class Image(ApiModel):
    """The container image of a runtime; it builds and serves."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "has(self.tag) || has(self.digest)",
                "give a tag or a digest: engines must not change their image by chance",
                field="tag",
                reason="FieldValueRequired",
            ),
            cel(
                "!has(self.repository) || self.repository.matches("
                "r'^([a-z0-9.-]+(:[0-9]+)?/)?[a-z0-9._-]+(/[a-z0-9._-]+)*$')",
                "='must be an image without tag and digest (got \"' + self.repository + '\"):"
                " these go into the fields tag and digest'",
                field="repository",
            ),
        )
    )

    repository: Annotated[str, StringConstraints(max_length=512)] = Field(
        description="The image without tag and digest, such as registry.example.com/engine.",
        json_schema_extra=sentence("name the image that builds and serves"),
    )
    tag: Annotated[str, StringConstraints(max_length=128)] | None = Field(
        default=None,
        description="Tag of the image.",
        json_schema_extra=matching(
            "^[A-Za-z0-9_][A-Za-z0-9_.-]*$",
            "not a tag: write letters, digits, _, . and -",
        ),
    )
    digest: Annotated[str, StringConstraints(max_length=71)] | None = Field(
        default=None,
        description="Digest of the image; wins over the tag.",
        json_schema_extra=matching(
            "^sha256:[0-9a-f]{64}$", "not a digest: write sha256: and 64 hexadecimal digits"
        ),
    )
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="When nodes pull the image."
    )
    pull_secrets: list[Name] = Field(
        default_factory=list,
        max_length=8,
        description="Names of pull Secrets; they must exist in every namespace that serves, and"
        " in the one that builds.",
        json_schema_extra=SET,
    )

    @property
    def reference(self) -> str:
        """`repository@digest`, or `repository:tag`."""
        suffix = f"@{self.digest}" if self.digest else f":{self.tag}"
        return self.repository + suffix


class EnvVar(ApiModel):
    """A plain environment variable of our containers."""

    name: Annotated[str, StringConstraints(max_length=128)] = Field(
        description="Name of the variable.",
        json_schema_extra=rules(
            cel(
                "self.matches('^[A-Za-z_][A-Za-z0-9_]*$')",
                "not the name of a variable: write letters, digits and _, beginning with a letter"
                " or _",
            ),
            cel(
                "!self.startsWith('LLMENGINE_')",
                "LLMENGINE_... are set by the operator: remove it",
            ),
        ),
    )
    value: Annotated[str, StringConstraints(max_length=4096)] = Field(
        default="", description="Its value."
    )


class PodDefaults(ApiModel):
    """What the admin sets for every pod of this runtime."""

    service_account_name: Name | None = Field(
        default=None,
        description="For workload identity; no API token is mounted. Must exist where pods run.",
    )
    env: list[EnvVar] = Field(
        default_factory=list,
        max_length=64,
        description="Environment variables of the build and server containers.",
        json_schema_extra=keyed_by("name"),
    )
    labels: PodLabels = Field(default_factory=dict, description="Labels of the pods.")
    annotations: PodAnnotations = Field(
        default_factory=dict, description="Annotations of the pods."
    )
    node_selector: NodeSelector = Field(
        default_factory=dict, description="Labels of the nodes that may run the pods."
    )
    tolerations: list[Toleration] = Field(
        default_factory=list, max_length=32, description="Taints that the pods tolerate."
    )
    build_resources: Resources | None = Field(
        default=None, description="Used where spec.build.resources of an engine is unset."
    )
    serving_resources: Resources | None = Field(
        default=None, description="Used where spec.serving.resources of an engine is unset."
    )


ComputeCapabilities = Annotated[
    str,
    StringConstraints(max_length=8),
    Field(
        json_schema_extra=matching(
            "^sm_[1-9][0-9]{1,2}[+]?$",
            "not a compute capability: write one such as sm_90, or sm_80+ for it and all above",
        )
    ),
]


class EngineRuntimeSpec(ApiModel):
    """A backend in one version, and the image that builds and serves with it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!has(self.backend) || !has(self.accelerator)"
                " || (self.backend == 'onnxruntime') == (self.accelerator == 'cpu')",
                "='is wrong for backend ' + self.backend + ' (got ' + self.accelerator + '):"
                " onnxruntime runs on cpu, tensorrt and tensorrtllm run on nvidia'",
                field="accelerator",
            ),
            *(
                cel(
                    f"!has(self.{field}) || !has(oldSelf.{field}) || self.{field} =="
                    f" oldSelf.{field}",
                    "cannot be changed, because engines are keyed by it: create another"
                    " EngineRuntime, and name it in the spec.runtime of the engines",
                    field=field,
                    reason="FieldValueForbidden",
                )
                for field in ("backend", "version", "accelerator")
            ),
            *(
                cel(
                    f"!has(self.{field}) || !has(self.accelerator) || self.accelerator != 'cpu'",
                    "is for GPUs, and accelerator is cpu: remove it",
                    field=field,
                    reason="FieldValueForbidden",
                )
                for field in ("computeCapabilities", "minimumDriver")
            ),
        )
    )

    backend: BackendName = Field(
        description="The code that compiles and runs engines.",
        json_schema_extra=sentence("give onnxruntime, tensorrt or tensorrtllm"),
    )
    version: Annotated[str, StringConstraints(max_length=63)] = Field(
        description="Exact version of the backend in the image, such as 1.32.0.",
        json_schema_extra={
            **sentence("give the exact version of the backend in the image, such as 1.32.0"),
            **matching(
                "^[0-9A-Za-z][0-9A-Za-z.+-]*$", "not an exact version: write one such as 1.32.0"
            ),
        },
    )
    accelerator: Accelerator = Field(
        description="What engines run on.", json_schema_extra=sentence("give cpu or nvidia")
    )
    image: Image = Field(
        json_schema_extra=sentence(
            "name the image that builds and serves: give image.repository and image.tag"
        )
    )
    compute_capabilities: list[ComputeCapabilities] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="GPUs that the image's libraries know, such as [sm_80+] or [sm_80, sm_90]."
        " Unset: all that the backend knows.",
        json_schema_extra=SET,
    )
    minimum_driver: Annotated[str, StringConstraints(max_length=31)] | None = Field(
        default=None,
        description="The oldest NVIDIA driver that the image's CUDA runs with, such as 580.65.06."
        " Nodes with an older one, or with none in their labels, are left out.",
        json_schema_extra=matching(
            r"^[0-9]{1,5}(\.[0-9]{1,5}){0,2}$",
            "not the version of a driver: write one such as 550, 550.54 or 550.54.15",
        ),
    )
    runtime_class_name: Name | None = Field(
        default=None,
        description="RuntimeClass of the pods, such as nvidia, where it is not the nodes' default.",
    )
    pod_defaults: PodDefaults = Field(default_factory=PodDefaults)

    def knows(self, compute_capability: tuple[int, int]) -> bool:
        """Whether `compute_capabilities` has this one; unset, it has all."""
        if self.compute_capabilities is None:
            return True
        for text in self.compute_capabilities:
            digits = text.removeprefix("sm_").removesuffix("+")
            given = (int(digits[:-1]), int(digits[-1]))
            if compute_capability == given or (text.endswith("+") and compute_capability > given):
                return True
        return False

    @property
    def driver(self) -> tuple[int, int, int] | None:
        """`minimum_driver` as numbers: major, minor, revision."""
        if self.minimum_driver is None:
            return None
        major, minor, revision = [*map(int, self.minimum_driver.split(".")), 0, 0][:3]
        return major, minor, revision
