"""An operator process whose passes do nothing but say what woke them, one JSON object a line.

python -m tests.contract.kube.stand_in CONFIG. $STAND_IN is JSON: the fields of Timing that differ,
`pass_seconds` for how long a pass takes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmengine_operator import logs
from llmengine_operator.config import Config
from llmengine_operator.kube import Kube
from llmengine_operator.process import Key, Process, Timing


def say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")  # in one piece: threads say things
    sys.stdout.flush()


class SaidWake:
    """Wakes engines, and says what it was told."""

    def __init__(self, enqueue: Callable[[Key], None]) -> None:
        self._enqueue = enqueue

    def engine(self, namespace: str, name: str) -> None:
        say(wake="LLMEngine", namespace=namespace, name=name)
        self._enqueue((namespace, name))

    def runtime(self, name: str) -> None:
        say(wake="EngineRuntime", name=name)

    def node(self, name: str, obj: Mapping[str, Any] | None) -> None:
        say(wake="Node", name=name)

    def child(
        self,
        kind: str,
        namespace: str,
        labels: Mapping[str, str],
        annotations: Mapping[str, str],
    ) -> None:
        say(wake=kind, namespace=namespace, labels=dict(labels), annotations=dict(annotations))


class SaidPasses:
    """Passes that do nothing, for as long as they are told to take."""

    def __init__(self, enqueue: Callable[[Key], None], seconds: float) -> None:
        self.wake = SaidWake(enqueue)
        self._seconds = seconds

    def start(self) -> None:
        say(started=True)

    def reconcile(self, key: Key) -> float | None:
        say(begins="/".join(key))
        time.sleep(self._seconds)
        say(ends="/".join(key))
        return None


def main() -> None:
    options = json.loads(os.environ.get("STAND_IN", "{}"))
    seconds = options.pop("pass_seconds", 0)
    timing = Timing()
    for part in ("watch", "audit"):
        timing = replace(timing, **{part: replace(getattr(timing, part), **options.pop(part, {}))})
    logs.configure("INFO")

    def passes(kube: Kube, config: Config, enqueue: Callable[[Key], None]) -> SaidPasses:
        return SaidPasses(enqueue, seconds)

    process = Process(
        Config.load(Path(sys.argv[1])),
        passes,
        timing=replace(timing, **options),
        host="127.0.0.1",
    )
    sys.exit(process.run())


if __name__ == "__main__":
    main()
