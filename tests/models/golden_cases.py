"""Which tiny models and which conversations have goldens: one reason to exist for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.models.tiny import DYNAMIC, LINEAR, LLAMA3, YARN, TinyModel

# Past the 64 positions that the scaled ropes of `tiny` were "trained" on.
CROSSING = 160


@dataclass(frozen=True)
class Case:
    """One tiny model and the length of the sequence that it is run on."""

    model: TinyModel
    length: int = 24
    window_crossed: bool = False


CASES: Mapping[str, Case] = {
    "llama": Case(TinyModel(seed=1)),
    "llama-tied": Case(TinyModel(seed=2, tied=True)),
    "llama-one-kv-head": Case(TinyModel(seed=3, kv_heads=1)),
    "llama-attention-and-mlp-biases": Case(TinyModel(seed=4, attention_bias=True, mlp_bias=True)),
    "llama-large-epsilon": Case(TinyModel(seed=5, rms_norm_eps=0.1)),
    # All that LlamaConfig has a default for; its epsilon is 1e-6.
    "llama-defaults-left-out": Case(
        TinyModel(
            seed=6,
            kv_heads=4,
            rope_spelling="rope_scaling",
            omit=(
                *("attention_bias", "head_dim", "hidden_act", "max_position_embeddings"),
                *("mlp_bias", "num_key_value_heads", "pretraining_tp", "rms_norm_eps"),
                *("rope_scaling", "rope_theta", "tie_word_embeddings", "torch_dtype", "use_cache"),
            ),
        )
    ),
    "llama-null-head-dim-and-kv-heads": Case(
        TinyModel(seed=7, kv_heads=4, config={"head_dim": None, "num_key_value_heads": None})
    ),
    "llama-bf16-sharded-unaligned": Case(
        TinyModel(seed=8, dtype="BF16", shards=3, unaligned=True, vocab_size=320)
    ),
    "llama-rope-linear": Case(
        TinyModel(seed=9, rope=LINEAR, rope_spelling="rope_scaling"), CROSSING
    ),
    "llama-rope-linear-old-type": Case(
        TinyModel(seed=10, rope=LINEAR, rope_spelling="type", rope_theta=500.0), CROSSING
    ),
    "llama-rope-llama3": Case(
        TinyModel(seed=11, rope=LLAMA3, rope_spelling="rope_scaling", rope_theta=500000.0),
        CROSSING,
    ),
    "llama-rope-llama3-parameters-tied-bf16": Case(
        TinyModel(
            seed=12,
            rope=LLAMA3,
            rope_spelling="rope_parameters",
            rope_theta=1000.0,
            tied=True,
            dtype="BF16",
            head_dim=32,
        ),
        CROSSING,
    ),
    "llama-rope-yarn": Case(
        TinyModel(seed=13, rope=YARN, rope_spelling="rope_parameters"), CROSSING
    ),
    "llama-rope-yarn-every-option": Case(
        TinyModel(
            seed=14,
            rope={
                **YARN,
                "attention_factor": 1.3,
                "beta_fast": 8.0,
                "beta_slow": 2.0,
                "truncate": False,
            },
            rope_theta=1000.0,
            head_dim=32,
        ),
        CROSSING,
    ),
    "llama-rope-dynamic-within-its-length": Case(
        TinyModel(seed=15, rope=DYNAMIC, rope_spelling="rope_scaling"), CROSSING
    ),
    "mistral": Case(TinyModel(seed=20, family="mistral", rope_theta=1e6)),
    "mistral-wide-heads-f16": Case(
        TinyModel(seed=21, family="mistral", head_dim=24, dtype="F16", unaligned=True)
    ),
    "mistral-window-just-held": Case(
        TinyModel(seed=22, family="mistral", sliding_window=48), length=48
    ),
    "mistral-window-crossed": Case(
        TinyModel(seed=22, family="mistral", sliding_window=48), length=50, window_crossed=True
    ),
    "qwen2": Case(TinyModel(seed=30, family="qwen2", rope_theta=1e6, rms_norm_eps=1e-6)),
    "qwen2-tied-bf16": Case(
        TinyModel(seed=31, family="qwen2", tied=True, dtype="BF16", heads=8, kv_heads=2)
    ),
    "qwen2-window-switched-off": Case(
        TinyModel(seed=32, family="qwen2", sliding_window=16, use_sliding_window=False), length=48
    ),
    "qwen2-window-just-held": Case(
        TinyModel(
            seed=33,
            family="qwen2",
            layers=3,
            sliding_window=48,
            use_sliding_window=True,
            max_window_layers=1,
        ),
        length=48,
    ),
    "qwen2-rope-yarn-old-type": Case(
        TinyModel(seed=34, family="qwen2", rope=YARN, rope_spelling="type", rope_theta=1e6),
        CROSSING,
    ),
    "qwen3": Case(TinyModel(seed=40, family="qwen3", rope_theta=1e6, rms_norm_eps=1e-6)),
    "qwen3-tied-bf16-sharded": Case(
        TinyModel(seed=41, family="qwen3", tied=True, dtype="BF16", shards=2, unaligned=True)
    ),
    "qwen3-attention-biases": Case(TinyModel(seed=42, family="qwen3", attention_bias=True)),
    # Qwen3Config's default is 128, not the quotient that the other families take.
    "qwen3-head-dim-left-out": Case(
        TinyModel(
            seed=43, family="qwen3", layers=1, heads=2, kv_heads=1, head_dim=128, omit=("head_dim",)
        )
    ),
    "qwen3-rope-yarn": Case(
        TinyModel(seed=44, family="qwen3", rope=YARN, rope_spelling="rope_parameters"), CROSSING
    ),
}

_FACTS = " ".join(
    f"Room {i} of the museum holds {i * 7} paintings and {i * 3 + 1} statues." for i in range(1, 28)
)

CONVERSATIONS: Mapping[str, list[dict[str, str]]] = {
    "a-question": [{"role": "user", "content": "What is gravity?"}],
    "an-answer-that-ends": [{"role": "user", "content": "What is the capital of France?"}],
    "code": [{"role": "user", "content": "Write a Python function that returns the n-th prime.\n"}],
    "digits-and-scripts": [
        {"role": "user", "content": "Is 1234567 > 89.5?  Überprüfe: 東京 ½ 🙂\n\n\tdon't SHOUT"}
    ],
    "several-turns": [
        {"role": "system", "content": "You answer like a sailor."},
        {"role": "user", "content": "Good morning!"},
        {"role": "assistant", "content": "Ahoy! What be ye needin'?"},
        {"role": "user", "content": "Which three books should I take aboard, and why?"},
    ],
    # More tokens than a prefill chunk of 512.
    "a-long-prompt": [
        {"role": "user", "content": f"{_FACTS} Write a long letter about a day in this museum."}
    ],
}
