"""A model on a claim is read where it lies; links are resolved, but not out of the claim."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmengine.requests import BuildReason
from llmengine_builder.errors import BadInputError
from llmengine_builder.source.claim import ClaimSource


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    folder = tmp_path / "claim/models/m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "weights").write_bytes(bytes(range(256)) * 100)
    return tmp_path / "claim"


def source(mount: Path, path: str = "models/m") -> ClaimSource:
    return ClaimSource(f"pvc://weights/{path}", mount, mount.parent / "scratch")


def sizes(claim: ClaimSource) -> dict[str, int]:
    return {file.path: file.size for file in claim.files()}


def test_files_stay_where_they_are(mount: Path) -> None:
    claim = source(mount)
    assert sizes(claim) == {"config.json": 2, "weights": 25600}
    claim.fetch(["config.json", "weights"], lambda count: None)
    assert claim.folder == mount / "models/m"
    assert not claim.takes_disk
    assert not (mount.parent / "scratch").exists()


def test_linked_files_are_copied(mount: Path) -> None:
    blob = mount / "blobs/abc"
    blob.parent.mkdir()
    (mount / "models/m/weights").rename(blob)
    (mount / "models/m/weights").symlink_to("../../blobs/abc")
    claim = source(mount)
    assert sizes(claim) == {"config.json": 2, "weights": 25600}
    assert claim.takes_disk
    counted: list[int] = []
    claim.fetch(["config.json", "weights"], counted.append)
    assert sum(counted) == 25602
    assert claim.folder == mount.parent / "scratch"
    assert not (claim.folder / "weights").is_symlink()
    assert (claim.folder / "weights").read_bytes() == blob.read_bytes()


def test_a_model_may_lie_at_the_top_of_its_claim(mount: Path) -> None:
    assert sizes(ClaimSource("pvc://weights", mount / "models/m", mount.parent)) == {
        "config.json": 2,
        "weights": 25600,
    }


def test_the_beginning_of_a_file_may_be_read_alone(mount: Path) -> None:
    claim = source(mount)
    claim.files()
    assert claim.head("weights", 8) == bytes(range(8))
    assert claim.head("config.json", 100) == b"{}"


@pytest.mark.parametrize(
    ("path", "nearby"),
    [
        pytest.param("models/n", "in models: m", id="a name that is nearly right"),
        pytest.param("model/m", "at its top: models", id="a folder that is not there"),
        pytest.param("models/m/weights", "in models/m: config.json, weights", id="a file"),
    ],
)
def test_a_folder_that_is_not_there_is_told_with_what_is(
    mount: Path, path: str, nearby: str
) -> None:
    with pytest.raises(BadInputError) as caught:
        source(mount, path).files()
    assert caught.value.reason == BuildReason.MODEL_NOT_FOUND
    assert caught.value.message == (
        f"pvc://weights/{path} is no folder of its claim, which has {nearby}: correct the path in"
        " spec.model.uri"
    )


def test_an_empty_claim_is_told(mount: Path) -> None:
    empty = mount.parent / "empty"
    empty.mkdir()
    with pytest.raises(BadInputError, match="which has nothing at its top"):
        ClaimSource("pvc://weights/m", empty, mount.parent).files()


@pytest.mark.parametrize("target", ["/etc/hostname", "../../../outside"])
def test_a_link_out_of_the_claim_is_refused(mount: Path, target: str) -> None:
    (mount.parent / "outside").write_text("a secret")
    (mount / "models/m/tokenizer.json").symlink_to(target)
    with pytest.raises(BadInputError, match=r"tokenizer\.json .* is a link that leaves the claim"):
        source(mount).files()


def test_a_denial_says_how_to_lift_it(mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    claim = source(mount)
    claim.files()
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(BadInputError) as caught:
        claim.fetch(["weights"], lambda count: None)
    assert caught.value.reason == BuildReason.MODEL_ACCESS_DENIED
    assert caught.value.message == (
        "models/m/weights on the claim of pvc://weights/models/m may not be read by the build's"
        " user: let everyone read it, with chmod -R a+rX"
    )
