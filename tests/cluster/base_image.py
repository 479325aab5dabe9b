"""The Debian that images are built over: with Python 3.11 and the CAs that this machine trusts.

It stands in for the public slim Python image, which cannot be pulled on every machine.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.cluster.paths import ClusterError

SUITE = "bookworm"  # the release whose Python is 3.11
PACKAGES = ("python3", "python3-venv", "python3-pip", "libpython3.11", "ca-certificates")
# Builds mount caches and settings there: folders that exist already leave no trace in an image.
MOUNT_POINTS = ("/root/.cache", "/etc/xdg/pip", "/etc/xdg/uv")
_LEFT_OUT = ("man", "doc", "locale", "info", "lintian")
_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_BUNDLE_VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def digest() -> str:
    """Of what decides what the image is, but for the state of the Debian archive."""
    recipe = (SUITE, _options(), own_certificates())
    return hashlib.sha256(repr(recipe).encode()).hexdigest()


def make_root(archive: Path) -> None:
    """Writes the root file system as a tar. Raises ClusterError when mmdebstrap fails."""
    if shutil.which("mmdebstrap") is None:
        raise ClusterError("mmdebstrap is not installed: run 'tests/cluster/cluster install'")
    with tempfile.TemporaryDirectory() as folder:
        certificates = []
        for number, certificate in enumerate(own_certificates()):
            file = Path(folder) / f"host-{number}.crt"
            file.write_text(certificate)
            copy = f"copy-in {file} /usr/local/share/ca-certificates"
            certificates.append(f"--customize-hook={copy}")
        command = ["mmdebstrap", "--quiet", *certificates, *_options()]
        command += [SUITE, str(archive), *_debian_sources()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"mmdebstrap failed:\n{done.stderr[-3000:].rstrip()}")


def _options() -> list[str]:
    points = " ".join(f'"$1{point}"' for point in MOUNT_POINTS)
    hooks = [
        f"mkdir -p {points}",
        'chroot "$1" update-ca-certificates',
        # mmdebstrap leaves this machine's: they are needed until here only.
        ': >"$1/etc/resolv.conf"; : >"$1/etc/hostname"',
    ]
    return [
        *("--variant=minbase", f"--include={','.join(PACKAGES)}"),
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _LEFT_OUT),
        *(f"--customize-hook={hook}" for hook in hooks),
    ]


def own_certificates() -> list[str]:
    """The certificates that this machine trusts beyond those that Debian ships."""
    bundles = {
        _BUNDLE,
        *(Path(os.environ[name]) for name in _BUNDLE_VARIABLES if name in os.environ),
    }
    trusted = {certificate for bundle in bundles for certificate in _certificates(bundle)}
    shipped = Path("/usr/share/ca-certificates").rglob("*.crt")
    return sorted(
        trusted - {certificate for file in shipped for certificate in _certificates(file)}
    )


def _certificates(file: Path) -> list[str]:
    if not file.is_file():
        return []
    text = file.read_text(errors="replace")
    block = "-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n"
    return re.findall(block, text + "\n", re.DOTALL)


def _debian_sources() -> list[str]:
    """This machine's sources of the same release; without any, mmdebstrap takes the public ones."""
    form = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    wanted = ["Created-By: Packages", "Origin: Debian"]
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", form, *wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = {line for line in listed.stdout.splitlines() if line.split()[2].startswith(SUITE)}
    return sorted(lines) if any(line.split()[2] == SUITE for line in lines) else []
