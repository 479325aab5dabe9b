"""Rope frequencies, against the same formulas written another way."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmengine_builder.graph.config import Config
from llmengine_builder.graph.rope import read_rope
from llmengine_builder.reference import Reference
from tests.models.tiny import TinyModel

LENGTHS = st.sampled_from([64, 2048, 8192])
FACTORS = st.floats(1.0, 64.0)
ROPES = st.one_of(
    st.just({"rope_type": "default"}),
    st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": FACTORS}),
    st.fixed_dictionaries({"rope_type": st.just("dynamic"), "factor": FACTORS}),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("llama3"),
            "factor": FACTORS,
            "low_freq_factor": st.floats(0.5, 2.0),
            "high_freq_factor": st.floats(2.5, 8.0),
        },
        optional={"original_max_position_embeddings": LENGTHS},
    ),
    st.fixed_dictionaries(
        {"rope_type": st.just("yarn"), "factor": FACTORS},
        optional={
            "original_max_position_embeddings": LENGTHS,
            "attention_factor": st.floats(0.5, 2.0),
            "beta_fast": st.floats(8.0, 64.0),
            "beta_slow": st.floats(0.5, 4.0),
            "mscale": st.floats(0.5, 2.0),
            "mscale_all_dim": st.floats(0.5, 2.0),
            "truncate": st.booleans(),
        },
    ),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rope=ROPES,
    theta=st.sampled_from([500.0, 10000.0, 1e6]),
    head_dim=st.sampled_from([16, 24, 64, 128]),
    spelling=st.sampled_from(["rope_scaling", "rope_parameters"]),
)
def test_graph_and_reference_agree_on_every_rope(
    rope: dict[str, Any],
    theta: float,
    head_dim: int,
    spelling: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    values = {
        "architectures": ["LlamaForCausalLM"],
        "num_attention_heads": 1,
        "head_dim": head_dim,
        "max_position_embeddings": 4096,
        "rope_theta": theta,
        spelling: rope,
    }
    mine = read_rope(Config(values), head_dim, 4096)
    folder = tmp_path_factory.mktemp("model")
    TinyModel().write(folder)
    (folder / "config.json").write_text(json.dumps(values))
    theirs = Reference(folder)
    # Float32 in another order: a share of two frequencies keeps fewer digits than each of them.
    np.testing.assert_allclose(mine.frequencies, theirs.frequencies, rtol=1e-5)
    assert mine.amplitude == pytest.approx(theirs.amplitude, rel=1e-6)


# The settings of Llama 3.2 1B.
LLAMA_3_2 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_bands_of_llama3_are_kept_blended_and_divided() -> None:
    values = {"rope_theta": 500000.0, "rope_scaling": LLAMA_3_2}
    scaled = np.array(read_rope(Config(values), 64, 131072).frequencies)
    plain = np.array(read_rope(Config({"rope_theta": 500000.0}), 64, 131072).frequencies)
    turns = 8192 * plain / (2 * np.pi)
    np.testing.assert_array_equal(scaled[turns > 4], plain[turns > 4])
    np.testing.assert_allclose(scaled[turns < 1], plain[turns < 1] / 32, rtol=1e-6)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert (scaled[between] < plain[between]).all()
    assert (scaled[between] > plain[between] / 32).all()


def test_both_spellings_mean_the_same() -> None:
    old = {"rope_theta": 500000.0, "rope_scaling": {**LLAMA_3_2, "type": "llama3"}}
    new = {"rope_parameters": {**LLAMA_3_2, "rope_theta": 500000.0}}
    assert read_rope(Config(old), 64, 131072) == read_rope(Config(new), 64, 131072)


def test_settings_that_are_null_are_as_good_as_missing() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "attention_factor": None, "mscale": None}
    assert read_rope(Config({"rope_scaling": yarn}), 64, 4096) == read_rope(
        Config({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), 64, 4096
    )


def test_the_first_pair_turns_one_radian_a_token_and_the_last_the_slowest() -> None:
    frequencies = read_rope(Config({}), 128, 4096).frequencies
    assert len(frequencies) == 64
    assert frequencies[0] == 1.0
    assert frequencies[-1] == pytest.approx(10000 ** (-126 / 128), rel=1e-6)
    assert list(frequencies) == sorted(frequencies, reverse=True)
