"""Requests as clients of TensorRT-LLM's ensemble send them, and what is said of bad ones."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llmengine_server.chat import ChatTemplate
from llmengine_server.dialect import INPUTS, Dialect, Request
from llmengine_server.sampling import InvalidRequestError, Sampling
from tests.models import tiny_tokenizer
from tests.unit.server.tokenizers_for_tests import byte_level

LIMIT = 64
TYPES = {"INT32": np.int32, "FP32": np.float32, "UINT64": np.uint64, "BOOL": np.bool_,
         "FP16": np.float16, "STRING": np.object_}  # fmt: skip
DECLARED = {declared.name: declared for declared in INPUTS}


def tensor(name: str, value: Any) -> NDArray[Any]:
    """An input as Triton hands it over: [1, 1] for one value, bytes for text."""
    if isinstance(value, np.ndarray):
        return value
    values = value if isinstance(value, list) else [value]
    values = [v.encode() if isinstance(v, str) else v for v in values]
    return np.array([values], dtype=TYPES[DECLARED[name].data_type])


def read(parameters: dict[str, Any] | None = None, **inputs: Any) -> Request:
    dialect = Dialect(
        byte_level(),
        ChatTemplate(tiny_tokenizer.CHAT_TEMPLATE, {"bos_token": tiny_tokenizer.BOS}),
        max_sequence_length=LIMIT,
        vocabulary=tiny_tokenizer.VOCABULARY_SIZE,
        new_seed=lambda: 77,
    )
    tensors = {name: tensor(name, value) for name, value in inputs.items()}
    return dialect.read(5, tensors, parameters or {})


def refusal(parameters: dict[str, Any] | None = None, **inputs: Any) -> str:
    with pytest.raises(InvalidRequestError) as refused:
        read(parameters, **inputs)
    return str(refused.value)


def test_a_prompt_alone_is_greedy_and_takes_the_rest_of_the_engine() -> None:
    request = read(text_input="the")
    generation = request.generation
    assert generation.id == 5
    assert generation.prompt[0] == tiny_tokenizer.BOS_ID
    assert generation.max_tokens == LIMIT - len(generation.prompt)
    assert generation.sampling.greedy
    assert generation.stop_ids == {tiny_tokenizer.EOS_ID}
    assert not request.streaming
    assert request.stop_words == ()


def test_everything_that_can_be_said_is_heard() -> None:
    request = read(
        text_input="the",
        max_tokens=20,
        min_tokens=2,
        temperature=0.5,
        top_k=7,
        top_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        seed=2**64 - 1,
        stop_words=["one", "", "two"],
        end_id=9,
        pad_id=3,
        stream=True,
        return_num_input_tokens=True,
        return_num_output_tokens=True,
    )
    assert request.generation.max_tokens == 20
    assert request.generation.stop_ids == {9}
    assert request.generation.sampling == Sampling(
        temperature=0.5,
        top_k=7,
        top_p=0.25,
        min_tokens=2,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        seed=2**64 - 1,
    )
    assert request.stop_words == ("one", "two")
    assert request.streaming
    assert request.return_num_input_tokens
    assert request.return_num_output_tokens


def test_a_request_without_a_seed_gets_a_new_one() -> None:
    assert read(text_input="a").generation.sampling.seed == 77
    assert read(text_input="a", random_seed=3).generation.sampling.seed == 3


def test_older_names_mean_the_same() -> None:
    sampling = read(text_input="a", min_length=4, random_seed=9).generation.sampling
    assert (sampling.min_tokens, sampling.seed) == (4, 9)


def test_messages_go_through_the_template_with_one_bos() -> None:
    messages = json.dumps([{"role": "user", "content": "Hi"}])
    prompt = read(messages=messages, text_input="").generation.prompt
    assert prompt.count(tiny_tokenizer.BOS_ID) == 1
    assert prompt[:2] == (tiny_tokenizer.BOS_ID, tiny_tokenizer.TURN_ID)


def test_end_id_minus_one_goes_on_to_max_tokens() -> None:
    assert read(text_input="a", end_id=-1).generation.stop_ids == frozenset()


def test_what_asks_for_nothing_is_accepted() -> None:
    neutral: dict[str, Any] = {
        "decoder_text_input": "",
        "num_return_sequences": 1,
        "bad_words": [""],
        "stop_words": [""],
        "exclude_input_in_output": True,
        "length_penalty": 1.0,
        "repetition_penalty": 1.0,
        "min_tokens": 0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "return_log_probs": False,
        "return_context_logits": False,
        "return_generation_logits": False,
        "return_perf_metrics": False,
        "return_num_input_tokens": False,
        "return_num_output_tokens": False,
        "beam_width": 1,
        "stream": False,
        "prompt_embedding_table": np.zeros((1, 0, 0), np.float16),
        "prompt_table_extra_id": 0,
        "prompt_vocab_size": 0,
        "embedding_bias_words": [""],
        "embedding_bias_weights": [0.0],
        "lora_task_id": 0,
        "lora_weights": np.zeros((1, 0, 0), np.float16),
        "lora_config": np.zeros((1, 0, 3), np.int32),
        "guided_decoding_guide_type": "",
        "guided_decoding_guide": "",
        "top_k": 1,
        "top_p": 0.0,
        "temperature": 1.0,
        "max_tokens": 4,
        "end_id": tiny_tokenizer.EOS_ID,
        "pad_id": tiny_tokenizer.PAD_ID,
        "seed": 0,
        "random_seed": 0,
        "min_length": 0,
        "messages": "",
    }
    assert set(neutral) | {"text_input"} == set(DECLARED), "every input has a neutral value"
    assert read(text_input="a", **neutral).generation.sampling.greedy


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({}, "text_input is missing: send the prompt in it, or a conversation in messages"),
        ({"text_input": "a", "messages": "[]"}, "send text_input or messages, not both"),
        ({"text_input": np.array([[b"\xff"]], object)}, "text_input is not UTF-8"),
        ({"text_input": np.array([[b"a"], [b"b"]], object)},
         "text_input must hold one value: send one prompt in each request (got shape [2, 1])"),
        ({"text_input": "a" * 64},
         "the prompt has 65 tokens; with at least one token of answer this engine takes 64"),
        ({"text_input": " " * 8193}, "the prompt has 8193 characters, which cannot be 64 tokens"),
        ({"text_input": "a" * 9, "max_tokens": 60},
         "the prompt has 10 tokens and max_tokens is 60, together 70; this engine takes 64"
         " (spec.engine.maxSequenceLength): send max_tokens 54 or less"),
        ({"text_input": "a", "max_tokens": 0}, "max_tokens must be a positive number (got 0)"),
        ({"text_input": "a", "max_tokens": 3, "min_tokens": 4},
         "min_tokens is 4 but the answer has at most 3 tokens"),
        ({"text_input": "a", "min_tokens": 1, "min_length": 2},
         "min_length is another name of min_tokens: send one of them (got 1 and 2)"),
        ({"text_input": "a", "seed": 1, "random_seed": 2}, "random_seed is another name of seed"),
        ({"text_input": "a", "temperature": -1.0}, "temperature must be 0 (greedy)"),
        ({"text_input": "a", "top_p": 2.0}, "top_p must be between 0 and 1"),
        ({"text_input": "a", "end_id": 99999}, "end_id must be a token of this model, 0 to"),
        ({"text_input": "a", "stop_words": np.array([[b"\xff"]], object)},
         "stop_words is not UTF-8"),
        ({"text_input": "a", "beam_width": 4},
         "beam_width: beam search is not available; leave it out, or send 1"),
        ({"text_input": "a", "num_return_sequences": 2}, "each request gets one answer"),
        ({"text_input": "a", "bad_words": ["no"]}, "bad_words: words cannot be forbidden"),
        ({"text_input": "a", "exclude_input_in_output": False},
         "text_output never repeats the prompt; leave it out, or send True"),
        ({"text_input": "a", "length_penalty": 2.0}, "length_penalty: it only acts on beam"),
        ({"text_input": "a", "return_log_probs": True}, "log probabilities are not available"),
        ({"text_input": "a", "return_context_logits": True}, "logits are not available"),
        ({"text_input": "a", "return_generation_logits": True}, "logits are not available"),
        ({"text_input": "a", "return_perf_metrics": True}, "see the metrics port"),
        ({"text_input": "a", "prompt_embedding_table": np.ones((1, 2, 4), np.float16)},
         "prompt_embedding_table: prompt tuning is not available; leave it out"),
        ({"text_input": "a", "prompt_vocab_size": 5}, "prompt tuning is not available"),
        ({"text_input": "a", "embedding_bias_words": ["yes"]}, "logits cannot be biased"),
        ({"text_input": "a", "lora_task_id": 3}, "this engine has no LoRA adapters"),
        ({"text_input": "a", "guided_decoding_guide_type": "json"}, "guided decoding is not"),
        ({"text_input": "a", "decoder_text_input": "x"}, "no separate decoder"),
    ],
    ids=lambda value: re.sub(r"\W+", " ", str(value))[:60] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_a_sentence(
    inputs: dict[str, Any], sentence: str
) -> None:
    assert sentence in refusal(**inputs)


def test_an_unknown_parameter_is_refused_with_the_one_that_was_meant() -> None:
    assert refusal({"max_token": 5}, text_input="a") == (
        'this model has no input "max_token"; did you mean "max_tokens"?'
    )
    assert "it takes bad_words, beam_width" in refusal({"zzz": 1}, text_input="a")


def test_an_input_sent_as_a_parameter_is_refused_with_its_place() -> None:
    assert "send it as an input of that name" in refusal({"temperature": 1}, text_input="a")


def test_parameters_of_the_transport_are_let_through() -> None:
    parameters = {"triton_enable_empty_final_response": True}
    assert read(parameters, text_input="a").generation.prompt


def test_half_a_character_pair_from_json_is_refused() -> None:
    messages = '[{"role": "user", "content": "\\ud800"}]'
    assert "the prompt is no valid text" in refusal(messages=messages)
