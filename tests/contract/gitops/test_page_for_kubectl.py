"""The steps for kubectl work as they are written, one after the other."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace

import pytest

from llmengine_operator.kinds import LLMENGINE
from tests.cluster.paths import REPOSITORY
from tests.contract.gitops.manifests import EXAMPLES
from tests.contract.operator.builder import Builder
from tests.contract.operator.stage import Stage

pytestmark = pytest.mark.controlplane

PAGE = EXAMPLES / "kubectl" / "README.md"
RUNTIME = "onnxruntime-1.32.0"


@pytest.fixture
def demo(stage: Stage) -> Iterator[Stage]:
    """The namespace and the runtime that the page names."""
    made = replace(stage, runtime=RUNTIME, spaces={**stage.spaces, "team": "demo"})
    made.cluster.kubectl("create", "namespace", "demo")
    made.set_image("v1")
    yield made
    for engine in made.items(LLMENGINE):
        made.remove(LLMENGINE, engine["metadata"]["name"])
    made.remove_runtime()
    made.cluster.kubectl("delete", "namespace", "demo", "--wait=false")


def test_the_steps_work_in_their_order(demo: Stage) -> None:
    commands = re.findall(r"^    (kubectl .+)$", PAGE.read_text(), re.MULTILINE)
    assert [shlex.split(command)[1] for command in commands] == [
        *("apply", "wait", "diff", "apply", "wait", "get", "delete")
    ]
    said: list[str] = []
    for command in commands:
        done = demo.cluster.exec(
            *shlex.split(command), cwd=REPOSITORY, capture_output=True, check=False, timeout=120
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        said.append(done.stdout)
        if len(said) == 1:
            Builder(demo).finish(demo.until_job())
    name = "llmengine.llmengine.io/smollm2"
    shown = said.pop(5)
    assert said == [
        f"{name} serverside-applied\n",
        f"{name} condition met\n",
        "",
        f"{name} serverside-applied\n",
        f"{name} condition met\n",
        'llmengine.llmengine.io "smollm2" deleted from demo namespace\n',
    ]
    assert re.search(r"smollm2 +True +Serving", shown)
    assert demo.items(LLMENGINE) == []
