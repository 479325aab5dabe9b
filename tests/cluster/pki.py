"""Certificates: a CA of its own for each cluster, and one certificate for each identity.

They outlive a stop: they hold no ports and no names that change.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.paths import ClusterError

VALID_DAYS = 365
RENEW_AFTER_SECONDS = 180 * 86400


@dataclass(frozen=True, slots=True)
class Identity:
    """One certificate; `extension` is what openssl is to add to it."""

    name: str
    subject: str
    extension: str = "extendedKeyUsage=clientAuth"


def server(name: str, *alternative_names: str) -> Identity:
    """The identity of a server; alternative names look like DNS:localhost and IP:127.0.0.1."""
    return Identity(name, f"/CN={name}", f"subjectAltName={','.join(alternative_names)}")


def client(name: str, user: str, group: str | None = None) -> Identity:
    return Identity(name, f"/O={group}/CN={user}" if group else f"/CN={user}")


def make_certificates(folder: Path, *identities: Identity) -> None:
    """Writes ca.crt, ca.key and NAME.crt, NAME.key into the folder, unless the same are there.

    P-256 keys throughout. Raises ClusterError when openssl fails or is missing.
    """
    done = folder / "identities"
    wanted = "\n".join(map(repr, identities))
    if (
        done.exists()
        and done.read_text() == wanted
        and time.time() - done.stat().st_mtime < RENEW_AFTER_SECONDS
    ):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    # Python's strict verification wants the key usage of a CA spelled out.
    _request(folder, "ca", "/CN=ca", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda identity: _signed(folder, identity), identities))
    done.write_text(wanted)


def make_certificate(folder: Path, identity: Identity) -> None:
    """Writes one more certificate of that CA, unless there is one of its name."""
    if not (folder / f"{identity.name}.crt").exists():
        _signed(folder, identity)


def make_key_pair(folder: Path, name: str) -> None:
    """Writes NAME.key and NAME.pub, for signing service account tokens."""
    key, public = folder / f"{name}.key", folder / f"{name}.pub"
    if not public.exists():
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key))
        openssl("ec", "-in", str(key), "-pubout", "-out", str(public))


def openssl(*arguments: str) -> None:
    try:
        subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise ClusterError(
            "openssl is not installed: run 'tests/cluster/cluster install'"
        ) from None
    except subprocess.CalledProcessError as error:
        raise ClusterError(f"openssl {arguments[0]} failed: {error.stderr.strip()}") from None


def _request(folder: Path, name: str, subject: str, *more: str) -> None:
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-days", str(VALID_DAYS), "-subj", subject),
        *("-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt"), *more),
    )


def _signed(folder: Path, identity: Identity) -> None:
    _request(
        folder,
        identity.name,
        identity.subject,
        *("-CA", str(folder / "ca.crt"), "-CAkey", str(folder / "ca.key")),
        *("-addext", "basicConstraints=critical,CA:FALSE", "-addext", identity.extension),
    )
