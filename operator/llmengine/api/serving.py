"""How an engine is served: `spec.serving`, none of which goes into the engine key."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints

from llmengine.api.schema import (
    INT_OR_STRING,
    ApiModel,
    Name,
    NodeSelector,
    PodCount,
    Resources,
    Toleration,
    cel,
    matching,
    rules,
    sentence,
)


def _per_slot(limit: int) -> dict[str, Any]:
    """`json_schema_extra` of requests for each slot: more than 0, and less than `limit`, the most
    that a server ever has."""
    return {
        INT_OR_STRING: True,
        "maxLength": 32,
        **rules(
            cel(
                f"type(self) == int ? self > 0 && self < {limit} : isQuantity(self)"
                " && quantity(self).isGreaterThan(quantity('0'))"
                f" && quantity(self).isLessThan(quantity('{limit}'))",
                f"not a number of requests for each slot: write more than 0 and less than {limit},"
                " such as 500m",
            )
        ),
    }


# A server queues 4 requests for each slot, and refuses what comes beyond.
WaitingPerSlot = Annotated[
    int | Annotated[str, StringConstraints(max_length=32)], Field(json_schema_extra=_per_slot(4))
]
RequestsPerSlot = Annotated[
    int | Annotated[str, StringConstraints(max_length=32)], Field(json_schema_extra=_per_slot(5))
]
_CPU_UTILIZATION = 80


class Autoscaling(ApiModel):
    """A HorizontalPodAutoscaler for each architecture. Of several targets, the one that takes the
    most pods counts."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
                "must not exceed maxReplicas: lower it, or raise maxReplicas",
                field="minReplicas",
            )
        )
    )

    min_replicas: int = Field(default=1, ge=1, le=1000, description="The fewest pods to run.")
    max_replicas: int = Field(
        ge=1,
        le=1000,
        description="The most pods to run.",
        json_schema_extra=sentence("give the most pods to run, such as 4"),
    )
    target_cpu_utilization: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        alias="targetCPUUtilization",
        description="Mean CPU use that is aimed at, in percent of what the pods request (80 when no"
        " target is set).",
    )
    target_requests_per_slot: RequestsPerSlot | None = Field(
        default=None,
        description="Requests that run and wait, for each slot, that are aimed at, such as 800m."
        " Needs a custom metrics adapter.",
    )
    target_requests_waiting_per_slot: WaitingPerSlot | None = Field(
        default=None,
        description="Requests that wait, for each slot, that are aimed at, such as 500m. Needs a"
        " custom metrics adapter.",
    )

    @property
    def cpu_utilization(self) -> int | None:
        """The target for CPU use, in percent; None where it does not count."""
        others = (self.target_requests_per_slot, self.target_requests_waiting_per_slot)
        if self.target_cpu_utilization is None and all(other is None for other in others):
            return _CPU_UTILIZATION
        return self.target_cpu_utilization


class RolloutStrategy(StrEnum):
    AUTO = "Auto"
    SURGE = "Surge"
    REPLACE = "Replace"


def _is_zero(field: str) -> str:
    return f"(type(self.{field}) == int ? self.{field} == 0 : self.{field} == '0%')"


class RolloutOptions(ApiModel):
    """How new pods take the place of old ones."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "self.strategy != 'Replace' || !has(self.maxSurge)",
                "strategy Replace makes no pod beside the old ones: remove maxSurge, or write"
                " strategy Surge",
                field="maxSurge",
                reason="FieldValueForbidden",
            ),
            cel(
                f"self.strategy == 'Replace' || !has(self.maxSurge) || !{_is_zero('maxSurge')}",
                "must be more than 0, unless the strategy is Replace",
                field="maxSurge",
            ),
            cel(
                "self.strategy != 'Replace' || !has(self.maxUnavailable)"
                f" || !{_is_zero('maxUnavailable')}",
                "must be more than 0 with strategy Replace: an old pod has to go before a new one"
                " can come",
                field="maxUnavailable",
            ),
        )
    )

    strategy: RolloutStrategy = Field(
        default=RolloutStrategy.AUTO,
        description="Surge: new pods are made beside the old ones. Replace: old pods make room"
        " first, and need no spare GPU. Auto: Surge, and Replace from the moment that the nodes"
        " have no room beside the old pods.",
    )
    max_surge: PodCount | None = Field(
        default=None,
        description="Pods beside the wanted ones, as a number or a share of them (1 when unset).",
    )
    max_unavailable: PodCount | None = Field(
        default=None,
        description="Pods that may be missing, as a number or a share. Unset: 0, and 1 when old"
        " pods make room first.",
    )
    progress_deadline_seconds: int = Field(
        default=600,
        ge=30,
        le=86400,
        description="Seconds without progress after which a rollout is Stalled; where old pods make"
        " room first, beside their grace period. The old pods go on serving.",
    )


class ServingOptions(ApiModel):
    """How the engine is served. Nothing here changes the engine."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(
                "!(has(self.replicas) && has(self.autoscaling))",
                "with autoscaling, the number of pods is the autoscaler's: remove replicas or"
                " autoscaling",
                field="replicas",
                reason="FieldValueForbidden",
            )
        )
    )

    replicas: int | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="Pods for each architecture (1 when neither this nor autoscaling is set).",
    )
    autoscaling: Autoscaling | None = None
    model_name: Annotated[str, StringConstraints(max_length=128)] | None = Field(
        default=None,
        description="The model's name in Triton. Unset: metadata.name.",
        json_schema_extra=matching(
            "^[A-Za-z0-9][A-Za-z0-9_.-]*$",
            "not a name for a model: write letters, digits, _, . and -, beginning with a letter"
            " or digit",
        ),
    )
    resources: Resources | None = Field(
        default=None,
        description="Requests and limits of the server container. Unset: those of the runtime.",
    )
    node_selector: NodeSelector = Field(
        default_factory=dict, description="Labels of the nodes that may serve."
    )
    tolerations: list[Toleration] = Field(
        default_factory=list, max_length=32, description="Taints that server pods tolerate."
    )
    rollout: RolloutOptions = Field(default_factory=RolloutOptions)
    priority_class_name: Name | None = Field(
        default=None, description="PriorityClass of server pods."
    )
    termination_grace_period_seconds: int | None = Field(
        default=None,
        ge=15,
        le=86400,
        description="Seconds from a pod's notice to its end; running generations get all but"
        " eleven of them to finish. Unset: enough for the longest generation, by the speed that the"
        " build measured (60 where it measured none).",
    )
