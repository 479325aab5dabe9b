"""What GitOps tools make of an object, each by its own code: kstatus, Flux's expressions, Argo CD's
Lua.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.paths import REPOSITORY
from tests.tools import build as tools

CUSTOMIZATIONS = REPOSITORY / "docs" / "gitops" / "resource_customizations"
ENGINE_HEALTH = CUSTOMIZATIONS / "llmengine.io" / "LLMEngine" / "health.lua"


class JudgeError(AssertionError):
    """The tool could not judge; the text is its error output."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A word and a sentence of the tool's own."""

    status: str
    message: str


def kstatus(*objects: Mapping[str, Any]) -> list[str]:
    """The status of each object, for Flux and Helm 4."""
    return [verdict.status for verdict in _judge(["kstatus"], objects)]


def flux(expressions: Mapping[str, str], *objects: Mapping[str, Any]) -> list[str]:
    """The same by an entry of spec.healthCheckExprs, which names no kind here."""
    return [verdict.status for verdict in _judge(["flux", json.dumps(expressions)], objects)]


def argo(
    *objects: Mapping[str, Any], script: Path = ENGINE_HEALTH, builtin: bool = False
) -> list[Verdict]:
    """The health of each object. `builtin`: with the libraries of a script that Argo CD ships."""
    return _judge(["argo-builtin" if builtin else "argo", str(script)], objects)


def _judge(command: Sequence[str], objects: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    done = subprocess.run(
        [str(tools.path("gitops")), *command],
        input=json.dumps(objects),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise JudgeError(done.stderr.strip())
    return [Verdict(**verdict) for verdict in json.loads(done.stdout)]
