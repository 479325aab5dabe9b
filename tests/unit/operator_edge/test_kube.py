"""Requests that the client makes, and what it makes of the answers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmengine_operator.kinds import DEPLOYMENT, JOB, LLMENGINE, NODE, POD, RUNTIME
from llmengine_operator.kube import FIELD_MANAGER, PAGE_SIZE, KubeClient
from llmengine_operator.kube_access import Access
from llmengine_operator.kube_errors import (
    AlreadyExistsError,
    ConflictError,
    ExpiredError,
    FieldCause,
    ForbiddenError,
    InvalidError,
    KubeError,
    NotFoundError,
    UnavailableError,
    error_of,
)
from tests.unit.operator_edge.api_server import (
    ApiServer,
    Reply,
    Request,
    serving,
    status,
    write_kubeconfig,
)

Connect = Callable[..., KubeClient]


@pytest.fixture
def connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Connect:
    """A client of a server at a URL."""

    def make(url: str, **user: Any) -> KubeClient:
        file = write_kubeconfig(tmp_path / "kubeconfig", url, user or {"token": "secret"})
        monkeypatch.setenv("KUBECONFIG", str(file))
        now = datetime(2026, 11, 24, 12, tzinfo=UTC)
        return KubeClient(Access(connections=2), timeout=(1, 0.5), now=lambda: now)

    return make


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with serving(lambda request: Reply()) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param(
            POD.path("team-a", "chat"), "/api/v1/namespaces/team-a/pods/chat", id="the core group"
        ),
        pytest.param(
            DEPLOYMENT.path("a", "b", "scale"),
            "/apis/apps/v1/namespaces/a/deployments/b/scale",
            id="a subresource",
        ),
        pytest.param(JOB.path(None), "/apis/batch/v1/jobs", id="all namespaces"),
        pytest.param(NODE.path(None, "n1"), "/api/v1/nodes/n1", id="a cluster-scoped kind"),
        pytest.param(
            RUNTIME.path("ignored", "x"),
            "/apis/llmengine.io/v1alpha1/engineruntimes/x",
            id="a cluster-scoped kind has no namespace",
        ),
        pytest.param(
            POD.path("a", "../nodes"),
            "/api/v1/namespaces/a/pods/..%2Fnodes",
            id="a name cannot leave its place in the path",
        ),
    ],
)
def test_paths_are_those_of_the_api(path: str, expected: str) -> None:
    assert path == expected


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        pytest.param(404, "NotFound", NotFoundError, id="not found"),
        pytest.param(409, "AlreadyExists", AlreadyExistsError, id="already exists"),
        pytest.param(409, "Conflict", ConflictError, id="changed meanwhile"),
        pytest.param(403, "Forbidden", ForbiddenError, id="forbidden"),
        pytest.param(401, "Unauthorized", ForbiddenError, id="unauthorized"),
        pytest.param(410, "Expired", ExpiredError, id="expired"),
        pytest.param(422, "Invalid", InvalidError, id="invalid"),
        pytest.param(400, "BadRequest", InvalidError, id="a field that does not exist"),
        pytest.param(429, "TooManyRequests", UnavailableError, id="too many requests"),
        pytest.param(500, "InternalError", UnavailableError, id="internal error"),
        pytest.param(503, "ServiceUnavailable", UnavailableError, id="unavailable"),
        pytest.param(405, "MethodNotAllowed", KubeError, id="anything else"),
    ],
)
def test_errors_are_typed_and_say_what_was_asked(
    server: ApiServer, connect: Connect, code: int, reason: str, error: type[KubeError]
) -> None:
    server.answers = lambda request: status(code, reason, "the words of the server")
    with pytest.raises(KubeError) as raised:
        connect(server.url).get(JOB, "team-a", "build-1")
    assert type(raised.value) is error
    assert str(raised.value) == (
        f"cannot get Job team-a/build-1: the words of the server ({code} {reason})"
    )


def test_an_invalid_object_is_refused_with_its_fields(server: ApiServer, connect: Connect) -> None:
    causes = [{"field": "spec.model", "message": "Invalid value: name one", "reason": "x"}]
    server.answers = lambda request: status(422, "Invalid", "no", causes=causes)
    with pytest.raises(InvalidError) as raised:
        connect(server.url).create(LLMENGINE, {"metadata": {"namespace": "a", "name": "b"}})
    assert raised.value.causes == (FieldCause("spec.model", "Invalid value: name one"),)


def test_a_proxys_page_is_an_error_with_its_first_words() -> None:
    error = error_of(502, "Bad Gateway", b"<html>upstream is away</html>" * 50, "get Job a/b")
    assert isinstance(error, UnavailableError)
    assert "502 BadGateway" in str(error)
    assert "upstream is away" in str(error)
    assert len(str(error)) < 300


def test_an_answer_that_is_not_json_is_no_object(server: ApiServer, connect: Connect) -> None:
    server.answers = lambda request: Reply(200, b"<html>log in</html>")
    with pytest.raises(UnavailableError, match="is a proxy on the way"):
        connect(server.url).get(JOB, "a", "b")


def test_a_server_that_is_not_there_is_unavailable(connect: Connect) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(UnavailableError, match=r"cannot list Pod: .*did not answer") as raised:
        connect(f"http://127.0.0.1:{port}").list(POD)
    assert raised.value.status == 0


def test_a_server_that_does_not_answer_is_given_up_after_the_timeout(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = connect(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UnavailableError, match="timed out"):
            client.get(POD, "a", "b")
        assert client.requests == {("get", "Pod"): 1}


def hang_up_once() -> Callable[[Request], Reply]:
    seen: list[Request] = []

    def answers(request: Request) -> Reply:
        seen.append(request)
        return Reply(hang_up=len(seen) == 1)

    return answers


def test_a_read_is_tried_again_once_when_the_connection_is_reset(
    server: ApiServer, connect: Connect
) -> None:
    server.answers = hang_up_once()
    client = connect(server.url)
    assert client.get(POD, "a", "b") == {}
    assert client.requests == {("get", "Pod"): 2}
    server.answers = lambda request: Reply(hang_up=True)
    with pytest.raises(UnavailableError):
        client.get(POD, "a", "b")
    assert client.requests == {("get", "Pod"): 4}


def test_a_write_is_never_tried_again(server: ApiServer, connect: Connect) -> None:
    server.answers = hang_up_once()
    client = connect(server.url)
    with pytest.raises(UnavailableError):
        client.create(JOB, {"metadata": {"namespace": "a", "name": "b"}})
    assert client.requests == {("create", "Job"): 1}
    assert len(server.requests) == 1


def pages(total: int, size: int, expire_at: int | None = None) -> Callable[[Request], Reply]:
    """A list of `total` pods in pages; the first time, its page `expire_at` is gone."""
    expired: list[int] = []

    def answers(request: Request) -> Reply:
        start = int(request.query.get("continue", "0"))
        if expire_at is not None and start // size == expire_at and not expired:
            expired.append(start)
            return status(410, "Expired", "too old")
        names = range(start, min(start + size, total))
        metadata = {"continue": str(start + size)} if start + size < total else {}
        items = [{"metadata": {"name": str(n)}} for n in names]
        return Reply(200, {"metadata": metadata, "items": items})

    return answers


def test_a_list_is_read_page_by_page(server: ApiServer, connect: Connect) -> None:
    server.answers = pages(total=7, size=3)
    items = connect(server.url).list(
        POD, "a", labels={"b": "2", "a": "1"}, fields="spec.nodeName=x", cached=True
    )
    assert [item["metadata"]["name"] for item in items] == [str(n) for n in range(7)]
    assert items[0]["kind"] == "Pod"
    assert items[0]["apiVersion"] == "v1"
    first, second, _ = (request.query for request in server.requests)
    assert first == {
        "limit": str(PAGE_SIZE),
        "labelSelector": "a=1,b=2",
        "fieldSelector": "spec.nodeName=x",
        "resourceVersion": "0",
    }
    assert "resourceVersion" not in second
    assert second["continue"] == "3"


def test_a_list_whose_pages_expire_is_read_again_from_the_start(
    server: ApiServer, connect: Connect
) -> None:
    server.answers = pages(total=7, size=3, expire_at=1)
    items = connect(server.url).list(POD)
    assert [item["metadata"]["name"] for item in items] == [str(n) for n in range(7)]


def test_a_list_that_always_expires_is_an_error(server: ApiServer, connect: Connect) -> None:
    server.answers = lambda request: status(410, "Expired", "too old")
    with pytest.raises(ExpiredError):
        connect(server.url).list(POD)


def test_a_list_of_metadata_asks_for_nothing_else(server: ApiServer, connect: Connect) -> None:
    connect(server.url).list(POD, metadata_only=True)
    assert "as=PartialObjectMetadataList" in server.requests[0].headers["accept"]


def test_an_apply_owns_its_fields_and_wins(server: ApiServer, connect: Connect) -> None:
    client = connect(server.url)
    client.apply(DEPLOYMENT, {"metadata": {"namespace": "a", "name": "b"}, "spec": {}})
    client.apply_status(LLMENGINE, {"metadata": {"namespace": "a", "name": "b"}}, manager="other")
    first, second = server.requests
    assert (first.method, first.path) == ("PATCH", "/apis/apps/v1/namespaces/a/deployments/b")
    assert first.headers["content-type"] == "application/apply-patch+yaml"
    assert first.query == {
        "fieldManager": FIELD_MANAGER,
        "force": "true",
        "fieldValidation": "Strict",
    }
    assert first.body["apiVersion"] == "apps/v1"
    assert first.body["kind"] == "Deployment"
    assert second.path == "/apis/llmengine.io/v1alpha1/namespaces/a/llmengines/b/status"
    assert second.query["fieldManager"] == "other"


def test_the_other_writes_are_what_the_api_expects(server: ApiServer, connect: Connect) -> None:
    client = connect(server.url)
    obj = {"metadata": {"namespace": "a", "name": "b", "resourceVersion": "7"}}
    client.create(JOB, obj)
    client.replace(JOB, obj)
    client.scale(DEPLOYMENT, "a", "b", 3)
    client.delete(JOB, "a", "b", uid="u", propagation="Foreground")
    create, replace, scale, delete = server.requests
    assert (create.method, create.path) == ("POST", "/apis/batch/v1/namespaces/a/jobs")
    assert (replace.method, replace.path) == ("PUT", "/apis/batch/v1/namespaces/a/jobs/b")
    assert replace.body["metadata"]["resourceVersion"] == "7"
    assert (scale.path, scale.body) == (
        "/apis/apps/v1/namespaces/a/deployments/b/scale",
        {"spec": {"replicas": 3}},
    )
    assert scale.headers["content-type"] == "application/merge-patch+json"
    assert (delete.method, delete.body) == (
        "DELETE",
        {"propagationPolicy": "Foreground", "preconditions": {"uid": "u"}},
    )


def test_requests_are_counted_by_verb_and_kind_and_writes_apart(
    server: ApiServer, connect: Connect
) -> None:
    client = connect(server.url)
    client.get(POD, "a", "b")
    client.list(POD)
    assert client.writes == 0
    client.create(JOB, {"metadata": {"namespace": "a", "name": "b"}})
    client.scale(DEPLOYMENT, "a", "b", 1)
    assert client.requests == {
        ("get", "Pod"): 1,
        ("list", "Pod"): 1,
        ("create", "Job"): 1,
        ("patch", "Deployment"): 1,
    }
    assert client.writes == 2


@pytest.mark.parametrize(
    ("user", "header"),
    [
        pytest.param({"token": "secret"}, "Bearer secret", id="a token"),
        pytest.param(
            {"username": "u", "password": "p"}, "Basic dTpw", id="a user name and a password"
        ),
        pytest.param({"client-certificate-data": ""}, None, id="nothing"),
    ],
)
def test_the_kubeconfigs_user_is_who_we_are(
    server: ApiServer, connect: Connect, user: dict[str, str], header: str | None
) -> None:
    connect(server.url, **user).get(POD, "a", "b")
    assert server.requests[0].headers.get("authorization") == header


def test_a_pods_token_is_read_again_when_it_was_rotated(
    server: ApiServer, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, ca = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text("first")
    ca.write_text("not asked for over http")
    monkeypatch.delenv("KUBECONFIG", raising=False)
    host, port = server.url.removeprefix("http://").split(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    incluster = "kubernetes.config.incluster_config"
    monkeypatch.setattr(f"{incluster}.SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(f"{incluster}.SERVICE_CERT_FILENAME", str(ca))
    monkeypatch.setattr("llmengine_operator.kube_access._POD_TOKEN", token)
    moment = datetime(2026, 11, 24, 12)
    clock = SimpleNamespace(now=lambda: moment)
    monkeypatch.setattr(
        f"{incluster}.datetime", SimpleNamespace(datetime=clock, timedelta=timedelta)
    )
    access = Access(connections=1)
    assert access.server == f"https://{host}:{port}"
    assert access.authorization() == "Bearer first"

    token.write_text("second\n")
    assert access.authorization() == "Bearer first"
    moment += timedelta(minutes=2)
    assert access.authorization() == "Bearer second"
    token.unlink()
    moment += timedelta(minutes=2)
    with pytest.raises(OSError, match="No such file"):
        access.authorization()


ENGINE = {
    "apiVersion": "llmengine.io/v1alpha1",
    "kind": "LLMEngine",
    "metadata": {"namespace": "team-a", "name": "chat", "uid": "u-1"},
}


def test_an_event_says_who_what_and_about_what(server: ApiServer, connect: Connect) -> None:
    connect(server.url).event(
        ENGINE, type="Normal", reason="BuildStarted", action="Build", note="n" * 2000
    )
    (request,) = server.requests
    event = request.body
    assert request.path == "/apis/events.k8s.io/v1/namespaces/team-a/events"
    assert event["regarding"] == {
        "apiVersion": "llmengine.io/v1alpha1",
        "kind": "LLMEngine",
        "namespace": "team-a",
        "name": "chat",
        "uid": "u-1",
    }
    assert event["reportingController"] == FIELD_MANAGER
    assert event["eventTime"] == "2026-11-24T12:00:00.000000Z"
    assert len(event["note"]) == 1024
    assert event["metadata"]["name"].startswith("chat.")


def test_the_same_event_again_raises_the_count_of_the_first(
    server: ApiServer, connect: Connect
) -> None:
    client = connect(server.url)
    for note in ("one", "one", "two", "one"):
        client.event(ENGINE, type="Warning", reason="BuildFailed", action="Build", note=note)
    made = [(r.method, (r.body.get("series") or {}).get("count")) for r in server.requests]
    assert made == [("POST", None), ("PATCH", 2), ("POST", None), ("PATCH", 3)]


def test_an_event_that_has_expired_is_posted_anew(server: ApiServer, connect: Connect) -> None:
    client = connect(server.url)
    client.event(ENGINE, type="Normal", reason="R", action="A", note="n")
    server.answers = lambda request: (
        status(404, "NotFound", "gone") if request.method == "PATCH" else Reply()
    )
    client.event(ENGINE, type="Normal", reason="R", action="A", note="n")
    assert [r.method for r in server.requests] == ["POST", "PATCH", "POST"]


def test_an_event_that_cannot_be_posted_is_logged_and_harms_nobody(
    server: ApiServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = lambda request: status(403, "Forbidden", "namespace is being terminated")
    client = connect(server.url)
    client.event(ENGINE, type="Normal", reason="Served", action="A", note="n")
    assert "no Event Served" in caplog.text
    assert "being terminated" in caplog.text
    server.answers = lambda request: Reply()
    client.event(ENGINE, type="Normal", reason="Served", action="A", note="n")
    assert server.requests[-1].method == "POST"
