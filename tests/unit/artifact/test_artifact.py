"""Manifests and the layout of the store: what is read is what was meant, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from llmengine.artifact import (
    CHUNK_BYTES,
    File,
    InvalidManifestError,
    Layout,
    Manifest,
    UnsupportedContractError,
    chunk_count,
    digest_of,
)
from llmengine.key import Scope
from tests.engines import make_manifest

DIGEST = "sha256:" + "ab" * 32
ENGINE = Layout("team/engines", Scope())


def test_a_manifest_reads_back_as_it_was_written() -> None:
    manifest = make_manifest()
    assert Manifest.parse(manifest.serialize()) == manifest
    assert Manifest.parse(manifest.serialize()).serialize() == manifest.serialize()


def test_fields_of_a_later_release_are_left_alone() -> None:
    assert Manifest.parse(edited(lambda m: m | {"laterField": 1})) == make_manifest()


def test_a_manifest_of_before_speed_was_measured_is_read() -> None:
    old = Manifest.parse(edited(lambda m: {k: v for k, v in m.items() if k != "speed"}))
    assert old == make_manifest()
    assert old.speed is None


def test_another_contract_is_told_before_anything_else_is_read() -> None:
    with pytest.raises(
        UnsupportedContractError, match="has contract 2, this release reads contract 1"
    ):
        Manifest.parse(b'{"contract": 2, "files": "of another shape"}')


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        pytest.param(lambda m: {}, "contract: Field required", id="nothing"),
        pytest.param(
            lambda m: m | {"key": "0" * 64}, "is not that of its factors", id="another's key"
        ),
        pytest.param(
            lambda m: m | {"factors": m["factors"] | {"engine.dtype": "float16"}},
            "is not that of its factors",
            id="a changed factor",
        ),
        pytest.param(
            lambda m: m | {"files": [line(), line()]}, "files are listed twice: graph", id="twins"
        ),
        pytest.param(
            lambda m: m | {"files": [line(digest="sha256:XY")]},
            "files.0.digest",
            id="a digest that is none",
        ),
        pytest.param(
            lambda m: m | {"files": [line(size=CHUNK_BYTES + 1)]},
            "1 digests of chunks do not cover",
            id="a chunk without a digest",
        ),
        pytest.param(
            lambda m: m | {"files": [line(chunks=["ab" * 32] * 2)]},
            "2 digests of chunks do not cover",
            id="a chunk too many",
        ),
        pytest.param(lambda m: m | {"vocabulary": "x"}, "vocabulary: Input should", id="no number"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    edit: Callable[[dict[str, Any]], dict[str, Any]], problem: str
) -> None:
    with pytest.raises(InvalidManifestError, match="the manifest cannot be read") as caught:
        Manifest.parse(edited(edit))
    assert problem in str(caught.value)


def test_bytes_that_are_no_json_are_refused() -> None:
    with pytest.raises(InvalidManifestError, match="the manifest cannot be read: it: Invalid JSON"):
        Manifest.parse(make_manifest().serialize()[:-20])


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../weights", "a/../../b", "a//b", "a/.", "a\x00b", "a\nb"]
)
def test_a_path_outside_the_engines_folder_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="is no path inside the engine's folder"):
        File(path=path, digest=DIGEST, size=0, chunks=())


@pytest.mark.parametrize("path", ["graph.onnx", "model/model-00001-of-00002.safetensors", "..a"])
def test_a_path_inside_the_engines_folder_is_taken(path: str) -> None:
    assert File(path=path, digest=DIGEST, size=0, chunks=()).path == path


@pytest.mark.parametrize(
    ("size", "count"),
    [(0, 0), (1, 1), (CHUNK_BYTES, 1), (CHUNK_BYTES + 1, 2), (10 * CHUNK_BYTES, 10)],
)
def test_chunks_cover_a_file(size: int, count: int) -> None:
    assert chunk_count(size) == count


def test_the_size_of_an_engine_is_that_of_its_files() -> None:
    files = tuple(
        File(path=path, digest=DIGEST, size=size, chunks=("ab" * 32,))
        for path, size in (("a", 3), ("b", 4))
    )
    assert make_manifest().model_copy(update={"files": files}).size_bytes == 7


def test_objects_lie_where_the_layout_says() -> None:
    key = "c" * 64
    assert ENGINE.manifest(key) == f"team/engines/v1/engines/{key}/manifest.json"
    assert ENGINE.blob(DIGEST) == f"team/engines/v1/blobs/sha256/ab/{'ab' * 32}"
    assert ENGINE.progress(key) == f"team/engines/v1/builds/{key}.json"


def test_a_scope_has_a_tree_of_its_own() -> None:
    layout = Layout("", Scope("team-a", "claim-uid"))
    assert layout.blob(DIGEST) == f"v1/scopes/team-a/blobs/sha256/ab/{'ab' * 32}"


@pytest.mark.parametrize("prefix", ["team/engines", "/team/engines/", "team/engines/"])
def test_slashes_around_a_prefix_do_not_matter(prefix: str) -> None:
    assert Layout(prefix).root == "team/engines/v1"


def test_no_object_is_a_folder_of_another() -> None:
    key = "c" * 64
    names = [
        name
        for layout in (ENGINE, Layout("team/engines", Scope("team-a")))
        for name in (layout.manifest(key), layout.blob(DIGEST), layout.progress(key))
    ]
    assert not any(a != b and b.startswith(a + "/") for a in names for b in names)


def test_a_digest_is_that_of_sha256sum() -> None:
    assert digest_of(b"") == (
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )


def line(**change: Any) -> dict[str, Any]:
    return {"path": "graph", "digest": DIGEST, "size": 1, "chunks": ["ab" * 32], **change}


def edited(edit: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    return json.dumps(edit(json.loads(make_manifest().serialize()))).encode()
