"""The operator may do what its code does, and nothing else; users may do what is theirs."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.cluster.api import Api
from tests.cluster.cluster import Cluster
from tests.cluster.waiting import wait_for
from tests.contract.charts.alternatives import everything
from tests.contract.charts.helm import CRDS, MINIMAL, OPERATOR, Helm, find, merged, of_kind
from tests.contract.charts.rights import Right, given, needed

SYSTEM = "llmengine-system"
LEASES = {Right("coordination.k8s.io", "leases", verb) for verb in ("get", "create", "update")}
CLUSTER_SCOPED = {
    *(Right("llmengine.io", "engineruntimes", verb) for verb in ("get", "list", "watch")),
    *(Right("", "nodes", verb) for verb in ("list", "watch")),
    Right("apiextensions.k8s.io", "customresourcedefinitions", "get"),
}
TENANTS = merged(MINIMAL, {"watchNamespaces": ["team-a", "team-b"]})


def test_the_operator_may_do_exactly_what_its_code_does(helm: Helm) -> None:
    rendered = helm.render()
    cluster = given(find(rendered, "ClusterRole", "llmengine-operator")["rules"])
    assert cluster == needed() - LEASES
    lease = find(rendered, "Role", "llmengine-operator-lease")
    assert given(lease["rules"]) == LEASES <= needed()


def test_with_watched_namespaces_it_may_do_so_there_only(helm: Helm) -> None:
    rendered = helm.render(OPERATOR, TENANTS)
    cluster = given(find(rendered, "ClusterRole", "llmengine-operator")["rules"])
    assert cluster == CLUSTER_SCOPED
    roles = {
        role["metadata"]["namespace"]: given(role["rules"])
        for role in of_kind(rendered, "Role")
        if role["metadata"]["name"] == "llmengine-operator"
    }
    in_a_namespace = needed() - LEASES - CLUSTER_SCOPED
    assert roles["team-a"] == roles["team-b"] == in_a_namespace
    assert set(roles) == {"team-a", "team-b", "llmengine-builds"}
    # Builds are made there, nothing is served.
    assert roles["llmengine-builds"] < in_a_namespace
    writes = {r for r in roles["llmengine-builds"] if r.verb not in ("get", "list", "watch")}
    assert writes == {Right("batch", "jobs", verb) for verb in ("create", "delete")}


def test_builds_in_a_watched_namespace_need_no_role_of_their_own(helm: Helm) -> None:
    values = merged(TENANTS, {"builds": {"namespace": "team-a", "createNamespace": False}})
    roles = of_kind(helm.render(OPERATOR, values), "Role")
    places = [
        r["metadata"]["namespace"] for r in roles if not r["metadata"]["name"].endswith("-lease")
    ]
    assert sorted(places) == ["team-a", "team-b"]


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(MINIMAL, id="the least"),
        pytest.param(everything(), id="everything"),
    ],
)
def test_no_rule_is_wide_or_reaches_secrets_and_logs(helm: Helm, values: dict[str, Any]) -> None:
    rendered = helm.render(OPERATOR, values)
    for role in of_kind(rendered, "ClusterRole") + of_kind(rendered, "Role"):
        for right in given(role["rules"]):
            assert "*" not in (right.group, right.resource, right.verb)
            assert right.resource not in ("secrets", "pods/log", "pods/exec", "configmaps")
            assert right.verb not in ("bind", "escalate", "impersonate")


def test_each_rule_says_why() -> None:
    for file in ("_rules.tpl", "rbac.yaml"):
        lines = (OPERATOR / "templates" / file).read_text().splitlines()
        for number, line in enumerate(lines):
            if line.strip().startswith("- apiGroups:"):
                above = lines[number - 1].strip()
                assert above.startswith(("#", "verbs:")), f"{file}:{number + 1}"


@dataclass(frozen=True)
class Reviews:
    """Asks the API server whether somebody may do something."""

    api: Api

    def allowed(
        self,
        user: str,
        right: Right,
        namespace: str = "",
        *,
        name: str = "",
        groups: tuple[str, ...] = (),
    ) -> bool:
        resource, _, subresource = right.resource.partition("/")
        attributes = {
            "group": right.group,
            "resource": resource,
            "subresource": subresource,
            "verb": right.verb,
            "namespace": namespace,
            "name": name,
        }
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": user,
                "groups": ["system:authenticated", *groups],
                "resourceAttributes": attributes,
            },
        }
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        return bool(self.api.request("POST", path, review)["status"]["allowed"])


OPERATOR_USER = f"system:serviceaccount:{SYSTEM}:llmengine-operator"


@pytest.fixture
def namespaces(chart_cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Two namespaces of the test's own."""
    names = (f"a-{uuid.uuid4().hex[:6]}", f"b-{uuid.uuid4().hex[:6]}")
    for name in names:
        chart_cluster.kubectl("create", "namespace", name)
    yield names
    chart_cluster.kubectl("delete", "namespace", "--wait=false", *names)


