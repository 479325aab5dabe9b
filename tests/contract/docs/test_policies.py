"""The policies of docs/operations.md, on a real S3 server: enough for the work, and for no more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from llmengine.artifact import BuildProgress
from llmengine.key import CLUSTER, Scope
from llmengine.requests import S3Endpoint, StoreLocation
from llmengine.store import Bucket, Credentials, Store, StoreDeniedError
from tests.cluster.paths import REPOSITORY
from tests.cluster.s3 import S3Server
from tests.contract.store.place import IMPATIENT
from tests.engines import Engine, make_engine

PAGE = REPOSITORY / "docs/operations.md"
USERS = ("operator", "build", "build-team-a", "serve-team-a", "models")
TEAM_A, TEAM_B = Scope("team-a"), Scope("team-b")
# More than one part of an upload.
LARGE = 65 << 20


@dataclass(frozen=True)
class Platform:
    """Two buckets with the policies of the page, and its users."""

    server: S3Server
    users: dict[str, Credentials]

    def store(self, user: str) -> Store:
        location = StoreLocation(endpoint=self.server.endpoint, bucket="engines")
        return Store(location, self.users[user], timeouts=IMPATIENT)

    def models(self, user: str) -> Bucket:
        endpoint = S3Endpoint(endpoint=self.server.endpoint)
        return Bucket(endpoint, "models", self.users[user], timeouts=IMPATIENT)


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with S3Server() as server:
        users = {name: server.add_user(name) for name in USERS}
        for bucket in ("engines", "models"):
            server.make_bucket(bucket)
            server.client().put_bucket_policy(Bucket=bucket, Policy=policy(bucket))
        server.client().put_object(Bucket="models", Key="chat/config.json", Body=b"{}")
        keys = {name: Credentials(user.access_key, user.secret_key) for name, user in users.items()}
        yield Platform(server, keys)


def policy(bucket: str) -> str:
    """The JSON below the mark of a bucket's policy."""
    found = re.search(rf"<!-- policy: {bucket} -->\n```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def engine(folder: Path, seed: int, size: int = 1000) -> Engine:
    return replace(make_engine(folder, {"graph.onnx": size}, seed=seed), prefix="")


def said(engine: Engine) -> BuildProgress:
    return BuildProgress(
        key=engine.manifest.key, phase="Verify", percent=1, heartbeat="2026-11-24T12:00:00Z"
    )


def test_the_operator_finds_out_about_conditional_writes(platform: Platform) -> None:
    assert platform.store("operator").probe().honoured


@pytest.mark.parametrize(
    ("user", "scope"),
    [
        pytest.param("build", CLUSTER, id="the cluster's builds"),
        pytest.param("build-team-a", TEAM_A, id="a namespace's builds"),
    ],
)
def test_a_build_publishes_what_operator_and_servers_read(
    platform: Platform, tmp_path: Path, user: str, scope: Scope
) -> None:
    made = engine(tmp_path / "built", seed=1, size=LARGE)
    builder, operator = platform.store(user), platform.store("operator")
    # That an engine is not there must not look like a lack of rights.
    assert operator.get_manifest(made.manifest.key, scope) is None
    assert builder.get_manifest(made.manifest.key, scope) is None
    builder.put_progress(said(made), scope)
    digest = made.publish(builder, scope)
    assert operator.get_progress(made.manifest.key, scope) == said(made)
    found = operator.get_manifest(made.manifest.key, scope)
    assert found is not None
    assert found.digest == digest
    server = platform.store("serve-team-a")
    server.fetch(server.pinned_manifest(made.manifest.key, digest, scope), tmp_path / "in", scope)
    assert (tmp_path / "in/graph.onnx").stat().st_size == LARGE


def test_a_build_that_is_stopped_gives_its_parts_back(platform: Platform) -> None:
    endpoint = S3Endpoint(endpoint=platform.server.endpoint)
    bucket = Bucket(endpoint, "engines", platform.users["build"], timeouts=IMPATIENT)
    bucket.abort_upload("v1/blobs/x", bucket.start_upload("v1/blobs/x"))
    uploads = platform.server.client().list_multipart_uploads(Bucket="engines")
    assert not uploads.get("Uploads")


@pytest.mark.parametrize(
    ("user", "scope"),
    [
        pytest.param("operator", CLUSTER, id="the operator, anywhere"),
        pytest.param("serve-team-a", CLUSTER, id="a server, to what is shared"),
        pytest.param("serve-team-a", TEAM_A, id="a server, to its own"),
        pytest.param("build", TEAM_A, id="the cluster's builds, to a namespace's"),
        pytest.param("build-team-a", CLUSTER, id="a namespace's builds, to what is shared"),
        pytest.param("build-team-a", TEAM_B, id="a namespace's builds, to another's"),
        pytest.param("models", CLUSTER, id="who reads models"),
    ],
)
def test_nobody_else_writes(platform: Platform, tmp_path: Path, user: str, scope: Scope) -> None:
    made = engine(tmp_path, seed=2)
    with pytest.raises(StoreDeniedError):
        made.publish(platform.store(user), scope)
    with pytest.raises(StoreDeniedError):
        platform.store(user).publish_manifest(made.manifest, scope)


@pytest.mark.parametrize(
    ("user", "scope"),
    [
        pytest.param("serve-team-a", TEAM_B, id="a server, from another namespace"),
        pytest.param("operator", CLUSTER, id="the operator, who needs no models"),
        pytest.param("models", CLUSTER, id="who reads models"),
    ],
)
def test_nobody_else_reads_what_is_inside(
    platform: Platform, tmp_path: Path, user: str, scope: Scope
) -> None:
    made = engine(tmp_path / "built", seed=3)
    root = platform.server.root
    made.publish(
        Store(
            StoreLocation(endpoint=platform.server.endpoint, bucket="engines"),
            Credentials(root.access_key, root.secret_key),
        ),
        scope,
    )
    with pytest.raises(StoreDeniedError):
        platform.store(user).fetch(made.manifest, tmp_path / "in", scope)


def test_models_are_read_by_who_builds_for_all(platform: Platform) -> None:
    bucket = platform.models("models")
    assert [entry.key for entry in bucket.objects("chat/")] == ["chat/config.json"]
    assert bucket.read("chat/config.json") == b"{}"
    with pytest.raises(StoreDeniedError):
        bucket.write("chat/config.json", b"{}")
    with pytest.raises(StoreDeniedError):
        platform.models("serve-team-a").read("chat/config.json")
