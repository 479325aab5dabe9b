"""What the models of the API share: camelCase on the wire, and sentences for what is refused.

A rule is written in CEL and speaks for one field: the API server puts the field's path in front of
the sentence, so a sentence never names its own field. Only what the API servers of Kubernetes 1.30
know is used.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

MISSING = "x-llmengine-missing"
INT_OR_STRING = "x-kubernetes-int-or-string"
VALIDATIONS = "x-kubernetes-validations"

# As core/v1 has them; the sentences below are all that a user sees of these.
_OBJECT_NAME = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
_LABEL_WORD = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_LABEL_NAME = f"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?{_LABEL_WORD}$"
_LABEL_VALUE = f"^({_LABEL_WORD})?$"


class ApiModel(BaseModel):
    """A part of a custom resource: immutable, camelCase on the wire."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore"
    )


Reason = Literal["FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired"]


def cel(
    rule: str, message: str, *, field: str = "", reason: Reason = "FieldValueInvalid"
) -> dict[str, str]:
    """One `x-kubernetes-validations` entry about `field` of the node that carries it.

    `message` is plain text, or a CEL string expression when it starts with `=`. Without a field
    it is about the node itself; only then does the API server show the value.
    """
    entry = {"rule": rule}
    if message.startswith("="):
        entry["messageExpression"] = message[1:]
    else:
        entry["message"] = message
    if field:
        entry["fieldPath"] = f".{field}"
    if reason != "FieldValueInvalid":
        entry["reason"] = reason
    return entry


def required(field: str, message: str) -> dict[str, str]:
    """The rule that a field is there."""
    return cel(f"has(self.{field})", message, field=field, reason="FieldValueRequired")


def rules(*entries: dict[str, str]) -> dict[str, Any]:
    """`json_schema_extra` of a model or field that carries CEL rules."""
    return {VALIDATIONS: list(entries)}


def matching(pattern: str, message: str) -> dict[str, Any]:
    """`json_schema_extra` of a string that must match, where a bare pattern would say nothing.

    The models do not check it again: they only read what an API server has accepted.
    """
    return rules(cel(f"self.matches(r'{pattern}')", message))


def sentence(text: str) -> dict[str, Any]:
    """`json_schema_extra` of a required field whose absence deserves a sentence.

    A `required` entry answers a bare "Required value" and keeps CEL from running, so the CRD
    leaves such a field optional and its parent gets the rule `has(self.field)` with this text.
    """
    return {MISSING: text}


