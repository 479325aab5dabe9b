#!/usr/bin/env python3
"""Builds the Go programs that the tests run, each from a pinned module of its own, and never twice.

`build.py NAME...` prints the paths of the binaries; a cached one is used when version, sources,
flags and compiler are the same.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).resolve().parent
KEPT_BUILDS = 3  # of each program, so that branches with different versions do not evict each other

# The same flags for every build: with any other set (go vet counts too) Go's build cache misses for
# the whole of Kubernetes, which costs many minutes. VCS stamps would relink at every commit.
FLAGS = ("-trimpath", "-buildvcs=false")


class ToolError(RuntimeError):
    """A program could not be built; the message ends with what the compiler said."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A program: the module that decides its version, the package to build, and version stamps."""

    name: str
    module: str
    package: str = "."
    stamps: tuple[tuple[str, str], ...] = ()
    """Pairs of a Go variable and a value, in which {version}, {major} and {minor} are filled in."""

    @property
    def folder(self) -> Path:
        return MODULES / self.name

    @property
    def version(self) -> str:
        go_mod = (self.folder / "go.mod").read_text()
        found = re.search(rf"^(?:require)?\s+{re.escape(self.module)} (v\S+)", go_mod, re.MULTILINE)
        if found is None:
            raise ToolError(f"{self.folder}/go.mod does not require {self.module}")
        return found[1]

    @property
    def linker_flags(self) -> str:
        major, minor = self.version.removeprefix("v").split(".")[:2]
        values = {"version": self.version, "major": major, "minor": minor}
        stamps = (f"-X {variable}={value.format(**values)}" for variable, value in self.stamps)
        return " ".join(("-s -w", *stamps))


_KUBERNETES = "k8s.io/component-base/version"
_HELM = "helm.sh/helm/v3"

TOOLS = {
    tool.name: tool
    for tool in (
        # First: coredns, kwok and helm then find most of their packages compiled.
        Tool(
            "hyperkube",
            "k8s.io/kubernetes",
            stamps=(  # without them the API server calls itself v0.0.0-master
                (f"{_KUBERNETES}.gitVersion", "{version}"),
                (f"{_KUBERNETES}.gitMajor", "{major}"),
                (f"{_KUBERNETES}.gitMinor", "{minor}"),
                (f"{_KUBERNETES}.gitTreeState", "clean"),
            ),
        ),
        Tool("coredns", "github.com/coredns/coredns"),
        Tool("kwok", "sigs.k8s.io/kwok", "sigs.k8s.io/kwok/cmd/kwok"),
        Tool(
            "helm",
            _HELM,
            f"{_HELM}/cmd/helm",
            stamps=(  # without the last four `helm template` and `helm lint` assume Kubernetes 1.20
                (f"{_HELM}/internal/version.version", "{version}"),
                (f"{_HELM}/pkg/chartutil.k8sVersionMajor", "1"),
                (f"{_HELM}/pkg/chartutil.k8sVersionMinor", "37"),
                (f"{_HELM}/pkg/lint/rules.k8sVersionMajor", "1"),
                (f"{_HELM}/pkg/lint/rules.k8sVersionMinor", "37"),
            ),
        ),
        Tool(
            "versitygw",
            "github.com/versity/versitygw",
            "github.com/versity/versitygw/cmd/versitygw",
            stamps=(("main.Version", "{version}"),),
        ),
        Tool(
            "kubeconform",
            "github.com/yannh/kubeconform",
            "github.com/yannh/kubeconform/cmd/kubeconform",
            stamps=(("main.version", "{version}"),),
        ),
        Tool(
            "toxiproxy",
            "github.com/Shopify/toxiproxy/v2",
            "github.com/Shopify/toxiproxy/v2/cmd/server",
            stamps=(("github.com/Shopify/toxiproxy/v2.Version", "{version}"),),
        ),
        # What Flux and Helm 4 say of an object; Argo CD's interpreter is pinned beside it.
        Tool("gitops", "github.com/fluxcd/cli-utils"),
        Tool(
            "controller-gen",
            "sigs.k8s.io/controller-tools",
            "sigs.k8s.io/controller-tools/cmd/controller-gen",
        ),
    )
}


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "llmengine" / "tools"


def build(*names: str) -> dict[str, Path]:
    """Builds what is not in the cache, and returns the binary of each program.

    Raises ToolError when a program is unknown, Go is missing, or a build fails.
    """
    unknown = sorted(set(names) - set(TOOLS))
    if unknown:
        raise ToolError(f"no such tool: {', '.join(unknown)}; there are {', '.join(TOOLS)}")
    return {name: _build(TOOLS[name]) for name in TOOLS if name in names}


def path(name: str) -> Path:
    """The binary of one program, built if need be.

    A folder of programs in LLMENGINE_TOOLS comes first: for machines without Go, or a network.
    """
    folder = os.environ.get("LLMENGINE_TOOLS")
    if folder and (carried := Path(folder) / name).exists():
        return carried
    return build(name)[name]


def _build(tool: Tool) -> Path:
    folder = cache_folder() / f"{tool.name}-{tool.version}-{_key(tool)}"
    binary = folder / tool.name
    if binary.exists():
        os.utime(folder)  # the least recently used builds are pruned
        return binary
    cache_folder().mkdir(parents=True, exist_ok=True)
    with _locked(cache_folder() / f".{tool.name}.lock"):
        if not binary.exists():  # else another process has built it meanwhile
            _prune(tool)
            print(f"building {tool.name} {tool.version}", file=sys.stderr, flush=True)
            new = cache_folder() / f".new-{tool.name}"
            _compile(tool, new / tool.name)
            new.rename(folder)
    return binary


def _compile(tool: Tool, output: Path) -> None:
    command = ["go", "build", *FLAGS, f"-ldflags={tool.linker_flags}", "-o", str(output)]
    built = subprocess.run(
        ["nice", "-n", "5", *command, tool.package],
        cwd=tool.folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if built.returncode != 0:
        last = "\n".join(built.stdout.splitlines()[-30:])
        raise ToolError(f"building {tool.name} failed in {tool.folder}:\n{last}")


def environment() -> dict[str, str]:
    """Of every call of Go."""
    # Static binaries run in any image; GOFLAGS of the caller would change the cache keys.
    return {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}


def _key(tool: Tool) -> str:
    if shutil.which("go") is None:
        raise ToolError("Go is not on PATH: the cluster's programs need Go 1.26 or later")
    go = subprocess.run(
        ["go", "version"],
        cwd=tool.folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if go.returncode != 0:
        raise ToolError(f"'go version' failed in {tool.folder}: {go.stderr.strip()}")
    digest = hashlib.sha256(repr((go.stdout, FLAGS, tool.package, tool.linker_flags)).encode())
    for source in sorted(tool.folder.iterdir()):
        if source.name in ("go.mod", "go.sum") or source.suffix == ".go":
            digest.update(f"{source.name} {source.stat().st_size}\n".encode())
            digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def _prune(tool: Tool) -> None:
    builds = [folder for folder in cache_folder().glob(f"{tool.name}-v*") if folder.is_dir()]
    builds.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    killed = cache_folder() / f".new-{tool.name}"  # of a build that did not get to its end
    for folder in (killed, *builds[KEPT_BUILDS - 1 :]):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="*", help=f"of {', '.join(TOOLS)}; all by default")
    names = parser.parse_args().name or list(TOOLS)
    try:
        for binary in build(*names).values():
            print(binary)
    except ToolError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
