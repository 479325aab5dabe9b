"""A real tokenizer for tiny models: byte-level BPE, so that any text survives a round trip."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

BOS, EOS, PAD, TURN, END_OF_TURN = SPECIAL = (
    "<|bos|>",
    "<|eos|>",
    "<|pad|>",
    "<|im_start|>",
    "<|im_end|>",
)
BOS_ID, EOS_ID, PAD_ID, TURN_ID, END_OF_TURN_ID = range(len(SPECIAL))
# A few merges, so that one token can be several bytes. Ġ is a leading space in the byte alphabet.
_WORDS = ("Ġthe", "Ġand", "Ġis", "Ġof", "ing", "Ġcapital", "user", "assistant", "Ġa", "Ġin", "er")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        for end in range(1, len(word)):
            merge = (word[:end], word[end])
            if merge not in merges:
                merges.append(merge)
                tokens.append(word[: end + 1])
    return {token: i for i, token in enumerate(tokens)}, merges


VOCABULARY_SIZE = len(_vocabulary()[0])


def tokenizer_json(*, adds_bos: bool) -> str:
    """The text of tokenizer.json; with `adds_bos` encoding puts BOS in front, as Llama's does."""
    vocabulary, merges = _vocabulary()
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
        )
    return str(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=1))


def tokenizer_config(*, adds_bos: bool, model_max_length: int) -> dict[str, Any]:
    """The content of tokenizer_config.json, chat template included."""
    return {
        "add_bos_token": adds_bos,
        "added_tokens_decoder": {
            str(i): {"content": token, "special": True} for i, token in enumerate(SPECIAL)
        },
        "bos_token": BOS,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "model_max_length": model_max_length,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
