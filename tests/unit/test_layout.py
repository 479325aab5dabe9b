"""What the repository's shape must keep."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_operator_folder_never_shadows_the_standard_library() -> None:
    # A module there, or an __init__.py, would be found before the stdlib's `operator` by any
    # program that starts in the repository's root.
    assert list((ROOT / "operator").glob("*.py")) == []


def test_packages_say_that_they_are_typed() -> None:
    packages = [p.parent for p in ROOT.glob("operator/*/__init__.py")]
    packages += [p.parent for p in ROOT.glob("builder_image/*/__init__.py")]
    assert len(packages) == 4
    assert all((package / "py.typed").exists() for package in packages)
