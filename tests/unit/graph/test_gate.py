"""Nothing of a model is ignored: what is not understood is refused, by name, with a way out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from llmengine.api.v1alpha1 import DType
from llmengine.requests import BuildReason
from llmengine_builder.errors import BadInputError, BuildError, UnsupportedError
from llmengine_builder.graph import Model, read_model
from tests.models import safetensors_file
from tests.models.tiny import DYNAMIC, LLAMA3, YARN, Family, TinyModel

FAMILIES: tuple[Family, ...] = ("llama", "mistral", "qwen2", "qwen3")


def understand(model: TinyModel, folder: Path, dtype: DType = DType.FLOAT32) -> Model:
    """Read a model and write its graph, which is where tensors are checked."""
    understood = read_model(model.write(folder / "model"))
    understood.graph(dtype, "inputs")
    return understood


def with_config(**changes: Any) -> TinyModel:
    return TinyModel(config=changes)


UNSUPPORTED = [
    pytest.param(
        with_config(architectures=["GemmaForCausalLM"]),
        r"architecture is GemmaForCausalLM; supported are LlamaForCausalLM, MistralForCausalLM,"
        r" Qwen2ForCausalLM, Qwen3ForCausalLM$",
        id="another family",
    ),
    pytest.param(
        with_config(architectures=["LlamaForSequenceClassification"]),
        "architecture is LlamaForSequenceClassification",
        id="another head on a known family",
    ),
    pytest.param(
        TinyModel(omit=("architectures",)), "must name one architecture", id="no architecture"
    ),
    pytest.param(
        with_config(architectures=["LlamaForCausalLM", "Other"]),
        "must name one architecture",
        id="two architectures",
    ),
    pytest.param(
        with_config(model_type="gemma"),
        "names LlamaForCausalLM but has model_type 'gemma'",
        id="a type that contradicts the architecture",
    ),
    pytest.param(
        with_config(hidden_act="gelu"), "hidden_act is gelu; supported is silu", id="gelu"
    ),
    pytest.param(
        with_config(quantization_config={"quant_method": "gptq", "bits": 4}),
        r"weights are quantized \(gptq\): give the checkpoint before quantization",
        id="quantized weights",
    ),
    pytest.param(
        with_config(auto_map={"AutoModelForCausalLM": "modeling_x.X"}),
        r"auto_map \(AutoModelForCausalLM\): the model brings code",
        id="code of its own",
    ),
    pytest.param(
        TinyModel(rope={"rope_type": "longrope", "short_factor": [1.0]}),
        "rope type is longrope; supported are default, linear, dynamic, llama3, yarn",
        id="longrope",
    ),
    pytest.param(
        TinyModel(rope={"rope_type": "linear", "factor": 2.0, "mrope_section": [4, 4]}),
        r"rope_parameters of config.json has mrope_section = \[4, 4\], which rope type linear",
        id="a rope setting that its type does not have",
    ),
    pytest.param(
        TinyModel(rope={"factor": 2.0}),
        "factor = 2.0, which rope type default does not take",
        id="a factor without a type",
    ),
    pytest.param(
        with_config(rope_parameters={"full_attention": {"rope_type": "default"}}),
        r"differs between layers \(full_attention\)",
        id="rope that differs between layers",
    ),
    pytest.param(
        with_config(partial_rotary_factor=0.5),
        r"only a part of each head \(partial_rotary_factor = 0.5\)",
        id="partial rotary",
    ),
    pytest.param(
        TinyModel(rope={"partial_rotary_factor": 0.25}),
        r"only a part of each head \(partial_rotary_factor = 0.25\)",
        id="partial rotary within the rope settings",
    ),
    pytest.param(
        TinyModel(family="qwen3", config={"layer_types": ["full_attention", "linear_attention"]}),
        "layers of type linear_attention; supported are full_attention and sliding_attention",
        id="layers of another type",
    ),
    *(
        pytest.param(
            with_config(**{key: value}),
            f"config.json has {key} = .*, which this release does not know and whose name says",
            id=f"{key}",
        )
        for key, value in {
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.0156,
            "logits_scaling": 8.0,
            "logit_scale": 0.0625,
            "query_pre_attn_scalar": 256,
            "qk_layernorm": True,
            "use_qk_norm": True,
            "no_rope_layers": [1, 0],
            "num_local_experts": 8,
            "sliding_window_pattern": 6,
            "clip_qkv": 8.0,
            "attention_bias_type": "alibi",
            "hidden_activation": "gelu_pytorch_tanh",
            "mlp_act": "relu2",
            "kv_lora_rank": 512,
            "attention_sinks": 4,
            "use_mrope": True,
            "quantization": {"bits": 4},
            "sliding_window": 64,
        }.items()
    ),
]


@pytest.mark.parametrize(("model", "sentence"), UNSUPPORTED)
def test_what_is_not_understood_is_refused(model: TinyModel, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=sentence) as caught:
        understand(model, tmp_path)
    assert caught.value.reason == BuildReason.MODEL_UNSUPPORTED


BAD_INPUT = [
    *(
        pytest.param(
            TinyModel(omit=(key,)), f"config.json lacks {key}: add it", id=f"{key} is missing"
        )
        for key in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        )
    ),
    pytest.param(
        with_config(num_hidden_layers="2"),
        'num_hidden_layers = "2", which must be an integer',
        id="a number in quotes",
    ),
    pytest.param(
        with_config(num_hidden_layers=True), "which must be an integer", id="true for a number"
    ),
    pytest.param(with_config(rms_norm_eps=0), "must be a positive number", id="an epsilon of 0"),
    pytest.param(
        with_config(tie_word_embeddings="yes"), "must be true or false", id="text for a flag"
    ),
    pytest.param(with_config(hidden_act=None), "hidden_act = null, which must be text", id="null"),
    pytest.param(with_config(rope_scaling="yarn"), "must be an object", id="text for an object"),
    pytest.param(
        with_config(num_key_value_heads=3),
        "4 attention heads, which 3 key-value heads cannot share evenly",
        id="heads that do not divide",
    ),
    pytest.param(with_config(head_dim=15), "odd length 15", id="an odd head"),
    pytest.param(
        with_config(rope_theta=500.0),
        "contradicts itself: rope_theta is 10000.0 in rope_parameters and 500.0 in config.json",
        id="two thetas",
    ),
    pytest.param(
        TinyModel(rope=LLAMA3, config={"original_max_position_embeddings": 32}),
        "original_max_position_embeddings is 64 in rope_parameters and 32 in config.json",
        id="two original lengths",
    ),
    pytest.param(
        TinyModel(rope={**YARN, "type": "linear"}),
        "contradicts itself: type is 'linear', rope_type 'yarn'",
        id="two rope types",
    ),
    pytest.param(
        TinyModel(rope={"rope_type": "llama3", "factor": 8.0}),
        "rope_parameters of config.json lacks low_freq_factor: add it",
        id="incomplete rope settings",
    ),
    pytest.param(
        TinyModel(rope={**YARN, "factor": "4"}),
        "factor = '4', which must be a positive number",
        id="a rope factor in quotes",
    ),
    pytest.param(
        TinyModel(rope={**LLAMA3, "low_freq_factor": 4.0}),
        "low_freq_factor 4.0 >= high_freq_factor 4.0",
        id="rope bands that cross",
    ),
    pytest.param(
        with_config(num_hidden_layers=3),
        r"tensor model.layers.2.input_layernorm.weight is missing from model.safetensors",
        id="a layer without tensors",
    ),
    pytest.param(
        TinyModel(tied=True, config={"tie_word_embeddings": False}),
        r"tensor lm_head.weight is missing from model.safetensors, though config.json calls for it",
        id="an untied head that is not there",
    ),
    pytest.param(
        with_config(intermediate_size=100),
        r"mlp.gate_proj.weight of model.safetensors has shape \[96, 64\], but config.json makes it"
        r" \[100, 64\]",
        id="a shape that config.json contradicts",
    ),
]


@pytest.mark.parametrize(("model", "sentence"), BAD_INPUT)
def test_what_cannot_be_is_refused(model: TinyModel, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=sentence) as caught:
        understand(model, tmp_path)
    assert caught.value.reason == BuildReason.MODEL_INVALID


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param(None, "has no config.json: add it", id="no file"),
        pytest.param("{", "config.json is no JSON", id="no JSON"),
        pytest.param("[]", "config.json is not an object", id="a list"),
    ],
)
def test_a_folder_without_a_readable_config_is_refused(
    text: str | None, sentence: str, tmp_path: Path
) -> None:
    folder = TinyModel().write(tmp_path / "model")
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(BadInputError, match=sentence):
        read_model(folder)


HARMLESS = {
    "_name_or_path": "someone/model",
    "attention_dropout": 0.1,
    "attn_logit_softcapping": None,
    "auto_map": {},
    "cross_attention_hidden_size": None,
    "embedding_multiplier": 1.0,
    "id2label": {"0": "LABEL_0"},
    "is_llama_config": True,
    "logit_scale": 1,
    "neftune_noise_alpha": 5.0,
    "num_local_experts": 0,
    "output_router_logits": False,
    "quantization_config": None,
    "rope_interleaved": False,
    "temperature": 0.6,
    "top_k": 50,
    "transformers.js_config": {"dtype": "q4"},
    "transformers_version": "4.57.1",
    "unsloth_version": "2025.1",
    "use_mrope": False,
    "use_sliding_window_somewhere": False,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_remarks_and_neutral_values_are_accepted(family: Family, tmp_path: Path) -> None:
    plain = understand(TinyModel(family=family), tmp_path / "plain")
    remarked = understand(TinyModel(family=family, config=HARMLESS), tmp_path / "remarked")
    assert remarked.decoder == plain.decoder
    assert remarked.graph(DType.FLOAT32, "inputs") == plain.graph(DType.FLOAT32, "inputs")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tensor_without_a_place_is_refused_by_name(family: Family, tmp_path: Path) -> None:
    model = TinyModel(family=family, extra_tensors={"model.layers.1.adapter.weight": (2, 3)})
    with pytest.raises(
        UnsupportedError,
        match=f"tensor model.layers.1.adapter.weight of model.safetensors has no place in a"
        f" {family} model",
    ):
        understand(model, tmp_path)


def test_a_bias_that_the_config_does_not_announce_is_refused(tmp_path: Path) -> None:
    model = TinyModel(attention_bias=True, config={"attention_bias": False})
    with pytest.raises(UnsupportedError, match=r"self_attn.k_proj.bias of .* would be ignored"):
        understand(model, tmp_path)


def test_a_layer_beyond_the_last_is_refused(tmp_path: Path) -> None:
    model = TinyModel(layers=3, config={"num_hidden_layers": 2})
    with pytest.raises(UnsupportedError, match=r"tensor model.layers.2\."):
        understand(model, tmp_path)


def test_stored_rotary_frequencies_are_on_the_ignore_list(tmp_path: Path) -> None:
    derived = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": (8,) for i in range(2)}
    understand(TinyModel(extra_tensors=derived), tmp_path)


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(tmp_path: Path) -> None:
    model = TinyModel(tied=True)
    folder = model.write(tmp_path / "model")
    tensors = model.tensors()
    head = dataclasses.replace(tensors[0], name="lm_head.weight")
    safetensors_file.write(folder / "model.safetensors", [*tensors, head], "F32")
    read_model(folder).graph(DType.FLOAT32, "inputs")


def test_a_tied_head_that_differs_from_the_embedding_is_refused(tmp_path: Path) -> None:
    model = TinyModel(config={"tie_word_embeddings": True})
    with pytest.raises(UnsupportedError, match=r"lm_head.weight differs from model.embed_tokens"):
        understand(model, tmp_path)


def test_a_tensor_of_another_number_format_is_refused(tmp_path: Path) -> None:
    folder = TinyModel().write(tmp_path / "model")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["model.norm.weight"]["dtype"] = "I32"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(UnsupportedError, match=r"model.norm.weight of .* has dtype I32; supported"):
        read_model(folder).graph(DType.FLOAT32, "inputs")


@pytest.mark.parametrize(
    ("model", "longest", "kind", "sentence"),
    [
        pytest.param(
            TinyModel(max_position_embeddings=256),
            256,
            BadInputError,
            "maxSequenceLength is 257, but the model's max_position_embeddings is 256: set it to"
            " 256 or less",
            id="the model's own limit",
        ),
        pytest.param(
            TinyModel(omit=("max_position_embeddings",)),
            2048,
            BadInputError,
            "maxSequenceLength is 2049, but the model's max_position_embeddings is 2048",
            id="the family's limit where the model states none",
        ),
        pytest.param(
            TinyModel(family="mistral", sliding_window=64),
            64,
            UnsupportedError,
            "maxSequenceLength is 65, but the model has a sliding window of 64 tokens",
            id="Mistral's window",
        ),
        pytest.param(
            TinyModel(family="mistral", omit=("sliding_window",), max_position_embeddings=8192),
            4096,
            UnsupportedError,
            "sliding window of 4096",
            id="the window of a Mistral that states none",
        ),
        pytest.param(
            TinyModel(family="mistral", sliding_window=None),
            256,
            BadInputError,
            "max_position_embeddings",
            id="a Mistral whose window is null",
        ),
        pytest.param(
            TinyModel(family="qwen2", sliding_window=64, use_sliding_window=True),
            64,
            UnsupportedError,
            "sliding window of 64",
            id="Qwen2's window",
        ),
        pytest.param(
            TinyModel(family="qwen2", sliding_window=64, use_sliding_window=False),
            256,
            BadInputError,
            "max_position_embeddings",
            id="a Qwen2 whose window is switched off",
        ),
        pytest.param(
            TinyModel(
                family="qwen3", sliding_window=64, use_sliding_window=True, max_window_layers=2
            ),
            256,
            BadInputError,
            "max_position_embeddings",
            id="a window that begins after the last layer",
        ),
        pytest.param(
            TinyModel(
                family="qwen3",
                sliding_window=64,
                use_sliding_window=True,
                max_window_layers=2,
                config={"layer_types": ["full_attention", "sliding_attention"]},
            ),
            64,
            UnsupportedError,
            "sliding window of 64",
            id="a window that layer_types gives to one layer",
        ),
        pytest.param(
            TinyModel(
                family="qwen3",
                sliding_window=64,
                use_sliding_window=True,
                config={"layer_types": ["full_attention", "full_attention"]},
            ),
            256,
            BadInputError,
            "max_position_embeddings",
            id="a window that layer_types gives to none",
        ),
        pytest.param(
            TinyModel(rope={**DYNAMIC, "original_max_position_embeddings": 128}),
            128,
            UnsupportedError,
            "dynamic rope changes beyond 128 tokens",
            id="a dynamic rope's original length",
        ),
    ],
)
def test_sequences_are_as_long_as_the_model_allows_and_no_longer(
    model: TinyModel, longest: int, kind: type[BuildError], sentence: str, tmp_path: Path
) -> None:
    decoder = read_model(model.write(tmp_path / "model")).decoder
    decoder.check_length(longest)
    with pytest.raises(kind, match=sentence) as caught:
        decoder.check_length(longest + 1)
    assert caught.value.reason == BuildReason.SEQUENCE_TOO_LONG