def keyed_by(*keys: str) -> dict[str, Any]:
    """`json_schema_extra` of a list whose entries are merged by these of their fields."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


SET: dict[str, Any] = {"x-kubernetes-list-type": "set"}

# CEL estimates cost from the bounds, so every string and list that a rule may touch has one.
Name = Annotated[
    str,
    StringConstraints(max_length=253),
    Field(
        json_schema_extra=matching(
            _OBJECT_NAME,
            "not the name of a Kubernetes object: write lowercase letters, digits, - and .,"
            " beginning and ending with a letter or digit",
        )
    ),
]
LabelValue = Annotated[
    str,
    StringConstraints(max_length=63),
    Field(
        json_schema_extra=matching(
            _LABEL_VALUE,
            "not the value of a label: write letters, digits, -, _ and ., beginning and ending"
            " with a letter or digit",
        )
    ),
]
Word = Annotated[str, StringConstraints(max_length=63)]
Text = Annotated[str, StringConstraints(max_length=32768)]
Quantity = Annotated[
    int | Annotated[str, StringConstraints(max_length=32)],
    Field(
        json_schema_extra={
            INT_OR_STRING: True,
            "maxLength": 32,
            **rules(
                cel(
                    "type(self) == int ? self >= 0 : isQuantity(self) && !self.startsWith('-')",
                    "not an amount: write a number, or one with a suffix, such as 500m or 4Gi",
                )
            ),
        }
    ),
]

PodCount = Annotated[
    int | Annotated[str, StringConstraints(max_length=4)],
    Field(
        json_schema_extra={
            INT_OR_STRING: True,
            "maxLength": 4,
            **rules(
                cel(
                    "type(self) == int ? self >= 0 && self <= 1000"
                    " : self.matches('^(100|[1-9]?[0-9])%$')",
                    "not a number of pods: write one, such as 1, or a share of them, such as 25%",
                )
            ),
        }
    ),
]

_LABEL_NAMES = cel(
    f"self.all(key, key.matches(r'{_LABEL_NAME}'))",
    "every key must be the name of a label, such as example.com/pool",
)
NodeSelector = Annotated[
    dict[str, LabelValue],
    Field(max_length=32, json_schema_extra=rules(_LABEL_NAMES)),
]
# These would be overwritten in silence by what the operator puts on its pods.
_FOREIGN = cel(
    "self.all(key, !key.startsWith('llmengine.io/') && !(key in"
    " ['app.kubernetes.io/managed-by', 'app.kubernetes.io/component']))",
    "llmengine.io/..., app.kubernetes.io/managed-by and app.kubernetes.io/component are the"
    " operator's own: remove them",
    reason="FieldValueForbidden",
)
PodLabels = Annotated[
    dict[str, LabelValue],
    Field(max_length=32, json_schema_extra=rules(_LABEL_NAMES, _FOREIGN)),
]
PodAnnotations = Annotated[
    dict[str, Annotated[str, StringConstraints(max_length=4096)]],
    Field(max_length=32, json_schema_extra=rules(_LABEL_NAMES, _FOREIGN)),
]


class Toleration(ApiModel):
    """A taint that pods may be placed in spite of, as in core/v1."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!(has(self.operator) && self.operator == 'Exists'"
                " && has(self.value) && self.value != '')",
                "operator Exists looks at no value: remove it, or write operator Equal",
                field="value",
                reason="FieldValueForbidden",
            ),
            cel(
                "has(self.key) && self.key != ''"
                " || has(self.operator) && self.operator == 'Exists'",
                "name the taint's key, or write operator Exists to tolerate every taint",
                field="key",
                reason="FieldValueRequired",
            ),
            cel(
                "!has(self.tolerationSeconds) || has(self.effect) && self.effect == 'NoExecute'",
                "has a meaning for effect NoExecute only: remove it, or write that effect",
                field="tolerationSeconds",
                reason="FieldValueForbidden",
            ),
        )
    )

    key: Annotated[str, StringConstraints(max_length=317)] | None = Field(
        default=None, description="Key of the taint."
    )
    operator: Literal["Exists", "Equal"] | None = Field(
        default=None,
        description="Exists: any value of the taint is tolerated. Equal (unset): only this value.",
    )
    value: LabelValue | None = Field(default=None, description="Value of the taint.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Effect of the taint; unset: all of them."
    )
    toleration_seconds: int | None = Field(
        default=None, description="Seconds that a NoExecute taint is tolerated; unset: for ever."
    )


class Resources(ApiModel):
    """Container requests and limits, as in core/v1."""

    # Twelve: older API servers take an int-or-string for 3 MiB long when they estimate costs.
    requests: dict[str, Quantity] = Field(
        default_factory=dict,
        max_length=12,
        description="What the node must have free, such as cpu, memory, ephemeral-storage.",
    )
    limits: dict[str, Quantity] = Field(
        default_factory=dict, max_length=12, description="What the container may not exceed."
    )


class Condition(ApiModel):
    """One aspect of the object's state, as metav1.Condition."""

    type: Annotated[str, StringConstraints(max_length=316)] = Field(
        description="Ready, Available, Reconciling, Stalled or EnginesBuilt."
    )
    status: Annotated[str, StringConstraints(pattern="^(True|False|Unknown)$")] = Field(
        description="True, False or Unknown."
    )
    observed_generation: int | None = Field(
        default=None, description="Generation of the spec that this is about."
    )
    last_transition_time: Annotated[str, StringConstraints(max_length=64)] = Field(
        description="When the status changed last, in RFC 3339."
    )
    reason: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = Field(
        description="Why, in one CamelCase word."
    )
    message: Text = Field(default="", description="Why, in a sentence, and what to do.")
