"""An engine's key names the format of its graph, so equal formats must mean equal graphs."""

from __future__ import annotations

import json

import pytest

from llmengine.key import FORMAT
from tests.unit.graph.digests import RECORDED, digests


def test_graphs_are_those_that_were_recorded_for_this_format() -> None:
    recorded = json.loads(RECORDED.read_text())
    if recorded["format"] != FORMAT:
        pytest.fail(
            f"digests are of format {recorded['format']}, and llmengine.key.FORMAT is {FORMAT}:"
            " record them with 'python -m tests.unit.graph.digests'"
        )
    assert digests() == recorded["digests"], (
        "graphs have changed: engines in stores would be taken for what they are not. Raise"
        " llmengine.key.FORMAT, add it to READABLE_FORMATS, and record the digests with"
        " 'python -m tests.unit.graph.digests'"
    )
