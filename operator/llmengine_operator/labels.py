"""Labels and annotations of the objects that the operator makes.

A label value takes 63 characters and a key has 64: labels carry a prefix, the annotation the rest.
"""

from __future__ import annotations

from enum import StrEnum

from llmengine.api.v1alpha1 import GROUP

MANAGED_BY = "app.kubernetes.io/managed-by"
OPERATOR = "llmengine-operator"
MANAGED = {MANAGED_BY: OPERATOR}


class Label(StrEnum):
    ENGINE = f"{GROUP}/engine"
    ARCHITECTURE = f"{GROUP}/architecture"
    TRACK = f"{GROUP}/track"
    KEY = f"{GROUP}/key"


class Annotation(StrEnum):
    KEY = f"{GROUP}/engine-key"
    ARCHITECTURE = f"{GROUP}/engine-architecture"
    ATTEMPT = f"{GROUP}/attempt"
    TRIES_LEFT = f"{GROUP}/tries-left"
    OPTIONS = f"{GROUP}/build-options"
    REQUEST = f"{GROUP}/requested-at"
    REQUESTED_BY = f"{GROUP}/requested-by"
    APPLIED = f"{GROUP}/applied"


def key_label(key: str) -> str:
    """The prefix of a key that serves as a label value."""
    return key[:40]
