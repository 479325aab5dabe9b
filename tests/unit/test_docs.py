"""What the pages promise: complete tables, links that lead somewhere, examples that are valid."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from docs import generate
from llmengine.api.v1alpha1 import EngineRuntimeSpec, LLMEngineSpec
from llmengine.requests import BuildReason, ExitCode
from llmengine_operator.conditions import ConditionType
from llmengine_operator.reasons import Reason

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
OPERATIONS = ROOT / "docs/operations.md"
PAGES = sorted(
    page
    for pattern in (
        "*.md",
        "docs/*.md",
        "charts/*/README.md",
        "examples/**/*.md",
        "tests/**/*.md",
    )
    for page in ROOT.glob(pattern)
)
SPECS: dict[str, type[BaseModel]] = {
    "LLMEngine": LLMEngineSpec,
    "EngineRuntime": EngineRuntimeSpec,
}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def section(page: Path, heading: str) -> str:
    """What stands below a heading, up to the next of its level or above."""
    level = heading.partition(" ")[0]
    _, found, rest = page.read_text().partition(f"\n{heading}\n")
    assert found, f"{page.name} has no {heading}"
    return re.split(rf"\n#{{1,{len(level)}}} ", rest)[0]


def first_cells(text: str) -> list[str]:
    """The code in the first cell of each row of the tables in a text."""
    return re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)


def prose(text: str) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def source(*folders: str) -> str:
    return "\n".join(f.read_text() for folder in folders for f in (ROOT / folder).rglob("*.py"))


def reasons_given() -> set[str]:
    """The reasons that the code gives somewhere."""
    code = source("operator", "builder_image")
    return {
        reason.value
        for enum in (Reason, BuildReason)
        for reason in enum
        if re.search(rf"\b{enum.__name__}\.{reason.name}\b", code)
    }


def test_every_reason_that_a_user_may_see_is_in_the_table() -> None:
    explained = first_cells(section(README, "## Conditions and reasons"))
    assert reasons_given() - set(explained) == set()


def test_the_table_explains_nothing_that_does_not_exist_and_nothing_twice() -> None:
    explained = first_cells(section(README, "## Conditions and reasons"))
    assert sorted(set(explained)) == sorted(explained)
    assert set(explained) <= {*Reason, *BuildReason, *ConditionType}


@pytest.mark.parametrize(
    ("page", "heading"),
    [
        pytest.param(README, "## Conditions and reasons", id="README"),
        pytest.param(ROOT / "docs/llmengine.md", "### Conditions", id="the kind's page"),
    ],
)
def test_every_condition_is_explained(page: Path, heading: str) -> None:
    assert set(first_cells(section(page, heading))) >= set(ConditionType)


def test_every_exit_code_of_a_build_is_explained() -> None:
    builder = section(ROOT / "docs/architecture.md", "## Builder")
    assert set(re.findall(r"^\| (\d+) \|", builder, re.M)) == {str(int(code)) for code in ExitCode}


def test_every_metric_is_explained() -> None:
    operator = source("operator/llmengine_operator")
    named = re.findall(r'(?:gauge|counters|Counter|Histogram)\(\s*"([a-z_]+)"', operator)
    server = (ROOT / "builder_image/llmengine_server/metrics.py").read_text()
    metrics = {f"llmengine_{name}" for name in named}
    metrics |= set(re.findall(r'"((?:llmengine|nv_trt_llm)_[a-z_]+)"', server))
    assert len(metrics) > 10
    cells = first_cells(section(OPERATIONS, "## Monitoring"))
    assert metrics <= {cell.partition("{")[0] for cell in cells}


def test_what_is_generated_is_as_it_would_be_generated_now() -> None:
    stale = [str(path) for path, page in generate.generated().items() if path.read_text() != page]
    assert stale == [], "run 'make generate'"


def test_a_page_without_a_place_for_its_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no <!-- spec: generated --> followed by"):
        generate.filled("<!-- end of spec -->", {"spec": "x"})


def test_the_picture_is_that_of_its_source() -> None:
    labels = re.findall(r'label="([^"]+)"', (ROOT / "docs/overview.dot").read_text())
    words = {line.strip() for label in labels for line in label.split(r"\n")}
    drawn = re.findall(r">([^<>]+)</text>", (ROOT / "docs/overview.svg").read_text())
    assert {html.unescape(text).strip() for text in drawn} == words


def links() -> Iterator[Any]:
    """Every relative link of every page."""
    for page in PAGES:
        name = page.relative_to(ROOT)
        for target in re.findall(r"\]\(([^()\s]+)\)", prose(page.read_text())):
            if not re.match(r"[a-z]+:", target):
                yield pytest.param(page, target, id=f"{name} to {target}")


@pytest.mark.parametrize(("page", "target"), list(links()))
def test_links_lead_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.exists(), f"{target} is not there"
    if anchor:
        assert anchor in anchors(file), f"{file.name} has no heading for #{anchor}"


def anchors(page: Path) -> set[str]:
    """The ids that are made of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}


@pages
def test_manifests_in_pages_are_what_the_kinds_take(page: Path) -> None:
    for block in blocks(page, "yaml"):
        for manifest in yaml.safe_load_all(block):
            model = SPECS[manifest["kind"]]
            understood = model.model_validate(manifest["spec"])
            assert understood.model_dump(by_alias=True, exclude_unset=True) == manifest["spec"]


def test_the_first_engine_is_the_one_that_the_demo_applies() -> None:
    def spec(text: str) -> Any:
        return yaml.safe_load(text)["spec"]

    example = spec((ROOT / "examples/first-engine.yaml").read_text())
    for page in (README, ROOT / "docs/llmengine.md"):
        assert spec(blocks(page, "yaml")[0]) == example


@pages
def test_json_in_pages_is_json(page: Path) -> None:
    for block in blocks(page, "json"):
        json.loads(block)


@pages
def test_targets_that_pages_name_are_in_the_makefile(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = page.read_text()
    named = re.findall(r"`make ([a-z-]+)", text) + re.findall(r"^    make ([a-z-]+)", text, re.M)
    assert set(named) <= set(targets)
