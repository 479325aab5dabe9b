"""The CRDs of tools that examples are written for, in pinned versions, each as its maker ships it.

A cluster that has them refuses a wrong example as a user's would.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.tools import build as tools


@dataclass(frozen=True, slots=True)
class Module:
    """A Go module that carries CRDs, with the sum that go.sum would have of it."""

    path: str
    version: str
    sum: str
    crds: tuple[str, ...]

    def read(self) -> list[str]:
        """The CRDs. Raises ToolError when the module cannot be had, or is not the pinned one."""
        command = ["go", "mod", "download", "-json", f"{self.path}@{self.version}"]
        done = subprocess.run(
            command,
            cwd=tools.MODULES,
            env=tools.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        said = json.loads(done.stdout) if done.stdout else {"Error": done.stderr.strip()}
        if "Error" in said:
            raise tools.ToolError(f"{self.path} {self.version}: {said['Error']}")
        if said["Sum"] != self.sum:
            raise tools.ToolError(f"{self.path} {self.version} is {said['Sum']}, not {self.sum}")
        return [(Path(said["Dir"]) / crd).read_text() for crd in self.crds]


# The newest that Go 1.26 takes.
MODULES = (
    Module(
        "github.com/argoproj/argo-cd/v3",
        "v3.5.7",
        "h1:Xm1BF+I5OgDKUG3SDK49vn2/Y5AMyaNVko+/JT08gj0=",
        ("manifests/crds/application-crd.yaml",),
    ),
    Module(
        "github.com/fluxcd/source-controller",
        "v1.9.6",
        "h1:nG534/bI6nVpyHra7ONAk6xDB3xPsVT+EOLHZHXPrrc=",
        ("config/crd/bases/source.toolkit.fluxcd.io_gitrepositories.yaml",),
    ),
    Module(
        "github.com/fluxcd/kustomize-controller",
        "v1.9.6",
        "h1:XB+G3A0mky0j5uVHZWv4oSlS2RvZBoNIUhstIvY0JKE=",
        ("config/crd/bases/kustomize.toolkit.fluxcd.io_kustomizations.yaml",),
    ),
    Module(
        "github.com/kedacore/keda/v2",
        "v2.21.0",
        "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps=",
        ("config/crd/bases/keda.sh_scaledobjects.yaml",),
    ),
)


def _helm_releases() -> list[str]:
    """Flux's helm-controller is no module that a proxy serves, but the types of its kinds are."""
    generate = ("crd", "paths=github.com/fluxcd/helm-controller/api/v2", "output:crd:stdout")
    generator = tools.TOOLS["controller-gen"]
    done = subprocess.run(
        [str(tools.path(generator.name)), *generate],
        cwd=generator.folder,
        env=tools.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise tools.ToolError(f"controller-gen failed: {done.stderr.strip()}")
    return [done.stdout]


def crds() -> list[Path]:
    """Files of CRDs, made once. Raises ToolError."""
    sources: dict[str, Callable[[], list[str]]] = {
        f"{module.path.replace('/', '-')}-{module.version}": module.read for module in MODULES
    }
    pinned = (tools.TOOLS["controller-gen"].folder / "go.mod").read_bytes()
    digest = hashlib.sha256(pinned).hexdigest()[:12]
    sources[f"helm-controller-{digest}"] = _helm_releases
    return [_kept(name, make) for name, make in sources.items()]


def _kept(name: str, make: Callable[[], list[str]]) -> Path:
    folder = tools.cache_folder().parent / "crds"
    file = folder / f"{name}.yaml"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(".new")
        new.write_text("---\n".join(make()))
        shutil.move(new, file)
    return file
