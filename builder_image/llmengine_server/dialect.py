"""TensorRT-LLM's request dialect for Triton: the inputs of its 1.x ensemble, and what we make of
them. Nothing is ignored: what has no effect here is refused unless its value is the neutral one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmengine_server.chat import ChatTemplate
from llmengine_server.generation import Generation
from llmengine_server.sampling import InvalidRequestError, Sampling
from llmengine_server.tokenizer import Tokenizer

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Input:
    """An input as config.pbtxt declares it; all are optional. `dims` is without the batch."""

    name: str
    data_type: str
    dims: tuple[int, ...] = (1,)


INPUTS = (
    Input("text_input", "STRING"),
    Input("messages", "STRING"),
    Input("decoder_text_input", "STRING"),
    Input("max_tokens", "INT32"),
    Input("min_tokens", "INT32"),
    Input("min_length", "INT32"),
    Input("num_return_sequences", "INT32"),
    Input("bad_words", "STRING", (-1,)),
    Input("stop_words", "STRING", (-1,)),
    Input("exclude_input_in_output", "BOOL"),
    Input("end_id", "INT32"),
    Input("pad_id", "INT32"),
    Input("top_k", "INT32"),
    Input("top_p", "FP32"),
    Input("temperature", "FP32"),
    Input("length_penalty", "FP32"),
    Input("repetition_penalty", "FP32"),
    Input("presence_penalty", "FP32"),
    Input("frequency_penalty", "FP32"),
    Input("seed", "UINT64"),
    Input("random_seed", "UINT64"),
    Input("return_log_probs", "BOOL"),
    Input("return_context_logits", "BOOL"),
    Input("return_generation_logits", "BOOL"),
    Input("return_perf_metrics", "BOOL"),
    Input("return_num_input_tokens", "BOOL"),
    Input("return_num_output_tokens", "BOOL"),
    Input("beam_width", "INT32"),
    Input("stream", "BOOL"),
    Input("prompt_embedding_table", "FP16", (-1, -1)),
    Input("prompt_table_extra_id", "UINT64"),
    Input("prompt_vocab_size", "INT32"),
    Input("embedding_bias_words", "STRING", (-1,)),
    Input("embedding_bias_weights", "FP32", (-1,)),
    Input("lora_task_id", "UINT64"),
    Input("lora_weights", "FP16", (-1, -1)),
    Input("lora_config", "INT32", (-1, 3)),
    Input("guided_decoding_guide_type", "STRING"),
    Input("guided_decoding_guide", "STRING"),
)
_NAMES = frozenset(declared.name for declared in INPUTS)

# Inputs that stand for something this server does not do: the values that ask for nothing, and
# what to say of any other.
_NEUTRAL: Mapping[str, tuple[tuple[object, ...], str]] = {
    "decoder_text_input": (("",), "this model has no separate decoder"),
    "num_return_sequences": ((0, 1), "each request gets one answer: send it several times"),
    "bad_words": (("",), "words cannot be forbidden"),
    "exclude_input_in_output": ((True,), "text_output never repeats the prompt"),
    "length_penalty": ((0.0, 1.0), "it only acts on beam search, which is not available"),
    "return_log_probs": ((False,), "log probabilities are not available"),
    "return_context_logits": ((False,), "logits are not available"),
    "return_generation_logits": ((False,), "logits are not available"),
    "return_perf_metrics": ((False,), "see the metrics port for the server's times"),
    "beam_width": ((1,), "beam search is not available"),
    "prompt_embedding_table": ((), "prompt tuning is not available"),
    "prompt_table_extra_id": ((0,), "prompt tuning is not available"),
    "prompt_vocab_size": ((0,), "prompt tuning is not available"),
    "embedding_bias_words": (("",), "logits cannot be biased"),
    "embedding_bias_weights": ((0.0,), "logits cannot be biased"),
    "lora_task_id": ((0,), "this engine has no LoRA adapters"),
    "lora_weights": ((), "this engine has no LoRA adapters"),
    "lora_config": ((), "this engine has no LoRA adapters"),
    "guided_decoding_guide_type": (("",), "guided decoding is not available"),
    "guided_decoding_guide": (("",), "guided decoding is not available"),
}
# The longest tokens are runs of spaces. What is longer need not be tokenized to be refused, which
# would hold up everybody else's requests.
_MOST_CHARACTERS_PER_TOKEN = 128
# Request parameters that clients' libraries send of themselves.
_TRANSPORT = "triton_"


@dataclass(frozen=True, slots=True)
class Request:
    """A request, understood."""

    generation: Generation
    stop_words: tuple[str, ...]
    streaming: bool
    return_num_input_tokens: bool
    return_num_output_tokens: bool


class Dialect:
    """Understands requests for one engine.

    `new_seed` gives the seed of a request that brings none: two such requests differ.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        max_sequence_length: int,
        vocabulary: int,
        new_seed: Callable[[], int],
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._limit = max_sequence_length
        self._vocabulary = vocabulary
        self._new_seed = new_seed

    def read(self, request_id: int, tensors: Tensors, parameters: Mapping[str, Any]) -> Request:
        """Raises InvalidRequestError with a sentence for the client.

        `tensors`: the inputs that were sent; strings are bytes. `parameters`: what was sent
        beside them, under names that the model does not declare as inputs.
        """
        _refuse_parameters(parameters)
        for name, (neutral, why) in _NEUTRAL.items():
            _refuse_unless_neutral(tensors, name, neutral, why)
        prompt = self._prompt(tensors)
        max_tokens = self._max_tokens(len(prompt), _number(tensors, "max_tokens"))
        min_tokens = _same(tensors, "min_tokens", "min_length") or 0
        if min_tokens > max_tokens:
            raise InvalidRequestError(
                f"min_tokens is {min_tokens} but the answer has at most {max_tokens} tokens:"
                " send a smaller min_tokens or a larger max_tokens"
            )
        seed = _same(tensors, "seed", "random_seed")
        sampling = Sampling(
            temperature=_number(tensors, "temperature"),
            top_k=_number(tensors, "top_k"),
            top_p=_number(tensors, "top_p"),
            min_tokens=min_tokens,
            repetition_penalty=_number(tensors, "repetition_penalty", 1.0),
            presence_penalty=_number(tensors, "presence_penalty", 0.0),
            frequency_penalty=_number(tensors, "frequency_penalty", 0.0),
            seed=self._new_seed() if seed is None else seed,
        )
        return Request(
            Generation(
                id=request_id,
                prompt=prompt,
                max_tokens=max_tokens,
                sampling=sampling,
                stop_ids=self._stop_ids(tensors),
            ),
            stop_words=tuple(word for word in _texts(tensors, "stop_words") if word),
            streaming=bool(_number(tensors, "stream", False)),
            return_num_input_tokens=bool(_number(tensors, "return_num_input_tokens", False)),
            return_num_output_tokens=bool(_number(tensors, "return_num_output_tokens", False)),
        )

    def _prompt(self, tensors: Tensors) -> tuple[int, ...]:
        text, messages = _text(tensors, "text_input"), _text(tensors, "messages")
        if text and messages:
            raise InvalidRequestError("send text_input or messages, not both")
        if messages:
            # The template writes the special tokens itself.
            return self._encode(self._template.render(messages), special=False)
        if text is None:
            raise InvalidRequestError(
                "text_input is missing: send the prompt in it, or a conversation in messages"
            )
        return self._encode(text, special=True)

    def _encode(self, text: str, *, special: bool) -> tuple[int, ...]:
        if len(text) > self._limit * _MOST_CHARACTERS_PER_TOKEN:
            raise InvalidRequestError(
                f"the prompt has {len(text)} characters, which cannot be {self._limit} tokens or"
                " less (spec.engine.maxSequenceLength): shorten the prompt"
            )
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InvalidRequestError(f"the prompt is no valid text: {error}") from error
        tokens = self._tokenizer.encode(text, special=special)
        if not tokens:
            raise InvalidRequestError("the prompt is empty")
        return tokens

    def _max_tokens(self, prompt: int, wanted: int | None) -> int:
        rest = self._limit - prompt
        if rest < 1:
            raise InvalidRequestError(
                f"the prompt has {prompt} tokens; with at least one token of answer this engine"
                f" takes {self._limit} (spec.engine.maxSequenceLength): shorten the prompt"
            )
        if wanted is None:
            return rest
        if wanted < 1:
            raise InvalidRequestError(f"max_tokens must be a positive number (got {wanted})")
        if wanted > rest:
            raise InvalidRequestError(
                f"the prompt has {prompt} tokens and max_tokens is {wanted}, together"
                f" {prompt + wanted}; this engine takes {self._limit}"
                f" (spec.engine.maxSequenceLength): send max_tokens {rest} or less"
            )
        return wanted

    def _stop_ids(self, tensors: Tensors) -> frozenset[int]:
        end_id = _number(tensors, "end_id")
        if end_id is None:
            return self._tokenizer.eos_ids
        if end_id == -1:
            return frozenset()
        if not 0 <= end_id < self._vocabulary:
            raise InvalidRequestError(
                f"end_id must be a token of this model, 0 to {self._vocabulary - 1}, or -1 to"
                f" go on to max_tokens (got {end_id})"
            )
        return frozenset({end_id})


