"""What the pydantic models of the API share: names in camelCase, and sentences for the CRD."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel


class ApiModel(BaseModel):
    """A part of a custom resource: immutable, camelCase on the wire."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore"
    )


def cel(rule: str, message: str) -> dict[str, str]:
    """One `x-kubernetes-validations` entry.

    `message` is plain text, or a CEL string expression when it starts with `=`.
    """
    if message.startswith("="):
        return {"rule": rule, "messageExpression": message[1:]}
    return {"rule": rule, "message": message}


def rules(*entries: dict[str, str]) -> dict[str, Any]:
    """`json_schema_extra` of a model that carries CEL rules."""
    return {"x-kubernetes-validations": list(entries)}


def sentence(text: str) -> dict[str, Any]:
    """`json_schema_extra` of a required field whose absence deserves a sentence.

    A `required` entry answers a bare "Required value" and keeps CEL from running, so the CRD
    leaves such a field optional and its parent gets the rule `has(self.field)` with this text.
    """
    return {"x-llmengine-missing": text}


# CEL estimates cost from the bounds, so every string and list that a rule may touch has one.
Name = Annotated[str, StringConstraints(min_length=1, max_length=253)]
LabelValue = Annotated[str, StringConstraints(max_length=63)]
Text = Annotated[str, StringConstraints(max_length=32768)]
Quantity = Annotated[
    int | str,
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
]


class Toleration(ApiModel):
    """A pod toleration, as in core/v1."""

    key: LabelValue | None = None
    operator: Annotated[str, StringConstraints(pattern="^(Exists|Equal)$")] | None = None
    value: LabelValue | None = None
    effect: (
        Annotated[str, StringConstraints(pattern="^(NoSchedule|PreferNoSchedule|NoExecute)$")]
        | None
    ) = None
    toleration_seconds: int | None = None


class Resources(ApiModel):
    """Container requests and limits, as in core/v1."""

    requests: dict[str, Quantity] = Field(default_factory=dict, max_length=16)
    limits: dict[str, Quantity] = Field(default_factory=dict, max_length=16)


class Condition(ApiModel):
    """metav1.Condition."""

    type: Annotated[str, StringConstraints(max_length=316)]
    status: Annotated[str, StringConstraints(pattern="^(True|False|Unknown)$")]
    observed_generation: int | None = None
    last_transition_time: Annotated[str, StringConstraints(max_length=64)]
    reason: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    message: Text = ""
