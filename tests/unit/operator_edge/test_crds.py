"""What an operator says of CRDs that it cannot work with."""

from __future__ import annotations

from typing import Any

import pytest

from llmengine.api import v1alpha1
from llmengine_operator.crds import OutdatedCrdError, PendingCrdError, check_crds
from llmengine_operator.kinds import CRD, LLMENGINE, RUNTIME, Kind
from tests.unit.operator_edge.fake_kube import FakeKube


def crd(
    kind: Kind,
    revision: object = v1alpha1.SCHEMA_REVISION,
    *,
    established: str = "True",
    served: bool = True,
) -> dict[str, Any]:
    annotations = {} if revision is None else {v1alpha1.SCHEMA_REVISION_ANNOTATION: str(revision)}
    return {
        "metadata": {"name": f"{kind.plural}.{kind.group}", "annotations": annotations},
        "spec": {"versions": [{"name": kind.version, "served": served}]},
        "status": {"conditions": [{"type": "Established", "status": established}]},
    }


def installed(*crds: dict[str, Any]) -> FakeKube:
    kube = FakeKube()
    for one in crds:
        kube.put(CRD, one)
    return kube


@pytest.mark.parametrize(
    "revision",
    [
        pytest.param(v1alpha1.SCHEMA_REVISION, id="of this release"),
        pytest.param(v1alpha1.SCHEMA_REVISION + 1, id="of a later release"),
    ],
)
def test_crds_are_good_when_they_are(revision: int) -> None:
    check_crds(installed(crd(LLMENGINE, revision), crd(RUNTIME, revision)))


@pytest.mark.parametrize(
    ("kube", "says"),
    [
        pytest.param(installed(crd(RUNTIME)), "llmengines.llmengine.io is not installed", id="no"),
        pytest.param(
            installed(crd(LLMENGINE), crd(RUNTIME, v1alpha1.SCHEMA_REVISION - 1)),
            f"is of revision {v1alpha1.SCHEMA_REVISION - 1}, this operator needs",
            id="an older release",
        ),
        pytest.param(
            installed(crd(LLMENGINE, None), crd(RUNTIME)), "is of revision 0", id="no annotation"
        ),
        pytest.param(
            installed(crd(LLMENGINE, "x"), crd(RUNTIME)), "is of revision 0", id="not a number"
        ),
    ],
)
def test_the_message_names_the_crd_and_the_command(kube: FakeKube, says: str) -> None:
    with pytest.raises(OutdatedCrdError) as raised:
        check_crds(kube)
    assert says in str(raised.value)
    assert "run: helm upgrade --install llmengine-crds" in str(raised.value)


@pytest.mark.parametrize(
    "pending",
    [
        pytest.param(crd(LLMENGINE, established="False"), id="not established"),
        pytest.param(crd(LLMENGINE, served=False), id="another version is served"),
    ],
)
def test_crds_that_are_not_served_yet_are_waited_for(pending: dict[str, Any]) -> None:
    with pytest.raises(PendingCrdError, match=r"llmengines\.llmengine\.io is not served yet"):
        check_crds(installed(pending, crd(RUNTIME)))
