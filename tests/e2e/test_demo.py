"""`make demo CLUSTER=existing`: on a cluster that is there, and only on the one that was named."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.demo.charts import ROOT
from tests.demo.platform import Platform

pytestmark = [pytest.mark.cluster, pytest.mark.model]


def demo(platform: Platform, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = platform.s3.root
    return platform.cluster.exec(
        *("env", f"AWS_ACCESS_KEY_ID={root.access_key}"),
        f"AWS_SECRET_ACCESS_KEY={root.secret_key}",
        *(sys.executable, "-m", "tests.demo", "up", "--cluster", "existing", *arguments),
        capture_output=True,
        check=False,
        cwd=ROOT,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param((), "no --context was given", id="no context named"),
        pytest.param(("--context", "production"), "--context production", id="another context"),
    ],
)
def test_a_context_that_was_not_named_is_refused(
    platform: Platform, arguments: tuple[str, ...], words: str
) -> None:
    done = demo(platform, *arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert "the current context is" in done.stderr


def test_what_a_cluster_of_ones_own_needs_is_named(platform: Platform) -> None:
    context = platform.cluster.kubectl("config", "current-context").strip()
    done = demo(platform, "--context", context)
    assert "--engine-image, --operator-image, --s3-endpoint" in done.stderr


def test_the_named_context_gets_the_demo(platform: Platform) -> None:
    context = platform.cluster.kubectl("config", "current-context").strip()
    done = demo(
        platform,
        *("--context", context),
        *("--operator-image", platform.images.operator.reference),
        *("--engine-image", platform.images.engine.reference),
        *("--s3-endpoint", platform.s3.endpoint),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The capital of France is Paris." in done.stdout
    platform.cluster.kubectl("delete", "namespace", "demo", "--wait=false")
    platform.install_charts()
