"""What the metrics port shows after what happened."""

from __future__ import annotations

from typing import Any

from llmengine_server.generation import Finish
from llmengine_server.metrics import TritonMeter
from llmengine_server.scheduler import Occupancy


class FakeMetric:
    def __init__(self) -> None:
        self.value = 0.0
        self.observed: list[float] = []

    def increment(self, value: float) -> None:
        self.value += value

    def set(self, value: float) -> None:
        self.value = value

    def observe(self, value: float) -> None:
        self.observed.append(value)


class FakeFamilies:
    """Stands for pb_utils.MetricFamily and remembers every series by name and label values."""

    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

    def __init__(self) -> None:
        self.series: dict[tuple[str, ...], FakeMetric] = {}

    def __call__(self, *, name: str, description: str, kind: Any) -> Any:
        assert description
        outer = self

        class Family:
            def Metric(self, labels: dict[str, str], **_: Any) -> FakeMetric:
                own = dict(labels)
                assert (own.pop("model"), own.pop("version")) == ("m", "1")
                metric = FakeMetric()
                outer.series[(name, *own.values())] = metric
                return metric

        return Family()


def test_series_move_with_what_happens() -> None:
    families = FakeFamilies()
    meter = TritonMeter(families, "m", "1")
    meter.first_token(0.25)
    meter.between_tokens(0.02)
    meter.ended(Finish.LENGTH, 7)
    meter.ended(Finish.REFUSED, 2)
    meter.report(Occupancy(waiting=3, prefilling=1, decoding=2, slots=8), 40)
    value = {key: metric.value for key, metric in families.series.items()}
    assert families.series[("llmengine_time_to_first_token_seconds",)].observed == [0.25]
    assert families.series[("llmengine_time_per_output_token_seconds",)].observed == [0.02]
    assert value[("llmengine_requests_total", "length")] == 1
    assert value[("llmengine_requests_total", "refused")] == 1
    assert value[("llmengine_requests_total", "stop")] == 0
    assert value[("llmengine_prompt_tokens_total",)] == 9
    assert value[("llmengine_generated_tokens_total",)] == 40
    assert value[("llmengine_queue_depth",)] == 3
    assert [value[("llmengine_slots", s)] for s in ("free", "prefill", "decode")] == [5, 1, 2]
    assert value[("llmengine_requests_per_slot",)] == 6 / 8
    assert value[("llmengine_requests_waiting_per_slot",)] == 3 / 8
    tensorrt_llm = {k[1]: v for k, v in value.items() if k[0] == "nv_trt_llm_request_metrics"}
    assert tensorrt_llm == {"waiting": 3, "context": 1, "scheduled": 3, "max": 8, "active": 3}
