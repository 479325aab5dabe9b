"""The installed CRDs are at least as new as this operator: older ones drop fields in silence.

Helm does not upgrade CRDs together with the chart that needs them.
"""

from __future__ import annotations

from typing import Any

from llmengine.api.v1alpha1 import SCHEMA_REVISION, SCHEMA_REVISION_ANNOTATION
from llmengine_operator.kinds import CRD, LLMENGINE, RUNTIME, Kind
from llmengine_operator.kube import Kube
from llmengine_operator.kube_errors import NotFoundError

COMMAND = (
    "helm upgrade --install llmengine-crds charts/llmengine-crds --namespace llmengine-system"
    " --create-namespace"
)


class OutdatedCrdError(Exception):
    """A CRD is missing or too old; the message says which, and what to run."""


class PendingCrdError(Exception):
    """A CRD was installed a moment ago and is not served yet."""


def check_crds(kube: Kube) -> None:
    """Raises OutdatedCrdError, PendingCrdError, or KubeError when they cannot be read."""
    for kind in (LLMENGINE, RUNTIME):
        name = f"{kind.plural}.{kind.group}"
        try:
            crd = kube.get(CRD, None, name)
        except NotFoundError:
            raise OutdatedCrdError(f"the CRD {name} is not installed; run: {COMMAND}") from None
        revision = _revision(crd)
        if revision < SCHEMA_REVISION:
            raise OutdatedCrdError(
                f"the CRD {name} is of revision {revision}, this operator needs {SCHEMA_REVISION};"
                f" run: {COMMAND}"
            )
        if not _served(crd, kind):
            raise PendingCrdError(f"the CRD {name} is not served yet")


def _revision(crd: dict[str, Any]) -> int:
    value = (crd["metadata"].get("annotations") or {}).get(SCHEMA_REVISION_ANNOTATION, "0")
    return int(value) if value.isdecimal() else 0


def _served(crd: dict[str, Any], kind: Kind) -> bool:
    conditions = (crd.get("status") or {}).get("conditions") or ()
    established = any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
    return established and any(
        v["name"] == kind.version and v["served"] for v in crd["spec"]["versions"]
    )
