"""Carries a plan out by server-side apply, under one field manager; writes nothing that is so."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from llmengine_operator.decision import Action, Apply, ApplyDeployment, Delete, Scale
from llmengine_operator.kinds import DEPLOYMENT, HPA, PDB, SERVICE
from llmengine_operator.kube import FIELD_MANAGER, Kube
from llmengine_operator.kube_errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
)
from llmengine_operator.labels import Annotation
from llmengine_operator.observation import Found, KubeObject, Observation
from llmengine_operator.reasons import Reason
from llmengine_operator.targets import Problem

log = logging.getLogger(__name__)

# A quota or a policy is mended unseen.
REFUSED_POLL = timedelta(minutes=1)
_KINDS = {kind.kind: kind for kind in (DEPLOYMENT, SERVICE, HPA, PDB)}
# Owns spec.replicas from a Deployment's first moment, so that FIELD_MANAGER never does.
REPLICAS_MANAGER = f"{FIELD_MANAGER}-replicas"


@dataclass(frozen=True)
class Applied:
    """Names of the Deployments that are not as they were read, and the first refusal, if any."""

    deployments: frozenset[str]
    refused: Problem | None


class Applier:
    """Shared by all workers."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    def apply(self, observation: Observation, actions: Iterable[Action]) -> Applied:
        """Every action. Raises KubeError when the API server cannot be reached.

        What the API server refuses (an invalid object, a quota, a policy) becomes `refused`; the
        other actions are carried out all the same.
        """
        written: set[str] = set()
        refused: Problem | None = None
        for action in actions:
            try:
                if self._carry_out(observation, action):
                    written |= _deployments(action)
            except (InvalidError, ForbiddenError) as error:
                log.warning("%s", error)
                refused = refused or Problem(
                    Reason.APPLY_REFUSED,
                    f"cannot {error.what}: {error.message}",
                    look_again=REFUSED_POLL,
                )
            except (NotFoundError, ConflictError) as error:
                log.info("left to the next pass, for it was changed meanwhile: %s", error)
                written |= _deployments(action)
        return Applied(frozenset(written), refused)

    def _carry_out(self, observation: Observation, action: Action) -> bool:
        """Whether anything was written."""
        match action:
            case Apply(obj) | ApplyDeployment(obj):
                return self._write(observation, action, obj)
            case Scale(namespace, name, replicas):
                self._kube.scale(DEPLOYMENT, namespace, name, replicas)
            case Delete(kind, namespace, name, uid):
                self._kube.delete(_KINDS[kind], namespace, name, uid=uid)
        return True

    def _write(self, observation: Observation, action: Action, obj: Mapping[str, Any]) -> bool:
        kind = _KINDS[obj["kind"]]
        stamped = _stamped(obj)
        child = observation.children.get((kind.kind, obj["metadata"]["name"]))
        found = child.value if isinstance(child, Found) else None
        if isinstance(action, ApplyDeployment) and found is None:
            with_replicas = {**stamped, "spec": {**stamped["spec"], "replicas": action.initial}}
            self._kube.apply(DEPLOYMENT, with_replicas, manager=REPLICAS_MANAGER)
            self._hand_over(stamped, action.initial)
        elif isinstance(action, ApplyDeployment) and found is not None and _half_made(found):
            self._hand_over(stamped, found["spec"]["replicas"])
        elif found is None or not _covers(found, stamped):
            self._kube.apply(kind, stamped)
        else:
            return False
        return True

    def _hand_over(self, obj: Mapping[str, Any], replicas: int) -> None:
        """The second and third of the three applies that make a Deployment: the whole with
        replicas, the whole without, then replicas alone.

        Server-side apply resets a field to its default when its last owner gives it up, and what
        a plain create sets can never be taken out by a later apply.
        """
        made = self._kube.apply(DEPLOYMENT, obj)
        # The uid, or this would be an attempt to make one that was deleted a moment ago.
        identity = {key: made["metadata"][key] for key in ("name", "namespace", "uid")}
        self._kube.apply(
            DEPLOYMENT,
            {"metadata": identity, "spec": {"replicas": replicas}},
            manager=REPLICAS_MANAGER,
        )


def _deployments(action: Action) -> set[str]:
    """Names of the Deployments that an action changes."""
    match action:
        case ApplyDeployment(obj):
            return {obj["metadata"]["name"]}
        case Scale(_, name):
            return {name}
    return set()


def _half_made(deployment: KubeObject) -> bool:
    """Whether a crash has left the manager of replicas with all the rest, which it would keep."""
    return any(
        entry.get("manager") == REPLICAS_MANAGER and "f:metadata" in entry.get("fieldsV1", {})
        for entry in deployment["metadata"].get("managedFields", [])
    )


def _stamped(obj: Mapping[str, Any]) -> dict[str, Any]:
    """The object with a digest of itself: a field that we no longer set is a difference, too."""
    digest = hashlib.sha256(json.dumps(obj, sort_keys=True).encode()).hexdigest()[:16]
    metadata = obj["metadata"]
    annotations = {**metadata.get("annotations", {}), Annotation.APPLIED: digest}
    return {**obj, "metadata": {**metadata, "annotations": annotations}}


def _covers(observed: Any, desired: Any) -> bool:
    """Whether the API server's object already has everything that we would write."""
    if observed is None and desired in ("", [], {}):
        return True  # it leaves out what is empty
    if isinstance(desired, Mapping):
        return isinstance(observed, Mapping) and all(
            _covers(observed.get(key), value) for key, value in desired.items()
        )
    if isinstance(desired, list):
        # In this order, with what others have put between, such as a sidecar.
        rest: Iterator[Any] = iter(observed if isinstance(observed, list) else ())
        return all(any(_covers(entry, wanted) for entry in rest) for wanted in desired)
    return bool(observed == desired) or _same_quantity(observed, desired)


def _same_quantity(one: Any, other: Any) -> bool:
    """The API server writes `1024Mi` as `1Gi`."""
    try:
        return _quantity(one) == _quantity(other)
    except (ValueError, InvalidOperation, TypeError):
        return False


def _quantity(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError("not a quantity")
    parsed: Decimal = parse_quantity(value)  # type: ignore[no-untyped-call]
    return parsed
