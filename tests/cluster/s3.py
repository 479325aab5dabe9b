"""A real S3 server for tests: versitygw over a folder, its users' rights in bucket policies."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import pki
from tests.cluster.cluster import Cluster
from tests.cluster.paths import ClusterError
from tests.cluster.service import Service
from tests.tools import build as tools

REGION = "us-east-1"
READ = ("s3:GetObject", "s3:GetObjectTagging", "s3:GetObjectVersion")
WRITE = (
    *READ,
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
)


@dataclass(frozen=True, slots=True)
class Credentials:
    access_key: str
    secret_key: str

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
        }


class S3Server(Service):
    """An S3 server on loopback, or on the node's address in a cluster's network.

    In one cluster each needs a name of its own. With `data` the objects outlive the server. Its
    certificate, with `tls`, is signed by the CA in `ca_file`.
    """

    def __init__(
        self,
        cluster: Cluster | None = None,
        *,
        name: str = "s3",
        port: int = 0,
        data: Path | None = None,
        root: Credentials | None = None,
        tls: bool = False,
    ) -> None:
        super().__init__(name, cluster)
        self.port = port
        self.root = root or Credentials("root", secrets.token_hex(20))
        self.tls = tls
        self._data = data or self.folder / "data"
        self._statements: dict[str, list[dict[str, Any]]] = {}

    @property
    def endpoint(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    @property
    def ca_file(self) -> Path | None:
        return self.folder / "pki/ca.crt" if self.tls else None

    def command(self) -> tuple[list[str], Mapping[str, str]]:
        # Neither may lie in the other: every folder of the root is a bucket.
        buckets, users = self._data / "buckets", self._data / "users"
        for folder in (buckets, users):
            folder.mkdir(parents=True, exist_ok=True)
        command = [
            str(tools.path("versitygw")),
            "--port",
            f"{self.host}:{self.port}",
            "--keep-alive",
        ]
        command += ["--quiet", "--region", REGION, "--iam-dir", str(users)]
        if self.tls:
            folder = self.folder / "pki"
            names = ("DNS:localhost", "IP:127.0.0.1", f"IP:{self.host}")
            pki.make_certificates(folder, pki.server("s3", *names))
            command += ["--cert", str(folder / "s3.crt"), "--key", str(folder / "s3.key")]
        root = {"ROOT_ACCESS_KEY": self.root.access_key, "ROOT_SECRET_KEY": self.root.secret_key}
        return [*command, "posix", str(buckets)], root

    def client(
        self, user: Credentials | None = None, *, endpoint: str | None = None, **config: Any
    ) -> Any:
        """A boto3 client of a user, the root user by default; `config` is that of botocore.

        It connects from the network of the thread that uses it: see Namespace.enter() and call().
        """
        import boto3
        from botocore.config import Config

        user = user or self.root
        return boto3.client(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            aws_access_key_id=user.access_key,
            aws_secret_access_key=user.secret_key,
            region_name=REGION,
            verify=str(self.ca_file) if self.tls else None,
            config=Config(s3={"addressing_style": "path"}, **config),
        )

    def make_bucket(self, name: str) -> None:
        self.call(lambda: self.client().create_bucket(Bucket=name))

    def add_user(self, name: str) -> Credentials:
        """A user who may do nothing yet. Raises ClusterError when there is one of that name."""
        user = Credentials(name, secrets.token_hex(20))
        new = ["--access", user.access_key, "--secret", user.secret_key, "--role", "user"]
        self._admin("create-user", *new)
        return user

    def read_only_user(self, name: str, bucket: str, prefix: str = "") -> Credentials:
        """A user who may read and list the keys of a bucket that begin with the prefix."""
        return self._user_with(name, bucket, prefix, READ)

    def read_write_user(self, name: str, bucket: str, prefix: str = "") -> Credentials:
        """A user who may do anything with the keys of a bucket that begin with the prefix."""
        return self._user_with(name, bucket, prefix, WRITE)

    def allow(
        self, user: Credentials, bucket: str, actions: Sequence[str], prefix: str = ""
    ) -> None:
        """Adds rights on the keys that begin with the prefix to the bucket's policy."""
        statement = {
            "Effect": "Allow",
            "Principal": {"AWS": [user.access_key]},
            "Action": list(actions),
            "Resource": f"arn:aws:s3:::{bucket}/{prefix}*",
        }
        self._add_statement(bucket, statement)

    def allow_list(self, user: Credentials, bucket: str, prefix: str = "") -> None:
        """Adds the right to list the keys that begin with the prefix."""
        statement: dict[str, Any] = {
            "Effect": "Allow",
            "Principal": {"AWS": [user.access_key]},
            "Action": ["s3:ListBucket"],
            "Resource": f"arn:aws:s3:::{bucket}",
        }
        if prefix:
            statement["Condition"] = {"StringLike": {"s3:prefix": f"{prefix}*"}}
        self._add_statement(bucket, statement)

    def _user_with(
        self, name: str, bucket: str, prefix: str, actions: Sequence[str]
    ) -> Credentials:
        user = self.add_user(name)
        self.allow(user, bucket, actions, prefix)
        self.allow_list(user, bucket, prefix)
        return user

    def _add_statement(self, bucket: str, statement: dict[str, Any]) -> None:
        statements = self._statements.setdefault(bucket, [])
        statements.append(statement)
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        self.call(lambda: self.client().put_bucket_policy(Bucket=bucket, Policy=policy))

    def _admin(self, *arguments: str) -> None:
        root = ["--access", self.root.access_key, "--secret", self.root.secret_key]
        where = ["--endpoint-url", self.endpoint, *(["--allow-insecure"] if self.tls else [])]
        command = [str(tools.path("versitygw")), "admin", *root, *where, *arguments]
        if self.cluster is not None:
            command = self.cluster.command(*command)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ClusterError(f"versitygw admin {arguments[0]}: {done.stderr.strip()}")
