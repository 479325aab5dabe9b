"""What the charts have from elsewhere: the CRDs from the models, tables of values from the schema.

`python charts/generate.py` writes both in place; the result is committed.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from llmengine.api.crd import as_yaml, crds, file_name

CHARTS = Path(__file__).resolve().parent
CRD_CHART = "llmengine-crds"
BEGIN, END = "<!-- values: generated -->", "<!-- end of values -->"


def crd_template(crd: dict[str, Any]) -> str:
    """A CRD as a template of its chart: unlike in crds/, Helm upgrades it, and never deletes it.

    Raises ValueError when Helm would read the text as something to fill in.
    """
    crd = copy.deepcopy(crd)
    crd["metadata"]["annotations"]["helm.sh/resource-policy"] = "keep"
    text = as_yaml(crd)
    if "{{" in text:
        raise ValueError(f"{file_name(crd)} has {{{{ in it, which is Helm's")
    return text


def values_table(chart: Path) -> str:
    """A Markdown table of all values of a chart, with defaults and meanings."""
    schema = json.loads((chart / "values.schema.json").read_text())
    values = yaml.safe_load((chart / "values.yaml").read_text()) or {}
    lines = ["| value | default | meaning |", "|---|---|---|"]
    for path, default, title in rows(schema, values):
        lines.append(f"| `{path}` | `{json.dumps(default)}` | {title} |".replace("``", " "))
    return "\n".join(lines)


def rows(schema: dict[str, Any], values: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Path, default and title of every value that can be set. A map of free keys is one value."""
    yield from _rows(schema, values, "", schema.get("definitions", {}))


def _rows(
    node: dict[str, Any], values: dict[str, Any], path: str, definitions: dict[str, Any]
) -> Iterator[tuple[str, Any, str]]:
    for name, written in node["properties"].items():
        if name not in values:  # what Helm itself adds
            continue
        child = resolved(written, definitions)
        here = f"{path}.{name}" if path else name
        if "properties" in child:
            yield from _rows(child, values[name], here, definitions)
        else:
            yield here, values[name], child["title"]


def resolved(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A node of a schema with what it refers to filled in."""
    references = [node, *node.get("allOf", ())]
    for reference in references:
        if "$ref" in reference:
            target = definitions[reference["$ref"].removeprefix("#/definitions/")]
            node = {**target, **node}
    return node


def readme(chart: Path) -> str:
    """The chart's README with its table as of now."""
    text = (chart / "README.md").read_text()
    if BEGIN not in text:
        return text
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{values_table(chart)}\n{END}{after}"


def generated(charts: Path) -> dict[Path, str]:
    """Every generated file with its content."""
    templates = charts / CRD_CHART / "templates"
    files = {templates / file_name(crd): crd_template(crd) for crd in crds()}
    for chart in sorted(path.parent for path in charts.glob("*/Chart.yaml")):
        files[chart / "README.md"] = readme(chart)
    return files


def main() -> None:
    """Write what is generated into the charts beside this file."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for path, content in generated(CHARTS).items():
        path.write_text(content)


if __name__ == "__main__":
    main()
