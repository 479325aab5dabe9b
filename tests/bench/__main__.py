"""`make bench`: every measurement of docs/performance.md, one process after the other."""

from __future__ import annotations

import subprocess
import sys

MODULES = (
    "graph",
    "session",
    "serving",
    "build",
    "fetch",
    "operator",
    "cluster",
    "rollouts",
    "faults",
)


def main() -> int:
    failed = 0
    for name in sys.argv[1:] or MODULES:
        print(f"\n== tests.bench.{name}", flush=True)
        failed |= subprocess.run(
            [sys.executable, "-m", f"tests.bench.{name}"], check=False
        ).returncode
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