@pytest.fixture
def release(chart_cluster: Cluster, cluster_helm: Helm) -> Iterator[Helm]:
    """Helm on a cluster with the kinds. The operator's release ends with the test."""
    cluster_helm.run("upgrade", "--install", "llmengine-crds", str(CRDS))
    yield cluster_helm
    cluster_helm.run("uninstall", "llmengine-operator", "--namespace", SYSTEM)
    chart_cluster.kubectl("delete", "engineruntimes", "--all")


def _install(helm: Helm, values: dict[str, Any]) -> None:
    helm.run(
        *("upgrade", "--install", "llmengine-operator", str(OPERATOR)),
        *("--namespace", SYSTEM, "--create-namespace"),
        values=values,
    )


def _name(right: Right) -> str:
    """Of the object, for what is allowed by name only."""
    return {
        "customresourcedefinitions": "llmengines.llmengine.io",
        "leases": "" if right.verb == "create" else "llmengine-operator",
    }.get(right.resource, "")


@pytest.mark.controlplane
def test_the_api_server_lets_the_operator_do_all_of_it_everywhere(
    release: Helm, chart_cluster: Cluster, namespaces: tuple[str, str]
) -> None:
    _install(release, MINIMAL)
    reviews = Reviews(chart_cluster.api)
    for namespace in (*namespaces, "llmengine-builds", ""):
        refused = [
            right
            for right in sorted(needed() - LEASES)
            if not reviews.allowed(OPERATOR_USER, right, namespace, name=_name(right))
        ]
        assert refused == [], namespace
    for right in LEASES:
        assert reviews.allowed(OPERATOR_USER, right, SYSTEM, name=_name(right))
        assert not reviews.allowed(OPERATOR_USER, right, namespaces[0], name=_name(right))
    other = Right("coordination.k8s.io", "leases", "update")
    assert not reviews.allowed(OPERATOR_USER, other, SYSTEM, name="kube-scheduler")
    for resource in ("secrets", "pods/log", "pods/exec", "configmaps"):
        for verb in ("get", "list", "create"):
            right = Right("", resource, verb)
            assert not reviews.allowed(OPERATOR_USER, right, namespaces[0]), right


@pytest.mark.controlplane
def test_the_api_server_keeps_the_operator_to_the_watched_namespaces(
    release: Helm, chart_cluster: Cluster, namespaces: tuple[str, str]
) -> None:
    watched, other = namespaces
    _install(release, merged(MINIMAL, {"watchNamespaces": [watched]}))
    reviews = Reviews(chart_cluster.api)
    for right in sorted(needed() - LEASES - CLUSTER_SCOPED):
        assert reviews.allowed(OPERATOR_USER, right, watched), right
        assert not reviews.allowed(OPERATOR_USER, right, other), right
        assert not reviews.allowed(OPERATOR_USER, right), right
    for right in CLUSTER_SCOPED:
        assert reviews.allowed(OPERATOR_USER, right, name=_name(right)), right


@pytest.mark.controlplane
@pytest.mark.parametrize(
    ("role", "verbs"),
    [
        pytest.param("edit", {"get", "list", "watch", "create", "patch", "delete"}, id="edit"),
        pytest.param("admin", {"get", "list", "watch", "create", "patch", "delete"}, id="admin"),
        pytest.param("view", {"get", "list", "watch"}, id="view"),
    ],
)
def test_users_of_a_namespace_may_have_engines_there(
    release: Helm,
    chart_cluster: Cluster,
    namespaces: tuple[str, str],
    role: str,
    verbs: set[str],
) -> None:
    _install(release, MINIMAL)
    here, elsewhere = namespaces
    chart_cluster.kubectl(
        *("create", "rolebinding", "of-user", f"--clusterrole={role}", "--user=someone"),
        *("--namespace", here),
    )
    reviews = Reviews(chart_cluster.api)

    def may(verb: str, namespace: str = here, resource: str = "llmengines") -> bool:
        return reviews.allowed("someone", Right("llmengine.io", resource, verb), namespace)

    # Roles are aggregated a moment later.
    asked = ("get", "list", "watch", "create", "patch", "delete")
    wait_for(lambda: {verb for verb in asked if may(verb)} == verbs, 20, f"{role} to have {verbs}")
    assert not any(may(verb, elsewhere) for verb in asked)
    # The status is the operator's, and runtimes are the admin's, but for looking at them.
    assert not may("patch", resource="llmengines/status")
    assert may("list", "", "engineruntimes")
    assert not may("create", "", "engineruntimes")


@pytest.mark.controlplane
def test_runtimes_can_be_kept_from_users(release: Helm, chart_cluster: Cluster) -> None:
    _install(release, merged(MINIMAL, {"userRoles": {"runtimeReaders": ["platform"]}}))
    reviews = Reviews(chart_cluster.api)
    right = Right("llmengine.io", "engineruntimes", "list")
    assert not reviews.allowed("someone", right)
    assert reviews.allowed("someone", right, groups=("platform",))
