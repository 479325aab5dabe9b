"""For each value of the operator's chart another one, and what both are worth together."""

from __future__ import annotations

from typing import Any

from tests.contract.charts.helm import MINIMAL, at, merged

KEY = {"accessKeyId": "AKIA", "secretAccessKey": "c2VjcmV0"}
DIGEST = "sha256:" + "a" * 64
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
S3 = {
    "name": "main",
    "endpoint": "https://s3.test",
    "region": "eu-1",
    "pathStyle": False,
    "caPem": PEM,
    "buckets": ["models", "more"],
    "secretName": "model-reader",
    **KEY,
}

ALTERNATIVES: dict[str, Any] = {
    "replicas": 2,
    "image.repository": "registry.test:5000/op",
    "image.tag": "v9",
    "image.digest": DIGEST,
    "image.pullPolicy": "Always",
    "image.pullSecrets": ["registry"],
    "store.bucket": "other-engines",
    "store.prefix": "team/engines",
    "store.endpoint": "https://store.test:9000",
    "store.region": "eu-2",
    "store.pathStyle": False,
    "store.caPem": PEM,
    "store.conditionalWrites": "Preferred",
    "store.credentials.operator.secretName": "store-op",
    "store.credentials.operator.accessKeyId": "AKOP",
    "store.credentials.operator.secretAccessKey": "b3A=",
    "store.credentials.build.secretName": "store-build",
    "store.credentials.build.accessKeyId": "AKBU",
    "store.credentials.build.secretAccessKey": "YnU=",
    "store.credentials.scopedBuild.secretName": "store-scoped",
    "store.credentials.serve.secretName": "store-serve",
    "store.credentials.serve.accessKeyId": "AKSE",
    "store.credentials.serve.secretAccessKey": "c2U=",
    "models.s3": [S3, {"name": "rest"}],
    "models.shared": ["s3://models/", "s3://more/open/"],
    "models.hfEndpoint": "https://hub.test",
    "runtimes": {
        "onnxruntime-1.32.0": {
            "image": {
                "repository": "registry.test/engine",
                "tag": "v2",
                "pullPolicy": "Never",
                "pullSecrets": ["registry"],
            },
            "podDefaults": {"env": [{"name": "OMP_NUM_THREADS", "value": "2"}]},
        },
        "tensorrt-10.6.0": {
            "backend": "tensorrt",
            "version": "10.6.0",
            "accelerator": "nvidia",
            "enabled": True,
            "image": {"repository": "registry.test/tensorrt", "digest": DIGEST},
            "computeCapabilities": ["sm_80+"],
            "minimumDriver": "550.54",
            "runtimeClassName": "nvidia",
        },
    },
    "architectures.expected": [
        {
            "architecture": "sm_89/NVIDIA-L4",
            "labels": {"pool": "l4"},
            "taints": [{"key": "gpu", "value": "yes", "effect": "NoExecute"}],
        },
        {"architecture": "arm64"},
    ],
    "builds.namespace": "compile",
    "builds.createNamespace": False,
    "builds.maxConcurrent": 9,
    "builds.maxConcurrentPerArchitecture": 3,
    "builds.resourceQuota": {"requests.cpu": "16", "pods": 4},
    "builds.networkPolicy": False,
    "builds.priorityClass.create": False,
    "builds.priorityClass.name": "slow",
    "builds.priorityClass.value": -2,
    "builds.priorityClassName": "batch",
    "rollouts.maxConcurrent": 2,
    "rollouts.minReadySeconds": 10,
    "tenantNamespaces": [
        {"name": "team-a", "serve": KEY, "scopedBuild": KEY},
        {"name": "team-b"},
    ],
    "watchNamespaces": ["team-a", "team-b", "team-c"],
    "pullSecrets": {"registry": '{"auths":{}}'},
    "userRoles.aggregate": False,
    "userRoles.runtimeReaders": [],
    "leaderElection.enabled": False,
    "leaderElection.leaseSeconds": 7.5,
    "workers": 8,
    "resyncSeconds": 1234567,
    "logLevel": "DEBUG",
    "serviceAccount.create": False,
    "serviceAccount.name": "somebody",
    "serviceAccount.annotations": {"example.com/role": "store-reader"},
    "resources": {"limits": {"memory": "1Gi"}},
    "env": [{"name": "HTTPS_PROXY", "value": "http://proxy.test"}],
    "podLabels": {"team": "platform"},
    "podAnnotations": {"example.com/scrape": "yes"},
    "nodeSelector": {"pool": "system"},
    "tolerations": [{"key": "system", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "system-cluster-critical",
    "metrics.serviceMonitor.enabled": True,
    "metrics.serviceMonitor.interval": "5s",
    "metrics.serviceMonitor.labels": {"release": "prometheus"},
    "metrics.podMonitor.enabled": True,
    "metrics.podMonitor.interval": "5s",
    "metrics.podMonitor.labels": {"release": "prometheus"},
}
# What a value has an effect together with.
_NEEDS: dict[str, dict[str, Any]] = {
    "image.tag": {},
    "leaderElection.enabled": {"replicas": 1},
    "pullSecrets": at("image.pullSecrets", ["registry"]),
    "metrics.serviceMonitor.interval": at("metrics.serviceMonitor.enabled", True),
    "metrics.serviceMonitor.labels": at("metrics.serviceMonitor.enabled", True),
    "metrics.podMonitor.interval": at("metrics.podMonitor.enabled", True),
    "metrics.podMonitor.labels": at("metrics.podMonitor.enabled", True),
    **{
        f"store.credentials.{role}.{half}": merged(
            at(f"store.credentials.{role}", KEY), {"tenantNamespaces": [{"name": "team-a"}]}
        )
        for role in ("operator", "build", "serve")
        for half in KEY
    },
}


def before(path: str) -> dict[str, Any]:
    """Values in which this one has an effect, at its default or another than its alternative."""
    return merged(MINIMAL, _NEEDS.get(path, {}))


def after(path: str) -> dict[str, Any]:
    """The same with this one changed."""
    return merged(before(path), at(path, ALTERNATIVES[path]))


def everything() -> dict[str, Any]:
    """All at once, but for those that exclude one another."""
    left_out = {"leaderElection.enabled", "serviceAccount.create", "builds.createNamespace"}
    left_out |= {
        "builds.priorityClass.create",
        "builds.networkPolicy",
        "userRoles.aggregate",
        "userRoles.runtimeReaders",
    }
    changed = (at(path, value) for path, value in ALTERNATIVES.items() if path not in left_out)
    return merged(MINIMAL, *changed)
