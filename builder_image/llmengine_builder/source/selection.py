"""Which files of a model are needed: its weights as safetensors, and what the server reads."""

from __future__ import annotations

import json
from collections.abc import Collection

from llmengine.requests import BuildReason
from llmengine_builder.errors import BadInputError, UnsupportedError
from llmengine_builder.safetensors import INDEX, SINGLE

# Stored with the engine: the server encodes, applies chat templates and stops by these.
REQUIRED = ("config.json", "tokenizer.json")
OPTIONAL = (
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_OTHER_WEIGHTS = (".gguf", ".h5", ".msgpack", ".onnx", ".npz")


def descriptions(model: str, names: Collection[str]) -> tuple[str, ...]:
    """The small files to fetch first. Raises BadInputError when one is missing that must be."""
    for name in REQUIRED:
        if name not in names:
            raise BadInputError(
                BuildReason.MODEL_INVALID,
                f"{model} has no {name}: add it{_HOW.get(name, '')}",
            )
    return tuple(name for name in (*REQUIRED, *OPTIONAL, INDEX) if name in names)


_HOW = {
    "tokenizer.json": " (transformers writes it from other tokenizer files with"
    " AutoTokenizer.from_pretrained(...).save_pretrained(...))"
}


def weights(model: str, names: Collection[str], index: bytes | None) -> tuple[str, ...]:
    """The weight files: those of the index, else the single one.

    `index`: the content of model.safetensors.index.json where there is one. Raises BadInputError
    for a missing shard, and UnsupportedError for weights that are not safetensors.
    """
    if index is not None:
        shards = _shards(model, index)
        if missing := sorted(shards - set(names)):
            raise BadInputError(
                BuildReason.MODEL_INVALID,
                f"{model} lacks {_some(missing)}, which {INDEX} names: upload the rest",
            )
        return tuple(sorted(shards))
    if SINGLE in names:
        return (SINGLE,)
    found = sorted(name for name in names if name.endswith(".safetensors"))
    if len(found) == 1:
        return (found[0],)
    if found:
        raise BadInputError(
            BuildReason.MODEL_INVALID,
            f"{model} has {len(found)} safetensors files ({_some(found)}) but no {INDEX} that"
            " says which belong to it: add the index",
        )
    raise _no_safetensors(model, names)


def _shards(model: str, index: bytes) -> set[str]:
    try:
        shards = {str(file) for file in json.loads(index)["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(
            BuildReason.MODEL_INVALID,
            f"{INDEX} of {model} has no readable weight_map ({error}): upload the file again",
        ) from error
    if strange := sorted(s for s in shards if "/" in s or not s.endswith(".safetensors")):
        raise BadInputError(
            BuildReason.MODEL_INVALID,
            f"{INDEX} of {model} names {_some(strange)}, which is no safetensors file of the"
            " model's own folder",
        )
    return shards


def _no_safetensors(model: str, names: Collection[str]) -> BadInputError | UnsupportedError:
    if pickles := sorted(name for name in names if name.endswith(_PICKLES)):
        return UnsupportedError(
            BuildReason.WEIGHTS_ARE_PICKLED,
            f"the weights of {model} are pickle files only ({_some(pickles)}), which can run code"
            " when they are read: convert them to safetensors",
        )
    if others := sorted(name for name in names if name.endswith(_OTHER_WEIGHTS)):
        return UnsupportedError(
            BuildReason.MODEL_UNSUPPORTED,
            f"{model} has weights of another format only ({_some(others)}): give a model with"
            " safetensors",
        )
    return BadInputError(
        BuildReason.MODEL_INVALID, f"{model} has no {SINGLE} and no {INDEX}: add the weights"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
