"""What the operator's code asks of the API server, read from the code itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llmengine_operator
from llmengine_operator import kinds
from llmengine_operator.handlers import WATCHES
from llmengine_operator.kinds import Kind

# What RBAC calls the requests of a method of Kube. An apply creates what is not there.
_VERBS = {
    "get": ("get",),
    "list": ("list",),
    "create": ("create",),
    "replace": ("update",),
    "apply": ("create", "patch"),
    "delete": ("delete",),
}
_SUBRESOURCES = {"apply_status": "status", "overwrite_status": "status", "scale": "scale"}
# Where the kind is a variable, with what it stands for there.
_VARIABLE: dict[str, tuple[Kind, ...]] = {
    "apply.py": (kinds.DEPLOYMENT, kinds.SERVICE, kinds.HPA, kinds.PDB),
    "observe.py": (kinds.DEPLOYMENT, kinds.SERVICE, kinds.HPA, kinds.PDB),
    "watch_audit.py": tuple(watch.kind for watch in WATCHES),
}
# get by name is for what has a name that we need, whoever made it: not for autoscalers
# and budgets, which are listed.
_NOT_MEANT = {("get", kinds.HPA), ("get", kinds.PDB)}


@dataclass(frozen=True, order=True)
class Right:
    """One verb on one resource, as in a rule; a subresource is part of the resource."""

    group: str
    resource: str
    verb: str

    @classmethod
    def to(cls, verb: str, kind: Kind, subresource: str = "") -> Right:
        resource = f"{kind.plural}/{subresource}" if subresource else kind.plural
        return cls(kind.group, resource, verb)


def needed() -> set[Right]:
    """Everything that the operator does."""
    rights = set(_called())
    for watch in WATCHES:
        rights |= {Right.to(verb, watch.kind) for verb in ("list", "watch")}
    return rights


def given(rules: list[dict[str, Any]]) -> set[Right]:
    """Everything that rules allow."""
    return {
        Right(group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def _called() -> Iterator[Right]:
    package = Path(llmengine_operator.__path__[0])
    for file in sorted(package.rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            if not ast.unparse(call.func.value).endswith("kube"):
                continue
            yield from _rights(file.name, call.func.attr, call)


def _rights(file: str, method: str, call: ast.Call) -> Iterator[Right]:
    if method == "event":
        yield from (Right.to(verb, kinds.EVENT) for verb in ("create", "patch"))
        return
    assert method in _VERBS or method in _SUBRESOURCES, f"{file}: {method} needs a verb here"
    word = call.args[0]
    known = getattr(kinds, word.id, None) if isinstance(word, ast.Name) else None
    for kind in (known,) if isinstance(known, Kind) else _meant(file, method):
        if method in _SUBRESOURCES:
            yield Right.to("patch", kind, _SUBRESOURCES[method])
        else:
            yield from (Right.to(verb, kind) for verb in _VERBS[method])


def _meant(file: str, method: str) -> Iterator[Kind]:
    assert file in _VARIABLE, f"{file} calls {method} with a kind that is not known here"
    yield from (kind for kind in _VARIABLE[file] if (method, kind) not in _NOT_MEANT)
