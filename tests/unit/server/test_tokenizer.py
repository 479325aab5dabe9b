"""Text that comes in pieces is the text that comes at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmengine_server.tokenizer import Detokenizer, StopWords, Tokenizer
from tests.models import tiny_tokenizer
from tests.unit.server.tokenizers_for_tests import byte_fallback, byte_level

KINDS = [
    pytest.param(byte_level, id="byte level"),
    pytest.param(byte_fallback, id="byte fallback"),
]
PROMPT = "the cat"


def pieces(tokenizer: Tokenizer, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=60))
def test_pieces_join_to_the_whole_text(kind: Callable[[], Tokenizer], text: str) -> None:
    tokenizer = kind()
    prompt = tokenizer.encode(PROMPT)
    tokens = tokenizer.encode(text, special=False)
    whole = tokenizer.decode([*prompt, *tokens])[len(tokenizer.decode(prompt)) :]
    assert "".join(pieces(tokenizer, prompt, tokens)) == whole


@given(st.lists(st.integers(0, tiny_tokenizer.VOCABULARY_SIZE - 1), max_size=40))
def test_pieces_of_arbitrary_bytes_join_to_the_whole_text(tokens: list[int]) -> None:
    tokenizer = byte_level()
    assert "".join(pieces(tokenizer, (), tuple(tokens))) == tokenizer.decode(tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_no_piece_ends_inside_a_character(kind: Callable[[], Tokenizer]) -> None:
    tokenizer = kind()
    tokens = tokenizer.encode("é😀 naïve 語", special=False)
    for piece in pieces(tokenizer, tokenizer.encode(PROMPT), tokens):
        assert "\ufffd" not in piece


def test_an_unfinished_character_is_flushed_at_the_end() -> None:
    tokenizer = byte_level()
    tokens = tokenizer.encode("😀", special=False)[:-1]
    assert pieces(tokenizer, (), tokens) == ["", "", "", "\ufffd"]


def test_endless_rubbish_is_not_held_back_for_ever() -> None:
    tokenizer = byte_level()
    continuation = tokenizer.encode("é", special=False)[1]
    detokenizer = Detokenizer(tokenizer, ())
    assert any(detokenizer.push(continuation) for _ in range(20))


def test_the_first_generated_word_keeps_its_space() -> None:
    tokenizer = byte_fallback()
    assert "".join(pieces(tokenizer, tokenizer.encode("the"), tokenizer.encode("cat"))) == " cat"


def test_special_tokens_are_not_part_of_the_text() -> None:
    tokenizer = byte_level()
    tokens = (
        *tokenizer.encode("a", special=False),
        tiny_tokenizer.END_OF_TURN_ID,
        *tokenizer.encode("b", special=False),
        tiny_tokenizer.EOS_ID,
    )
    assert pieces(tokenizer, (), tokens) == ["a", "", "b", "", ""]


def test_a_text_gets_a_bos_and_never_two() -> None:
    tokenizer = byte_level(adds_bos=True)
    once = tokenizer.encode("is")
    assert once[0] == tiny_tokenizer.BOS_ID
    assert tokenizer.encode(f"{tiny_tokenizer.BOS}is") == once
    assert tokenizer.encode("is", special=False) == once[1:]


def test_truncation_and_padding_of_the_training_do_not_touch_prompts(tmp_path: Path) -> None:
    stored = json.loads(tiny_tokenizer.tokenizer_json(adds_bos=False))
    stored["truncation"] = {
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    stored["padding"] = {
        "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 2, "pad_type_id": 0, "pad_token": "<|pad|>",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    assert len(Tokenizer.load(tmp_path).encode("abcd")) == 4


@pytest.mark.parametrize(
    ("files", "eos"),
    [
        pytest.param(
            {
                "generation_config.json": {"eos_token_id": [1, 4]},
                "config.json": {"eos_token_id": 1},
            },
            {1, 4},
            id="generation_config's list wins",
        ),
        pytest.param(
            {"generation_config.json": {"eos_token_id": 4}}, {4}, id="one id is a list of one"
        ),
        pytest.param(
            {"generation_config.json": {}, "config.json": {"eos_token_id": 1}},
            {1},
            id="config.json where generation_config says nothing",
        ),
        pytest.param({}, set(), id="none at all"),
    ],
)
def test_the_ids_that_end_a_text(
    tmp_path: Path, files: dict[str, dict[str, object]], eos: set[int]
) -> None:
    (tmp_path / "tokenizer.json").write_text(tiny_tokenizer.tokenizer_json(adds_bos=False))
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).eos_ids == eos


def test_an_engine_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)


def through(words: list[str], chunks: list[str]) -> tuple[str, bool]:
    stop = StopWords(words)
    text = "".join(stop.push(chunk) for chunk in chunks)
    return text + stop.flush(), stop.matched


@pytest.mark.parametrize(
    ("words", "text", "expected"),
    [
        (["stop"], "go on, stop here", ("go on, ", True)),
        (["stop"], "go on", ("go on", False)),
        (["ab"], "aab", ("a", True)),
        (["b", "abc"], "xabc", ("xa", True)),
        (["b", "ab"], "xab", ("x", True)),
        (["", "x"], "axb", ("a", True)),
        ([], "anything", ("anything", False)),
        (["\n\n"], "a\n\nb", ("a", True)),
        (["END", "ENDING"], "the ENDING", ("the ", True)),
        (["nn"], "banana", ("banana", False)),
    ],
)
def test_the_text_ends_before_the_first_stop_word(
    words: list[str], text: str, expected: tuple[str, bool]
) -> None:
    assert through(words, [text]) == expected
    assert through(words, list(text)) == expected


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.text("abc", max_size=4), max_size=8),
)
def test_how_the_text_arrives_changes_nothing(words: list[str], chunks: list[str]) -> None:
    text = "".join(chunks)
    assert through(words, chunks) == through(words, [text])
    expected, matched = through(words, [text])
    assert text.startswith(expected)
    assert matched == any(word in text for word in words)
    assert not any(word in expected for word in words)


def test_only_what_a_stop_word_can_begin_with_is_held_back() -> None:
    stop = StopWords(["<|end|>"])
    assert stop.push("some text <") == "some text "
    assert stop.push("|e") == ""
    assert stop.push("asy") == "<|easy"


def test_nothing_comes_after_a_stop_word() -> None:
    stop = StopWords(["x"])
    assert stop.push("ax") == "a"
    assert stop.push("more") == ""
