"""What Prometheus is told. Gauges are read when it asks, so nothing has to keep them up to date."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llmengine_operator.health import Answer

NAMESPACE = "llmengine"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# The text format has them as gauges of their own, which nobody asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The registry of one process, and what every operator has in it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._passes = Counter(
            "reconcile_total",
            "Reconcile passes, by result: success, requeue (success, due again) or error.",
            ["result"],
            namespace=NAMESPACE,
            registry=self.registry,
        )
        self._seconds = Histogram(
            "reconcile_duration_seconds",
            "How long a reconcile pass took.",
            namespace=NAMESPACE,
            registry=self.registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        )

    def observe_pass(self, *, seconds: float, error: Exception | None, again: float | None) -> None:
        result = "error" if error else "success" if again is None else "requeue"
        self._passes.labels(result).inc()
        self._seconds.observe(seconds)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A number that is asked for at each scrape."""
        self.registry.register(_AtScrape(lambda: [_gauge(name, text, value())]))

    def counters(
        self,
        name: str,
        text: str,
        labels: tuple[str, ...],
        values: Callable[[], Mapping[tuple[str, ...], float]],
    ) -> None:
        """Counts that somebody else keeps, by the values of the labels."""
        self.registry.register(_AtScrape(lambda: [_counters(name, text, labels, values())]))

    def route(self) -> Answer:
        return Answer(200, CONTENT_TYPE, generate_latest(self.registry))


class _AtScrape(Collector):
    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families()


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{NAMESPACE}_{name}", text, value=value)


def _counters(
    name: str, text: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]
) -> Metric:
    family = CounterMetricFamily(f"{NAMESPACE}_{name}", text, labels=labels)
    for label_values, value in sorted(values.items()):
        family.add_metric(label_values, value)
    return family
