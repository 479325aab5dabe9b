"""`make demo`: from nothing to an answer of a real language model, step by step.

Every command that a user would type is printed before it runs, with its real output after it.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from tests.cluster import cli
from tests.cluster.cluster import Cluster
from tests.cluster.paths import ClusterError
from tests.cluster.waiting import wait_for
from tests.demo.platform import OPERATOR_NAMESPACE, ROOT, Images, Platform
from tests.models import smollm2

CLUSTER = "demo"
NAMESPACE = "demo"
EXAMPLE = ROOT / "examples/first-engine.yaml"
ENGINE = "smollm2"
QUESTION = "What is the capital of France?"


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start everything and ask a question")
    commands.add_parser("down", help="end the demo's cluster")
    options = parser.parse_args()
    try:
        if options.command == "down":
            return cli.main(["--name", CLUSTER, "down"])
        return Demo().run()
    except (ClusterError, AssertionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


class Demo:
    """One run. Times are seconds since its start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def run(self) -> int:
        self.say("Debian packages and programs: a Kubernetes node, Helm, an S3 server")
        if cli.main(["install"]) != 0:
            return 1
        self.say("the model: SmolLM2-135M-Instruct, as a Hugging Face directory")
        model = smollm2.directory()
        self.say("the images: operator, and onnxruntime (builds and serves)")
        built = Images.build()
        self.say("a Kubernetes node")
        cluster = Cluster(CLUSTER, images=built.all(), report=self.say)
        if cluster.is_up():
            self.say("ending the demo that still runs")
            cluster.down()
        cluster.up()
        platform = Platform(cluster, built, [NAMESPACE])
        self.say("an S3 server, and the Helm charts")
        platform.install()
        self.say(f"the model into the S3 server: {platform.put_model(model, ENGINE)}")
        self.serve(cluster, platform)
        return 0

    def serve(self, cluster: Cluster, platform: Platform) -> None:
        """The part that a user does himself on a cluster that has the operator."""
        self.show(cluster, "kubectl", "get", "pods,engineruntimes", "-n", OPERATOR_NAMESPACE)
        self.show(
            cluster, "kubectl", "apply", "-n", NAMESPACE, "-f", str(EXAMPLE.relative_to(ROOT))
        )
        applied = time.monotonic()
        self.watch(cluster)
        print("\nIn the bucket, under the engine's key:")
        for key, size in platform.stored().items():
            print(f"  {size:>12,}  {key}")
        self.show(cluster, "kubectl", "get", "all", "-n", NAMESPACE)
        address = f"{ENGINE}.{NAMESPACE}.svc.cluster.local:8001"
        self.show(cluster, sys.executable, "-m", "tests.demo.ask", address, ENGINE, QUESTION)
        print(f"\nFrom kubectl apply to the answer: {time.monotonic() - applied:.1f} s")
        self.say("done. The cluster still runs; use it, or end it with 'make demo-down':")
        print(f"  tests/cluster/cluster --name {CLUSTER} kubectl get llmengines -A")
        print(f"  tests/cluster/cluster --name {CLUSTER} exec   # a shell in its network")

    def watch(self, cluster: Cluster) -> None:
        """`kubectl get --watch` on the terminal until the engine is ready."""
        command = ["kubectl", "get", "llmengine", ENGINE, "-n", NAMESPACE, "--watch"]
        print(f"\n$ {shlex.join(command)}", flush=True)
        watcher = subprocess.Popen(cluster.command(*command), env=cluster.environment())
        path = f"/apis/llmengine.io/v1alpha1/namespaces/{NAMESPACE}/llmengines/{ENGINE}"

        def settled() -> str:
            conditions = cluster.api.get(path).get("status", {}).get("conditions", [])
            states = {c["type"]: c for c in conditions}
            if "Stalled" in states:
                raise ClusterError(f"the engine stalled: {states['Stalled']['message']}")
            ready = states.get("Ready", {}).get("status")
            return "ready" if ready == "True" else ""

        try:
            wait_for(settled, 300, "the engine to be ready")
        finally:
            watcher.terminate()
            watcher.wait()

    def show(self, cluster: Cluster, *command: str) -> None:
        """Run what a user would type, on the terminal."""
        print(f"\n$ {shlex.join([Path(command[0]).name, *command[1:]])}", flush=True)
        cluster.exec(*command, cwd=ROOT)

    def say(self, step: str) -> None:
        print(f"[{time.monotonic() - self._began:6.1f} s] {step}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
