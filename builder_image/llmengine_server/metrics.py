"""The server's metrics, on Triton's own metrics port.

Triton's queue and compute metrics do not move for a decoupled model; these say what it does.
"""

from __future__ import annotations

from typing import Any, Protocol

from llmengine_server.generation import Finish
from llmengine_server.scheduler import Occupancy

# Seconds. A first token may wait for a queue, a further one only for a step.
FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

_REQUEST_TYPES = ("waiting", "context", "scheduled", "max", "active")


class Metric(Protocol):
    def increment(self, value: float) -> None: ...

    def set(self, value: float) -> None: ...

    def observe(self, value: float) -> None: ...


class Family(Protocol):
    def Metric(self, **arguments: Any) -> Metric: ...  # noqa: N802 - Triton's name


class FamilyType(Protocol):
    """Triton's `pb_utils.MetricFamily`."""

    COUNTER: Any
    GAUGE: Any
    HISTOGRAM: Any

    def __call__(self, *, name: str, description: str, kind: Any) -> Family: ...


class TritonMeter:
    """Counts by way of Triton. Each change costs about 20 us."""

    def __init__(self, families: FamilyType, model: str, version: str) -> None:
        labels = {"model": model, "version": version}

        def histogram(name: str, description: str, buckets: tuple[float, ...]) -> Metric:
            family = families(name=name, description=description, kind=families.HISTOGRAM)
            self._families.append(family)
            return family.Metric(labels=labels, buckets=list(buckets))

        def series(
            name: str, description: str, kind: Any, key: str = "", values: tuple[str, ...] = ("",)
        ) -> dict[str, Metric]:
            family = families(name=name, description=description, kind=kind)
            self._families.append(family)
            return {
                value: family.Metric(labels={**labels, key: value} if key else labels)
                for value in values
            }

        # A family that Python forgets takes its metrics off the port.
        self._families: list[Family] = []
        counter, gauge = families.COUNTER, families.GAUGE
        self._first_token = histogram(
            "llmengine_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            FIRST_TOKEN_BUCKETS,
        )
        self._between_tokens = histogram(
            "llmengine_time_per_output_token_seconds",
            "Time from one token to the next, as the mean over each response.",
            TOKEN_BUCKETS,
        )
        self._ended = series(
            "llmengine_requests_total",
            "Requests that ended, by how they did.",
            counter,
            "finish",
            tuple(finish.value for finish in Finish),
        )
        self._prompt_tokens = series(
            "llmengine_prompt_tokens_total", "Prompt tokens of the requests that ended.", counter
        )[""]
        self._generated_tokens = series(
            "llmengine_generated_tokens_total", "Tokens generated.", counter
        )[""]
        self._queue = series("llmengine_queue_depth", "Requests that wait for a slot.", gauge)[""]
        self._slots = series(
            "llmengine_slots",
            "Slots of the engine, by what they do.",
            gauge,
            "state",
            ("free", "prefill", "decode"),
        )
        # For autoscalers, which compare one number with its target.
        self._per_slot = series(
            "llmengine_requests_per_slot",
            "Requests that run and wait, for each slot.",
            gauge,
        )[""]
        self._waiting_per_slot = series(
            "llmengine_requests_waiting_per_slot",
            "Requests that wait, for each slot.",
            gauge,
        )[""]
        self._requests = series(
            "nv_trt_llm_request_metrics",
            "TRT LLM request metrics",
            gauge,
            "request_type",
            _REQUEST_TYPES,
        )
        self._reported: Occupancy | None = None

    def first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)

    def between_tokens(self, seconds: float) -> None:
        self._between_tokens.observe(seconds)

    def ended(self, finish: Finish, input_tokens: int) -> None:
        self._ended[finish.value].increment(1)
        self._prompt_tokens.increment(input_tokens)

    def report(self, occupancy: Occupancy, generated: int) -> None:
        if generated:
            self._generated_tokens.increment(generated)
        if occupancy == self._reported:
            return
        self._reported = occupancy
        taken = occupancy.prefilling + occupancy.decoding
        self._queue.set(occupancy.waiting)
        self._slots["free"].set(occupancy.slots - taken)
        self._slots["prefill"].set(occupancy.prefilling)
        self._slots["decode"].set(occupancy.decoding)
        self._per_slot.set((taken + occupancy.waiting) / occupancy.slots)
        self._waiting_per_slot.set(occupancy.waiting / occupancy.slots)
        values = (occupancy.waiting, occupancy.prefilling, taken, occupancy.slots, taken)
        for request_type, value in zip(_REQUEST_TYPES, values, strict=True):
            self._requests[request_type].set(value)