def _refuse_parameters(parameters: Mapping[str, Any]) -> None:
    for name in parameters:
        if name.startswith(_TRANSPORT):
            continue
        if name in _NAMES:
            raise InvalidRequestError(
                f'"{name}" came as a request parameter: send it as an input of that name'
                " (in JSON: at the top level)"
            )
        close = difflib.get_close_matches(name, _NAMES, 1)
        meant = f'; did you mean "{close[0]}"?' if close else f": it takes {_listed(_NAMES)}"
        raise InvalidRequestError(f'this model has no input "{name}"{meant}')


def _refuse_unless_neutral(
    tensors: Tensors, name: str, neutral: Sequence[object], why: str
) -> None:
    tensor = tensors.get(name)
    if tensor is None:
        return
    for value in tensor.reshape(-1).tolist():
        if (_decoded(name, value) if isinstance(value, bytes) else value) not in neutral:
            instead = f", or send {neutral[-1]!r}" if neutral and neutral != ("",) else ""
            raise InvalidRequestError(f"{name}: {why}; leave it out{instead}")


def _number(tensors: Tensors, name: str, default: Any = None) -> Any:
    """The one value of an input, as Python's own type."""
    tensor = tensors.get(name)
    if tensor is None or tensor.size == 0:
        return default
    if tensor.size != 1:
        raise InvalidRequestError(
            f"{name} must hold one value: send one prompt in each request"
            f" (got shape {list(tensor.shape)})"
        )
    value = tensor.reshape(-1)[0]
    return value.item() if isinstance(value, np.generic) else value


def _same(tensors: Tensors, name: str, alias: str) -> int | None:
    """The value of an input with two names."""
    first: int | None = _number(tensors, name)
    second: int | None = _number(tensors, alias)
    if first is not None and second is not None and first != second:
        raise InvalidRequestError(
            f"{alias} is another name of {name}: send one of them (got {first} and {second})"
        )
    return second if first is None else first


def _text(tensors: Tensors, name: str) -> str | None:
    value = _number(tensors, name)
    return None if value is None else _decoded(name, value)


def _texts(tensors: Tensors, name: str) -> list[str]:
    tensor = tensors.get(name)
    return [] if tensor is None else [_decoded(name, v) for v in tensor.reshape(-1).tolist()]


def _decoded(name: str, value: bytes | str) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{name} is not UTF-8: {error}") from error


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
