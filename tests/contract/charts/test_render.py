"""What the operator's chart renders: valid, as configured, and no value without an effect."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmengine_operator.config import Config
from llmengine_operator.leader import LEASE_NAME
from llmengine_operator.observation import Found
from tests.contract.charts.alternatives import (
    ALTERNATIVES,
    DIGEST,
    KEY,
    PEM,
    after,
    before,
    everything,
)
from tests.contract.charts.helm import CRDS, MINIMAL, OPERATOR, Helm, at, find, merged, of_kind
from tests.contract.charts.schemas import kubeconform
from tests.unit.operator.world import World

VALUES = [
    pytest.param(MINIMAL, id="the least"),
    pytest.param(everything(), id="everything"),
    pytest.param(merged(MINIMAL, at("leaderElection.enabled", False)), id="no election"),
]


@pytest.mark.parametrize("values", VALUES)
def test_helm_finds_nothing_to_complain_of(helm: Helm, values: dict[str, Any]) -> None:
    helm.run("lint", "--strict", str(OPERATOR), values=values)


def test_helm_finds_nothing_to_complain_of_in_the_kinds(helm: Helm) -> None:
    helm.run("lint", "--strict", str(CRDS))


@pytest.mark.parametrize("values", VALUES)
def test_every_manifest_is_valid(helm: Helm, schemas: Path, values: dict[str, Any]) -> None:
    rendered = helm.render(OPERATOR, values)
    # Kinds of the Prometheus operator, which are looked at in a test of their own.
    kubeconform(schemas, yaml.safe_dump_all(rendered), skip="ServiceMonitor,PodMonitor")


def test_the_kinds_are_valid(helm: Helm, schemas: Path) -> None:
    kubeconform(schemas, yaml.safe_dump_all(helm.render(CRDS, {})))


def test_a_manifest_with_a_misspelt_field_would_be_found(helm: Helm, schemas: Path) -> None:
    runtime = find(helm.render(), "EngineRuntime")
    runtime["spec"]["podDefault"] = {}
    with pytest.raises(AssertionError, match="podDefault"):
        kubeconform(schemas, yaml.safe_dump(runtime))


@pytest.mark.parametrize("path", ALTERNATIVES)
def test_every_value_changes_something(helm: Helm, path: str) -> None:
    assert helm.render(OPERATOR, after(path)) != helm.render(OPERATOR, before(path))


def test_the_operator_reads_its_configuration(helm: Helm, tmp_path: Path) -> None:
    config = _config(helm, MINIMAL, tmp_path)
    assert config == Config.model_validate(
        {
            "namespace": "llmengine-system",
            "store": {"bucket": "engines"},
            "builds": {"priorityClassName": "llmengine-operator-build"},
        }
    )


def test_the_operator_reads_every_value_of_its_configuration(helm: Helm, tmp_path: Path) -> None:
    config = _config(helm, everything(), tmp_path)
    assert config == Config.model_validate(
        {
            "namespace": "llmengine-system",
            "store": {
                "bucket": "other-engines",
                "prefix": "team/engines",
                "endpoint": "https://store.test:9000",
                "region": "eu-2",
                "pathStyle": False,
                "caPem": PEM,
                "conditionalWrites": "Preferred",
                "buildSecretName": "store-build",
                "scopedBuildSecretName": "store-scoped",
                "serveSecretName": "store-serve",
            },
            "models": {
                "s3": [
                    {
                        "name": "main",
                        "endpoint": "https://s3.test",
                        "region": "eu-1",
                        "pathStyle": False,
                        "caPem": PEM,
                        "buckets": ["models", "more"],
                        "secretName": "model-reader",
                    },
                    {"name": "rest"},
                ],
                "shared": ["s3://models/", "s3://more/open/"],
                "hfEndpoint": "https://hub.test",
            },
            "architectures": {
                "expected": [
                    {
                        "architecture": "sm_89/NVIDIA-L4",
                        "labels": {"pool": "l4"},
                        "taints": [{"key": "gpu", "value": "yes", "effect": "NoExecute"}],
                    },
                    {"architecture": "arm64"},
                ]
            },
            "builds": {
                "namespace": "compile",
                "maxConcurrent": 9,
                "maxConcurrentPerArchitecture": 3,
                "priorityClassName": "batch",
            },
            "rollouts": {"maxConcurrent": 2, "minReadySeconds": 10},
            "leaderElection": {"enabled": True, "leaseSeconds": 7.5},
            "watchNamespaces": ["team-a", "team-b", "team-c"],
            "workers": 8,
            "resyncSeconds": 1234567,
        }
    )
    _nothing_at_its_default(config)


def test_pods_of_the_operator_are_restricted(helm: Helm) -> None:
    pod = find(helm.render(), "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def test_probes_ask_where_the_operator_answers(helm: Helm) -> None:
    rendered = helm.render()
    (container,) = find(rendered, "Deployment")["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    config = Config.model_validate({"namespace": "x", "store": {"bucket": "engines"}})
    assert ports == {"health": config.health_port, "metrics": config.metrics_port}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}


def test_a_changed_configuration_makes_new_pods(helm: Helm) -> None:
    def annotations(values: dict[str, Any]) -> dict[str, str]:
        template = find(helm.render(OPERATOR, values), "Deployment")["spec"]["template"]
        found: dict[str, str] = template["metadata"]["annotations"]
        return found

    base = annotations(MINIMAL)
    assert annotations(after("workers")) != base
    assert annotations(after("store.credentials.operator.secretAccessKey")) != base
    assert annotations(after("resources")) == base


def test_several_operators_hold_one_lease_and_bear_a_drain(helm: Helm) -> None:
    two = helm.render(OPERATOR, merged(MINIMAL, {"replicas": 2}))
    assert find(two, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert find(two, "Deployment")["spec"]["strategy"]["type"] == "RollingUpdate"
    lease = find(two, "Role", "llmengine-operator-lease")
    assert lease["rules"][1]["resourceNames"] == [LEASE_NAME]
    # A budget of a single pod would stop every drain for good.
    assert of_kind(helm.render(), "PodDisruptionBudget") == []


def test_without_a_lease_no_two_pods_run_at_the_same_time(helm: Helm) -> None:
    alone = helm.render(OPERATOR, merged(MINIMAL, at("leaderElection.enabled", False)))
    assert find(alone, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}


def test_images_are_named_by_tag_or_digest(helm: Helm) -> None:
    def image(values: dict[str, Any]) -> str:
        pod = find(helm.render(OPERATOR, values), "Deployment")["spec"]["template"]["spec"]
        return str(pod["containers"][0]["image"])

    repository = MINIMAL["image"]["repository"]
    version = yaml.safe_load((OPERATOR / "Chart.yaml").read_text())["appVersion"]
    assert image(MINIMAL) == f"{repository}:{version}"
    assert image(merged(MINIMAL, at("image.tag", "v9"))) == f"{repository}:v9"
    both = merged(MINIMAL, at("image", {"tag": "v9", "digest": DIGEST}))
    assert image(both) == f"{repository}@{DIGEST}"


def test_runtimes_are_rendered_and_outlive_the_values(helm: Helm) -> None:
    rendered = helm.render(OPERATOR, everything())
    cpu = find(rendered, "EngineRuntime", "onnxruntime-1.32.0")
    assert cpu["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert cpu["spec"] == {
        "backend": "onnxruntime",
        "version": "1.32.0",
        "accelerator": "cpu",
        "image": {
            "repository": "registry.test/engine",
            "tag": "v2",
            "pullPolicy": "Never",
            "pullSecrets": ["registry"],
        },
        "podDefaults": {"env": [{"name": "OMP_NUM_THREADS", "value": "2"}]},
    }
    gpu = find(rendered, "EngineRuntime", "tensorrt-10.6.0")
    assert gpu["spec"]["image"] == {
        "repository": "registry.test/tensorrt",
        "digest": DIGEST,
        "pullPolicy": "IfNotPresent",
    }
    for_gpus = ("computeCapabilities", "minimumDriver", "runtimeClassName")
    assert [gpu["spec"][field] for field in for_gpus] == [["sm_80+"], "550.54", "nvidia"]


def test_the_runtime_for_gpus_is_made_when_it_is_enabled_and_has_an_image(helm: Helm) -> None:
    name = "tensorrt-10.6.0"
    runtimes = of_kind(helm.render(OPERATOR, MINIMAL), "EngineRuntime")
    assert [runtime["metadata"]["name"] for runtime in runtimes] == ["onnxruntime-1.32.0"]
    image = {"repository": "registry.test/tensorrt"}
    enabled = merged(MINIMAL, {"runtimes": {name: {"enabled": True, "image": image}}})
    spec = find(helm.render(OPERATOR, enabled), "EngineRuntime", name)["spec"]
    assert (spec["backend"], spec["accelerator"]) == ("tensorrt", "nvidia")
    assert "sm_90" in spec["computeCapabilities"]
    assert spec["minimumDriver"] == "580.65.06"
    assert "runtimeClassName" not in spec


def test_a_runtime_is_left_out_by_null(helm: Helm) -> None:
    values = {**MINIMAL, "runtimes": {"onnxruntime-1.32.0": None}}
    assert of_kind(helm.render(OPERATOR, values), "EngineRuntime") == []


def test_secrets_lie_where_their_pods_are_and_nowhere_else(helm: Helm) -> None:
    secrets = {
        (s["metadata"]["namespace"], s["metadata"]["name"]): s["data"]
        for s in of_kind(helm.render(OPERATOR, everything()), "Secret")
    }
    keys = {place: data for place, data in secrets.items() if place[1] != "registry"}
    assert {place: _decoded(data)["AWS_ACCESS_KEY_ID"] for place, data in keys.items()} == {
        ("llmengine-system", "store-op"): "AKOP",
        ("compile", "store-build"): "AKBU",
        ("compile", "model-reader"): KEY["accessKeyId"],
        # A tenant may have a key of its own; the others share one.
        ("team-a", "store-serve"): KEY["accessKeyId"],
        ("team-b", "store-serve"): "AKSE",
        ("team-a", "store-scoped"): KEY["accessKeyId"],
    }
    assert _decoded(keys["team-a", "store-scoped"]) == {
        "AWS_ACCESS_KEY_ID": KEY["accessKeyId"],
        "AWS_SECRET_ACCESS_KEY": KEY["secretAccessKey"],
    }
    pull = {place[0] for place in secrets if place[1] == "registry"}
    assert pull == {"llmengine-system", "compile", "team-a", "team-b"}
    assert _decoded(secrets["team-a", "registry"]) == {".dockerconfigjson": '{"auths":{}}'}


def test_without_keys_in_the_values_no_secret_is_made(helm: Helm) -> None:
    values = merged(MINIMAL, {"tenantNamespaces": [{"name": "team-a"}]})
    assert of_kind(helm.render(OPERATOR, values), "Secret") == []


def test_the_operator_gets_its_key_by_environment_or_by_its_identity(helm: Helm) -> None:
    def container(values: dict[str, Any]) -> dict[str, Any]:
        pod = find(helm.render(OPERATOR, values), "Deployment")["spec"]["template"]["spec"]
        found: dict[str, Any] = pod["containers"][0]
        return found

    assert container(MINIMAL)["envFrom"] == [
        {"prefix": "STORE_", "secretRef": {"name": "llmengine-store-operator"}}
    ]
    identity = merged(MINIMAL, at("store.credentials.operator.secretName", ""))
    assert "envFrom" not in container(identity)


def test_builds_have_a_namespace_that_is_restricted_and_closed(helm: Helm) -> None:
    rendered = helm.render(OPERATOR, merged(MINIMAL, at("builds.resourceQuota", {"pods": 4})))
    namespace = find(rendered, "Namespace")
    assert namespace["metadata"]["name"] == "llmengine-builds"
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert namespace["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    policy = find(rendered, "NetworkPolicy")
    assert policy["metadata"]["namespace"] == "llmengine-builds"
    assert policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert find(rendered, "ResourceQuota")["spec"] == {"hard": {"pods": 4}}


def test_nothing_of_the_chart_looks_like_a_child_of_an_engine(helm: Helm) -> None:
    """The operator watches, and deletes, by this label."""
    for manifest in helm.render(OPERATOR, everything()):
        label = manifest["metadata"]["labels"]["app.kubernetes.io/managed-by"]
        assert label != "llmengine-operator"


def test_metrics_are_found_by_prometheus(helm: Helm) -> None:
    rendered = helm.render(OPERATOR, everything())
    monitor, service = find(rendered, "ServiceMonitor"), find(rendered, "Service")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"] == [{"port": "metrics", "interval": "5s"}]
    pod = find(rendered, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= pod.items()
    assert of_kind(helm.render(), "ServiceMonitor") == []


def test_servers_are_found_by_prometheus_in_every_namespace_that_may_serve(helm: Helm) -> None:
    enabled = merged(MINIMAL, at("metrics.podMonitor.enabled", True))
    spec = find(helm.render(OPERATOR, enabled), "PodMonitor")["spec"]
    deployment = World().cached().serving().observation.children["Deployment", "chat-amd64"]
    assert isinstance(deployment, Found)
    template = deployment.value["spec"]["template"]
    assert spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (server,) = template["spec"]["containers"]
    (endpoint,) = spec["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in server["ports"]}
    assert spec["namespaceSelector"] == {"any": True}
    watched = find(helm.render(OPERATOR, everything()), "PodMonitor")["spec"]
    assert watched["namespaceSelector"] == {"matchNames": ["team-a", "team-b", "team-c"]}
    assert of_kind(helm.render(), "PodMonitor") == []


@pytest.mark.parametrize(
    ("builds", "name"),
    [
        pytest.param({}, "llmengine-operator-build", id="the release's own by default"),
        pytest.param({"priorityClass": {"name": "slow"}}, "slow", id="by another name"),
        pytest.param({"priorityClass": {"create": False}}, "", id="none"),
        pytest.param(
            {"priorityClass": {"create": False, "name": "slow"}}, "", id="none that is not made"
        ),
        pytest.param({"priorityClassName": "batch"}, "batch", id="one that is there already"),
        pytest.param(
            {"priorityClass": {"create": False}, "priorityClassName": "batch"},
            "batch",
            id="one that is there already, and none is made",
        ),
    ],
)
def test_builds_that_name_no_priority_class_have_that_of_the_chart(
    helm: Helm, tmp_path: Path, builds: dict[str, Any], name: str
) -> None:
    config = _config(helm, merged(MINIMAL, {"builds": builds}), tmp_path)
    assert config.builds.priority_class_name == name


def test_the_priority_class_of_builds_is_below_what_serves_and_takes_no_node_from_others(
    helm: Helm,
) -> None:
    made = find(helm.render(), "PriorityClass")
    assert made["value"] < 0, "pods without a class have 0"
    assert made["value"] >= -10, "no cluster autoscaler adds a node for less"
    assert made["preemptionPolicy"] == "Never"
    assert not made.get("globalDefault", False)


def test_no_two_releases_make_the_same_priority_class(helm: Helm) -> None:
    names = {
        find(helm.render(OPERATOR, MINIMAL, release=release), "PriorityClass")["metadata"]["name"]
        for release in ("llmengine-operator", "blue", "green")
    }
    assert names == {
        "llmengine-operator-build",
        "blue-llmengine-operator-build",
        "green-llmengine-operator-build",
    }


def test_a_release_that_may_make_no_priority_class_makes_none(helm: Helm) -> None:
    values = merged(MINIMAL, at("builds.priorityClass.create", False))
    assert of_kind(helm.render(OPERATOR, values), "PriorityClass") == []


def _config(helm: Helm, values: dict[str, Any], folder: Path) -> Config:
    file = folder / "config.yaml"
    file.write_text(find(helm.render(OPERATOR, values), "ConfigMap")["data"]["config.yaml"])
    return Config.load(file)


def _nothing_at_its_default(config: Config) -> None:
    """A field that the chart forgets would keep its default."""
    changed = config.model_dump()
    default = Config.model_validate({"namespace": "", "store": {"bucket": "xxx"}}).model_dump()
    # The chart knows the ports; two booleans cannot have a third value.
    fixed = {"health_port", "metrics_port", "leader_election.enabled"}
    same = []

    def compare(one: dict[str, Any], other: dict[str, Any], path: str) -> None:
        for name, value in one.items():
            here = f"{path}{name}"
            if isinstance(value, dict):
                compare(value, other[name], f"{here}.")
            elif value == other[name] and here not in fixed:
                same.append(here)

    compare(changed, default, "")
    assert same == []


def _decoded(data: dict[str, str]) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in data.items()}
