"""`make demo`: from nothing to an answer of a real language model, step by step.

Every command that a user would type is printed before it runs, with its real output after it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3

from tests.cluster import cli
from tests.cluster.cluster import Cluster
from tests.cluster.paths import ClusterError
from tests.cluster.s3 import Credentials
from tests.cluster.waiting import wait_for
from tests.demo import charts, platform
from tests.demo.charts import OPERATOR_NAMESPACE, ROOT, StoreAccess
from tests.demo.existing import ExistingCluster
from tests.demo.platform import Images, Platform
from tests.models import smollm2

CLUSTER = "demo"
NAMESPACE = "demo"
EXAMPLE = "examples/first-engine.yaml"
ENGINE = "smollm2"
QUESTION = "What is the capital of France?"


def main() -> int:
    options = _parser().parse_args()
    try:
        if options.command == "down":
            return cli.main(["--name", CLUSTER, "down"])
        demo = Demo()
        return demo.existing(options) if options.cluster == "existing" else demo.local()
    except (ClusterError, AssertionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start everything and ask a question")
    up.add_argument("--cluster", choices=("local", "existing"), default="local")
    there = up.add_argument_group("a cluster of yours (--cluster existing)")
    there.add_argument("--context", default="", help="must be the kubeconfig's current context")
    there.add_argument("--operator-image", help="built from operator/Dockerfile, REPOSITORY:TAG")
    there.add_argument("--engine-image", help="built from builder_image/Dockerfile")
    there.add_argument(
        "--s3-endpoint", help="URL of an S3 service that this machine and pods reach"
    )
    there.add_argument("--s3-region", default="us-east-1")
    there.add_argument("--engines-bucket", default="engines")
    there.add_argument("--models-bucket", default="models")
    commands.add_parser("down", help="end the demo's cluster")
    return parser


class Demo:
    """One run. Times are seconds since its start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def local(self) -> int:
        """On a Kubernetes node that is made here."""
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
        there = Platform(cluster, built, [NAMESPACE])
        self.say("an S3 server, and the Helm charts")
        there.install()
        self.say(f"the model into the S3 server: {there.put_model(model, ENGINE)}")

        with self.served(cluster):
            list_store(there.stored())
            cluster.wait_forwarded(NAMESPACE, ENGINE, 8001)
            ask(cluster, f"{ENGINE}.{NAMESPACE}.svc.cluster.local:8001")
        self.say("done. The cluster still runs; use it, or end it with 'make demo-down':")
        print(f"  tests/cluster/cluster --name {CLUSTER} kubectl get llmengines -A")
        print(f"  tests/cluster/cluster --name {CLUSTER} exec   # a shell in its network")
        return 0

    def existing(self, options: argparse.Namespace) -> int:
        """On a cluster, a store and images that the user has."""
        cluster = ExistingCluster(options.context)
        needed = {"operator_image", "engine_image", "s3_endpoint"}
        if missing := sorted(name for name in needed if not getattr(options, name)):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
            raise ClusterError(f"a cluster of yours needs {flags}; see README.md")
        try:
            key = Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
        except KeyError as error:
            raise ClusterError(f"{error} is not set: the demo's pods use your key") from None
        self.say("the model: SmolLM2-135M-Instruct, as a Hugging Face directory")
        model = smollm2.directory()
        client = boto3.client("s3", endpoint_url=options.s3_endpoint, region_name=options.s3_region)
        self.say(f"the model into bucket {options.models_bucket}")
        platform.upload(client, model, options.models_bucket, ENGINE)
        store = StoreAccess(
            options.s3_endpoint,
            options.s3_region,
            options.engines_bucket,
            options.models_bucket,
            dict.fromkeys(("operator", "build", "serve", "models"), key),
        )
        self.say(f"the Helm charts into context {options.context}")
        cluster.apply(platform.namespace(NAMESPACE))
        charts.install(
            cluster,
            charts.values(options.operator_image, options.engine_image, store, [NAMESPACE]),
        )
        with self.served(cluster, f"s3://{options.models_bucket}/{ENGINE}"):
            list_store(platform.listed(client, options.engines_bucket))
            with cluster.reach(ENGINE, NAMESPACE, 8001) as address:
                ask(cluster, address)
        self.say("done. To remove it again:")
        print(f"  kubectl delete namespace {NAMESPACE}")
        print(f"  helm uninstall llmengine-operator llmengine-crds -n {OPERATOR_NAMESPACE}")
        return 0

    @contextmanager
    def served(
        self, cluster: Cluster | ExistingCluster, uri: str = "s3://models/smollm2"
    ) -> Iterator[None]:
        """What a user does himself on a cluster that has the operator."""
        show(cluster, "kubectl", "get", "pods,engineruntimes", "-n", OPERATOR_NAMESPACE)
        show(cluster, "kubectl", "apply", "-n", NAMESPACE, "-f", EXAMPLE)
        if uri != "s3://models/smollm2":
            patch = json.dumps({"spec": {"model": {"uri": uri}}})
            merge = ("--type", "merge", "--patch", patch)
            show(cluster, "kubectl", "patch", "llmengine", ENGINE, "-n", NAMESPACE, *merge)
        applied = time.monotonic()
        watch(cluster)
        show(cluster, "kubectl", "get", "all", "-n", NAMESPACE)
        yield
        print(f"\nFrom kubectl apply to the answer: {time.monotonic() - applied:.1f} s")

    def say(self, step: str) -> None:
        print(f"[{time.monotonic() - self._began:6.1f} s] {step}", flush=True)


def watch(cluster: Cluster | ExistingCluster) -> None:
    """`kubectl get --watch` on the terminal until the engine is ready."""
    command = ["kubectl", "get", "llmengine", ENGINE, "-n", NAMESPACE, "--watch"]
    print(f"\n$ {shlex.join(command)}", flush=True)
    watcher = subprocess.Popen(cluster.command(*command), env=cluster.environment())

    def settled() -> bool:
        text = cluster.kubectl("get", "llmengine", ENGINE, "-n", NAMESPACE, "-o", "json")
        conditions = json.loads(text).get("status", {}).get("conditions", [])
        states = {c["type"]: c for c in conditions}
        if "Stalled" in states:
            raise ClusterError(f"the engine stalled: {states['Stalled']['message']}")
        return bool(states.get("Ready", {}).get("status") == "True")

    try:
        wait_for(settled, 600, "the engine to be ready", interval=0.5)
    finally:
        watcher.terminate()
        watcher.wait()


def ask(cluster: Cluster | ExistingCluster, address: str) -> None:
    show(cluster, sys.executable, "-m", "tests.demo.ask", address, ENGINE, QUESTION)


def list_store(stored: dict[str, int]) -> None:
    print("\nIn the bucket, under the engine's key:")
    for key, size in stored.items():
        print(f"  {size:>12,}  {key}")


def show(cluster: Cluster | ExistingCluster, *command: str) -> None:
    """Run what a user would type, on the terminal."""
    print(f"\n$ {shlex.join([Path(command[0]).name, *command[1:]])}", flush=True)
    cluster.exec(*command, cwd=ROOT)


if __name__ == "__main__":
    raise SystemExit(main())
