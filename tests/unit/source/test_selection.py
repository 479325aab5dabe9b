"""Which of a model's files are fetched, and what is missing, by name."""

from __future__ import annotations

import json

import pytest

from llmengine.requests import BuildReason
from llmengine_builder.errors import BadInputError, BuildError, UnsupportedError
from llmengine_builder.source.selection import descriptions, weights

INDEX = "model.safetensors.index.json"
SMALL = ("config.json", "tokenizer.json")


def index(*shards: str) -> bytes:
    return json.dumps({"weight_map": {f"t{n}": shard for n, shard in enumerate(shards)}}).encode()


def test_only_what_the_server_reads_is_taken_of_the_small_files() -> None:
    names = (
        *SMALL,
        "README.md",
        "LICENSE",
        "tokenizer.model",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "modeling_custom.py",
        "training_args.bin",
        "model.safetensors",
    )
    assert set(descriptions("m", names)) == {
        *SMALL,
        "generation_config.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }


def test_the_index_comes_with_the_small_files() -> None:
    assert INDEX in descriptions("m", (*SMALL, INDEX))


@pytest.mark.parametrize("missing", SMALL)
def test_a_missing_description_is_named(missing: str) -> None:
    with pytest.raises(BadInputError, match=f"^m has no {missing}: add it") as caught:
        descriptions("m", [name for name in SMALL if name != missing])
    assert caught.value.reason == BuildReason.MODEL_INVALID


def test_one_file_of_weights_needs_no_index() -> None:
    assert weights("m", ("model.safetensors", "adapter.safetensors"), None) == (
        "model.safetensors",
    )
    assert weights("m", ("consolidated.safetensors",), None) == ("consolidated.safetensors",)


def test_shards_are_those_of_the_index_and_no_others() -> None:
    names = ("a.safetensors", "b.safetensors", "consolidated.safetensors", "pytorch_model.bin")
    assert weights("m", names, index("b.safetensors", "a.safetensors", "a.safetensors")) == (
        "a.safetensors",
        "b.safetensors",
    )


@pytest.mark.parametrize(
    ("names", "index_", "kind", "reason", "sentence"),
    [
        pytest.param(
            ("pytorch_model.bin", "pytorch_model-2.bin"),
            None,
            UnsupportedError,
            BuildReason.WEIGHTS_ARE_PICKLED,
            "the weights of m are pickle files only (pytorch_model-2.bin, pytorch_model.bin)",
            id="pickles",
        ),
        pytest.param(
            ("model.gguf",),
            None,
            UnsupportedError,
            BuildReason.MODEL_UNSUPPORTED,
            "m has weights of another format only (model.gguf)",
            id="another format",
        ),
        pytest.param(
            (),
            None,
            BadInputError,
            BuildReason.MODEL_INVALID,
            "m has no model.safetensors and no model.safetensors.index.json: add the weights",
            id="nothing",
        ),
        pytest.param(
            tuple(f"part-{n}.safetensors" for n in range(5)),
            None,
            BadInputError,
            BuildReason.MODEL_INVALID,
            "m has 5 safetensors files (part-0.safetensors, part-1.safetensors,"
            " part-2.safetensors, ...) but no model.safetensors.index.json",
            id="many files and no index",
        ),
        pytest.param(
            ("a.safetensors",),
            index("a.safetensors", "b.safetensors"),
            BadInputError,
            BuildReason.MODEL_INVALID,
            "m lacks b.safetensors, which model.safetensors.index.json names",
            id="a missing shard",
        ),
        pytest.param(
            ("a.safetensors",),
            index("../../a.safetensors"),
            BadInputError,
            BuildReason.MODEL_INVALID,
            "names ../../a.safetensors, which is no safetensors file of the model's own folder",
            id="a shard elsewhere",
        ),
        pytest.param(
            ("a.bin",),
            index("a.bin"),
            BadInputError,
            BuildReason.MODEL_INVALID,
            "names a.bin, which is no safetensors file",
            id="a shard that is a pickle",
        ),
        pytest.param(
            (),
            b"[]",
            BadInputError,
            BuildReason.MODEL_INVALID,
            "no readable weight_map",
            id="a list",
        ),
        pytest.param(
            (),
            b"{",
            BadInputError,
            BuildReason.MODEL_INVALID,
            "no readable weight_map",
            id="cut off",
        ),
    ],
)
def test_weights_that_cannot_be_read_are_refused(
    names: tuple[str, ...],
    index_: bytes | None,
    kind: type[BuildError],
    reason: BuildReason,
    sentence: str,
) -> None:
    with pytest.raises(kind) as caught:
        weights("m", names, index_)
    assert sentence in caught.value.message
    assert caught.value.reason == reason
