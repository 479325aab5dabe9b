"""Kubernetes Events: what they say, and which of them say the same again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from llmengine_operator.kinds import EVENT

EventType: TypeAlias = Literal["Normal", "Warning"]

# Limits of events.k8s.io/v1: an object that passes one is refused.
NOTE_LENGTH = 1024
ACTION_LENGTH = 128
NAME_LENGTH = 253


def micro_time(now: datetime) -> str:
    """A MicroTime of the API. `now` is in UTC."""
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def event_about(
    regarding: Mapping[str, Any],
    *,
    type: EventType,
    reason: str,
    action: str,
    note: str,
    controller: str,
    instance: str,
    now: datetime,
) -> dict[str, Any]:
    """An Event about an object, which has apiVersion, kind and metadata with its uid."""
    metadata = regarding["metadata"]
    # Events about cluster-scoped objects lie in the default namespace, as everyone's do.
    namespace = metadata.get("namespace") or "default"
    suffix = f".{int(now.timestamp() * 1e6):x}"
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {
            "namespace": namespace,
            "name": metadata["name"][: NAME_LENGTH - len(suffix)] + suffix,
        },
        "eventTime": micro_time(now),
        "reportingController": controller,
        "reportingInstance": instance[:128],
        "type": type,
        "reason": reason,
        "action": action[:ACTION_LENGTH],
        "note": note if len(note) <= NOTE_LENGTH else note[: NOTE_LENGTH - 1] + "…",
        "regarding": {
            "apiVersion": regarding["apiVersion"],
            "kind": regarding["kind"],
            "name": metadata["name"],
            "uid": metadata["uid"],
            **({"namespace": metadata["namespace"]} if metadata.get("namespace") else {}),
        },
    }


@dataclass
class _Posted:
    name: str
    count: int


class PostedEvents:
    """The events of late, so that one that repeats is counted up instead of posted again."""

    def __init__(self, capacity: int = 1024) -> None:
        self._capacity = capacity
        self._posted: OrderedDict[tuple[str, ...], _Posted] = OrderedDict()

    def record(self, event: Mapping[str, Any]) -> tuple[str, int]:
        """Under which name this event was posted first, and how often it was seen with this."""
        key = _sameness(event)
        posted = self._posted.setdefault(key, _Posted(event["metadata"]["name"], 0))
        self._posted.move_to_end(key)
        posted.count += 1
        if len(self._posted) > self._capacity:
            self._posted.popitem(last=False)
        return posted.name, posted.count

    def forget(self, event: Mapping[str, Any]) -> None:
        """The event is not there any more, or never was: the next one like it is the first."""
        self._posted.pop(_sameness(event), None)


def _sameness(event: Mapping[str, Any]) -> tuple[str, ...]:
    parts = ("type", "reason", "action", "note")
    return (event["regarding"]["uid"], *(event[part] for part in parts))
