"""Images of engines that must not win: each builds and fetches as the good one does, and then does
not serve, in a way of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.cluster.images import Image, overlaid
from tests.demo.platform import RUNTIME, Platform

RUNTIMES = "/apis/llmengine.io/v1alpha1/engineruntimes"
_BIN = "opt/llmengine/bin"

_CRASHES = b"""#!/bin/sh
echo "libnvinfer.so.10: cannot open shared object file" >&2
exit 3
"""

_NEVER_STARTS = b"""#!/bin/sh
trap 'exit 0' TERM
echo "waiting for a licence server" >&2
while true; do sleep 1 & wait $!; done
"""

# The server works; only its probe says that it does not.
_PROBE_FAILS = b"""#!/bin/sh
echo "the device was lost: error 999" >&2
exit 1
"""

# It is ready, and dies of the first requests.
_DIES_SOON = b"""#!/bin/sh
/opt/llmengine/bin/python -m llmengine_server.serve &
server=$!
trap 'kill $server; wait $server; exit 0' TERM
until llmengine-alive --ready 2>/dev/null; do
    kill -0 $server || exit 4
    sleep 0.2
done
sleep 3
kill -9 $server
echo "illegal memory access was encountered" >&2
exit 7
"""

# It serves like the good one, until something is in its folder that outlives its containers: then
# it dies a moment after it got ready, again and again.
POISON = "/run/llmengine/poison"
_DIES_LATER = b"""#!/bin/sh
/opt/llmengine/bin/python -m llmengine_server.serve &
server=$!
trap 'kill $server; wait $server; exit 0' TERM
while kill -0 $server; do
    if [ -e /run/llmengine/poison ] && llmengine-alive --ready 2>/dev/null; then
        sleep 2
        kill -9 $server
        echo "uncorrectable ECC error encountered" >&2
        exit 8
    fi
    sleep 0.2
done
exit 4
"""


@dataclass(frozen=True)
class Fault:
    """What a bad image does. `words`: what its pods say, by themselves or through their probes."""

    name: str
    program: str
    does: bytes
    words: str

    def image(self, good: Image) -> Image:
        return overlaid(good, f"bad-{self.name}", {f"{_BIN}/{self.program}": self.does})


CRASHES = Fault("crashes", "llmengine-serve", _CRASHES, "libnvinfer.so.10: cannot open")
NEVER_STARTS = Fault(
    "never-starts", "llmengine-serve", _NEVER_STARTS, "the engine loop has not started"
)
PROBE_FAILS = Fault("probe-fails", "llmengine-alive", _PROBE_FAILS, "the device was lost")
DIES_SOON = Fault("dies-soon", "llmengine-serve", _DIES_SOON, "illegal memory access")
DIES_LATER = Fault("dies-later", "llmengine-serve", _DIES_LATER, "uncorrectable ECC error")
# Those that never serve.
ALL = (CRASHES, NEVER_STARTS, PROBE_FAILS, DIES_SOON)


def make_runtime(platform: Platform, fault: Fault) -> None:
    """The good runtime with a bad image: the same backend and version, so engines have its keys."""
    image = fault.image(platform.images.engine)
    platform.cluster.load(image)
    good = platform.cluster.api.get(f"{RUNTIMES}/{RUNTIME}")
    repository, _, tag = image.reference.rpartition(":")
    spec = {**good["spec"], "image": {"repository": repository, "tag": tag}}
    kind = {"apiVersion": good["apiVersion"], "kind": good["kind"]}
    platform.cluster.apply({**kind, "metadata": {"name": f"bad-{fault.name}"}, "spec": spec})
