"""A cluster that exists already: reached through the user's kubeconfig, after he has named it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.cluster.paths import ClusterError
from tests.cluster.waiting import wait_for


class ExistingCluster:
    """The kubeconfig's current context."""

    def __init__(self, context: str) -> None:
        """Raises ClusterError unless `context` is the current one.

        Nothing is installed into a cluster that the user did not name.
        """
        if shutil.which("kubectl") is None:
            raise ClusterError("kubectl is not on the PATH: install it to use a cluster of yours")
        asked = ("config", "current-context")
        current = self.exec("kubectl", *asked, capture_output=True, check=False).stdout.strip()
        if not current:
            raise ClusterError("the kubeconfig has no current context: kubectl config use-context")
        if context != current:
            given = f"--context {context} was given" if context else "no --context was given"
            raise ClusterError(
                f"the current context is {current}, but {given}: to install the demo there, name"
                f" it: make demo CLUSTER=existing DEMO='--context {current} ...'"
            )

    def environment(self) -> Mapping[str, str]:
        return os.environ

    def command(self, *command: str) -> list[str]:
        return list(command)

    def exec(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs a program; options are those of subprocess.run."""
        check = options.pop("check", True)
        return subprocess.run(command, check=check, text=True, **options)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl prints. Raises ClusterError with its error output when it fails."""
        done = self.exec("kubectl", *arguments, input=stdin, capture_output=True, check=False)
        if done.returncode != 0:
            raise ClusterError(f"kubectl {' '.join(arguments)} failed: {done.stderr.strip()}")
        return str(done.stdout)

    def apply(self, *objects: Mapping[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin="\n---\n".join(json.dumps(o) for o in objects))

    @contextmanager
    def reach(self, service: str, namespace: str, port: int) -> Iterator[str]:
        """A local address that leads to a Service's port, while it is used."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            local = probe.getsockname()[1]
        line = ["kubectl", "port-forward", "-n", namespace, f"service/{service}", f"{local}:{port}"]
        forward = subprocess.Popen(line, stdout=subprocess.DEVNULL)
        try:
            wait_for(lambda: _listens(local), 30, f"kubectl port-forward to {service}")
            yield f"127.0.0.1:{local}"
        finally:
            forward.terminate()
            forward.wait()


def _listens(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 1):
        return True
