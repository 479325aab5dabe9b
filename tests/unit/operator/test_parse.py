"""What the API server has, read as records."""

from __future__ import annotations

from llmengine_operator.parse import parse_engine
from tests.unit.operator.world import engine_spec


def test_a_request_is_cut_to_what_the_status_that_echoes_it_may_hold() -> None:
    engine = parse_engine(
        {
            "metadata": {
                "namespace": "team",
                "name": "chat",
                "uid": "u",
                "generation": 1,
                "creationTimestamp": "2026-11-24T12:00:00Z",
                "annotations": {"llmengine.io/requested-at": "x" * 300},
            },
            "spec": engine_spec(),
        }
    )
    assert engine.requested_at == "x" * 253
