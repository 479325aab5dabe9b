"""What a user reads who writes an LLMEngine wrongly: each sentence, word for word."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.crd.objects import COMMIT, REMOVED, Server, engine

pytestmark = pytest.mark.controlplane

NAME = (
    "must be at most 40 characters of a-z, 0-9 and -, beginning with a letter and ending with a"
    ' letter or digit (got "{}"), because Services are named after it'
)
OBJECT_NAME = (
    "not the name of a Kubernetes object: write lowercase letters, digits, - and ., beginning and"
    " ending with a letter or digit"
)
LABEL_VALUE = (
    "not the value of a label: write letters, digits, -, _ and ., beginning and ending with a"
    " letter or digit"
)
ARCHITECTURE = (
    "not an architecture: write amd64, arm64, sm_90 or sm_90/DEVICE, such as"
    " sm_90/NVIDIA-H100-80GB-HBM3"
)
AMOUNT = "not an amount: write a number, or one with a suffix, such as 500m or 4Gi"
S3_FORM = (
    "must be s3://BUCKET/PATH, with letters, digits and _.=- between the slashes and no slash at"
    ' the end (got "{}")'
)
PVC_FORM = (
    "must be pvc://CLAIM or pvc://CLAIM/PATH, with letters, digits and _.=- between the slashes"
    ' and no slash at the end (got "{}")'
)


def commit_wanted(got: str, uri: str = "HuggingFaceTB/SmolLM2-135M-Instruct") -> str:
    return (
        f'spec.model.revision: Invalid value: must be a 40-character commit for hf:// (got "{got}")'
        ", because branches and tags move; this prints it: git ls-remote"
        f" https://huggingface.co/{uri} {got}"
    )


S3 = {"spec.model.uri": "s3://models/smollm2", "spec.model.revision": "v1"}
PVC = {"spec.model.uri": "pvc://claim/smollm2", "spec.model.revision": "v1"}


def _per_slot(limit: int) -> str:
    return (
        f"not a number of requests for each slot: write more than 0 and less than {limit}, such as"
        " 500m"
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param(
            {"spec": REMOVED},
            "spec: Required value: give spec.runtime and spec.model",
            id="no spec",
        ),
        pytest.param(
            {"spec.runtime": REMOVED},
            'spec.runtime: Required value: name an EngineRuntime; "kubectl get engineruntimes"'
            " lists those of this cluster",
            id="no runtime",
        ),
        pytest.param(
            {"spec.runtime": "ONNX Runtime"},
            f'spec.runtime: Invalid value: "ONNX Runtime": {OBJECT_NAME}',
            id="a runtime that cannot be the name of an object",
        ),
        pytest.param(
            {"spec.model": REMOVED},
            "spec.model: Required value: give spec.model.uri and revision",
            id="no model",
        ),
        pytest.param(
            {"spec.model.uri": REMOVED, "spec.model.revision": "v1"},
            "spec.model.uri: Required value: say where the model is: hf://OWNER/NAME,"
            " s3://BUCKET/PATH or pvc://CLAIM/PATH",
            id="no uri",
        ),
        pytest.param(
            {"spec.model.revision": REMOVED},
            "spec.model.revision: Required value: for hf:// give a 40-character commit; for s3://"
            " and pvc:// a name of your choice that you change whenever the files change, such as"
            " v1",
            id="no revision",
        ),
        pytest.param(
            {"spec.model.uri": "https://example.com/m", "spec.model.revision": "v1"},
            "spec.model.uri: Invalid value: must begin with hf://, s3:// or pvc:// (got"
            ' "https://example.com/m")',
            id="a scheme that is not known",
        ),
        pytest.param(
            {"spec.model.uri": "hf://SmolLM2"},
            'spec.model.uri: Invalid value: must be hf://OWNER/NAME (got "hf://SmolLM2")',
            id="a model of the hub without its owner",
        ),
        pytest.param(
            {"spec.model.uri": "hf://a/b/resolve/main"},
            'spec.model.uri: Invalid value: must be hf://OWNER/NAME (got "hf://a/b/resolve/main")',
            id="a model of the hub with a path",
        ),
        pytest.param(
            {**S3, "spec.model.uri": "s3://models"},
            f"spec.model.uri: Invalid value: {S3_FORM.format('s3://models')}",
            id="a bucket without a path",
        ),
        pytest.param(
            {**S3, "spec.model.uri": "s3://models/smollm2/"},
            f"spec.model.uri: Invalid value: {S3_FORM.format('s3://models/smollm2/')}",
            id="a path that ends with a slash",
        ),
        pytest.param(
            {**S3, "spec.model.uri": "s3://Models/smollm2"},
            f"spec.model.uri: Invalid value: {S3_FORM.format('s3://Models/smollm2')}",
            id="a bucket with a capital letter",
        ),
        pytest.param(
            {**S3, "spec.model.uri": "s3://models/../secrets"},
            f"spec.model.uri: Invalid value: {S3_FORM.format('s3://models/../secrets')}",
            id="a path that climbs out of the bucket",
        ),
        pytest.param(
            {**PVC, "spec.model.uri": "pvc://claim/"},
            f"spec.model.uri: Invalid value: {PVC_FORM.format('pvc://claim/')}",
            id="a claim with a slash and nothing behind it",
        ),
        pytest.param(
            {**PVC, "spec.model.uri": "pvc://claim/../other"},
            f"spec.model.uri: Invalid value: {PVC_FORM.format('pvc://claim/../other')}",
            id="a path that climbs out of the volume",
        ),
        pytest.param({"spec.model.revision": "main"}, commit_wanted("main"), id="a branch"),
        pytest.param({"spec.model.revision": "v1.0"}, commit_wanted("v1.0"), id="a tag"),
        pytest.param(
            {"spec.model.revision": COMMIT[:7]}, commit_wanted(COMMIT[:7]), id="a short commit"
        ),
        pytest.param(
            {**S3, "spec.model.revision": "last week"},
            "spec.model.revision: Invalid value: must be one word without spaces, such as v1 (got"
            ' "last week")',
            id="a revision of two words",
        ),
        pytest.param(
            {**S3, "spec.model.revision": ""},
            "spec.model.revision: Invalid value: must be one word without spaces, such as v1 (got"
            ' "")',
            id="an empty revision",
        ),
        pytest.param(
            {"spec.model.secretName": "My_Token"},
            f'spec.model.secretName: Invalid value: "My_Token": {OBJECT_NAME}',
            id="a Secret that cannot be",
        ),
        pytest.param(
            {**PVC, "spec.model.secretName": "token"},
            "spec.model.secretName: Forbidden: a pvc:// model is read from its volume, without"
            " credentials: remove secretName",
            id="a Secret for a volume",
        ),
        pytest.param(
            {"spec.engine.dtype": "float8"},
            'spec.engine.dtype: Unsupported value: "float8": supported values: "auto", "float32",'
            ' "float16", "bfloat16"',
            id="an unknown dtype",
        ),
        pytest.param(
            {"spec.engine.quantization": {"weights": "int2"}},
            'spec.engine.quantization.weights: Unsupported value: "int2": supported values: "none",'
            ' "int8", "int4", "fp8"',
            id="an unknown quantization of the weights",
        ),
        pytest.param(
            {"spec.engine.quantization": {"kvCache": "int4"}},
            'spec.engine.quantization.kvCache: Unsupported value: "int4": supported values: "none",'
            ' "int8", "fp8"',
            id="an unknown quantization of the cache",
        ),
        pytest.param(
            {"spec.engine.portability": "Everywhere"},
            'spec.engine.portability: Unsupported value: "Everywhere": supported values: "Device",'
            ' "ComputeCapability"',
            id="an unknown portability",
        ),
        pytest.param(
            {"spec.engine.maxBatchSize": 0},
            "spec.engine.maxBatchSize: Invalid value: 0: spec.engine.maxBatchSize in body should be"
            " greater than or equal to 1",
            id="no slots",
        ),
        pytest.param(
            {"spec.engine.maxSequenceLength": 2000000},
            "spec.engine.maxSequenceLength: Invalid value: 2000000: spec.engine.maxSequenceLength"
            " in body should be less than or equal to 1048576",
            id="a sequence without end",
        ),
        pytest.param(
            {"spec.architectures": ["amd64", "sm_9"]},
            f'spec.architectures[1]: Invalid value: "sm_9": {ARCHITECTURE}',
            id="a compute capability of one digit",
        ),
        pytest.param(
            {"spec.architectures": ["x86_64"]},
            f'spec.architectures[0]: Invalid value: "x86_64": {ARCHITECTURE}',
            id="a CPU by another name",
        ),
        pytest.param(
            {"spec.architectures": ["sm_89/NVIDIA-L4", "sm_90"]},
            "spec.architectures: Invalid value: "
            "with engine.portability Device, which is the default, a GPU is named with its device,"
            " such as sm_90/NVIDIA-H100-80GB-HBM3",
            id="a GPU without a device",
        ),
        pytest.param(
            {
                "spec.architectures": ["sm_90", "sm_89/NVIDIA-L4"],
                "spec.engine": {"portability": "ComputeCapability"},
            },
            "spec.architectures: Invalid value: "
            "with engine.portability ComputeCapability an engine is for every GPU of a compute"
            " capability: name it without a device, such as sm_90",
            id="a GPU with a device, for every GPU of a compute capability",
        ),
        pytest.param(
            {"spec.architectures": []},
            "spec.architectures: Invalid value: 0: spec.architectures in body should have at least"
            " 1 items",
            id="no architecture at all",
        ),
        pytest.param(
            {"spec.architectures": ["amd64", "amd64"]},
            'spec.architectures[1]: Duplicate value: "amd64"',
            id="an architecture twice",
        ),
        pytest.param(
            {"spec.build.scratch.storageClassName": "fast"},
            "spec.build.scratch.size: Required value: a disk from a StorageClass needs a size, such"
            " as 60Gi",
            id="a StorageClass without a size",
        ),
        pytest.param(
            {"spec.build.scratch.size": "lots"},
            f'spec.build.scratch.size: Invalid value: "lots": {AMOUNT}',
            id="a size that is no amount",
        ),
        pytest.param(
            {"spec.build.attempts": 11},
            "spec.build.attempts: Invalid value: 11: spec.build.attempts in body should be less"
            " than or equal to 10",
            id="too many attempts",
        ),
        pytest.param(
            {"spec.serving.resources.requests": {"memory": "-1Gi"}},
            f'spec.serving.resources.requests[memory]: Invalid value: "-1Gi": {AMOUNT}',
            id="less memory than none",
        ),
        pytest.param(
            {"spec.serving.resources.limits": {"cpu": -1}},
            f"spec.serving.resources.limits[cpu]: Invalid value: -1: {AMOUNT}",
            id="less than no CPU, as a number",
        ),
        pytest.param(
            {"spec.serving.replicas": 2, "spec.serving.autoscaling.maxReplicas": 3},
            "spec.serving.replicas: Forbidden: with autoscaling, the number of pods is the"
            " autoscaler's: remove replicas or autoscaling",
            id="replicas with autoscaling",
        ),
        pytest.param(
            {"spec.serving.autoscaling": {"minReplicas": 4, "maxReplicas": 3}},
            "spec.serving.autoscaling.minReplicas: Invalid value: must not exceed maxReplicas:"
            " lower it, or raise maxReplicas",
            id="more replicas at least than at most",
        ),
        pytest.param(
            {"spec.serving.autoscaling": {}},
            "spec.serving.autoscaling.maxReplicas: Required value: give the most pods to run, such"
            " as 4",
            id="autoscaling without a maximum",
        ),
        *(
            pytest.param(
                {
                    "spec.serving.autoscaling": {
                        "maxReplicas": 3,
                        "targetRequestsWaitingPerSlot": value,
                    }
                },
                "spec.serving.autoscaling.targetRequestsWaitingPerSlot: Invalid value:"
                f" {shown}: {_per_slot(4)}",
                id=f"{why} for each slot",
            )
            for value, shown, why in (
                (0, "0", "no waiting request"),
                ("0", '"0"', "no waiting request, as text,"),
                (-1, "-1", "less than no request"),
                ("-500m", '"-500m"', "half a request too few"),
                (4, "4", "as many waiting requests as a queue holds"),
                ("4", '"4"', "as many waiting requests as a queue holds, as text,"),
                ("some", '"some"', "a word"),
            )
        ),
        pytest.param(
            {"spec.serving.autoscaling": {"maxReplicas": 3, "targetRequestsPerSlot": 5}},
            "spec.serving.autoscaling.targetRequestsPerSlot: Invalid value: 5: " + _per_slot(5),
            id="as many requests as a server takes for each slot",
        ),
        pytest.param(
            {"spec.serving.rollout": {"strategy": "Replace", "maxSurge": 1}},
            "spec.serving.rollout.maxSurge: Forbidden: strategy Replace makes no pod beside the old"
            " ones: remove maxSurge, or write strategy Surge",
            id="a surge without a surge",
        ),
        pytest.param(
            {"spec.serving.rollout": {"maxSurge": 0}},
            "spec.serving.rollout.maxSurge: Invalid value: must be more than 0, unless the strategy"
            " is Replace",
            id="a surge of nothing",
        ),
        pytest.param(
            {"spec.serving.rollout": {"strategy": "Replace", "maxUnavailable": "0%"}},
            "spec.serving.rollout.maxUnavailable: Invalid value: must be more than 0 with strategy"
            " Replace: an old pod has to go before a new one can come",
            id="room without a gap",
        ),
        pytest.param(
            {"spec.serving.rollout.maxUnavailable": "few"},
            'spec.serving.rollout.maxUnavailable: Invalid value: "few": not a number of pods:'
            " write one, such as 1, or a share of them, such as 25%",
            id="not a number of pods",
        ),
        pytest.param(
            {"spec.serving.modelName": "my model"},
            'spec.serving.modelName: Invalid value: "my model": not a name for a model: write'
            " letters, digits, _, . and -, beginning with a letter or digit",
            id="a model's name with a space",
        ),
        pytest.param(
            {"spec.serving.nodeSelector": {"pool": "a b"}},
            f'spec.serving.nodeSelector[pool]: Invalid value: "a b": {LABEL_VALUE}',
            id="a selector that no label can have",
        ),
        pytest.param(
            {"spec.build.nodeSelector": {"pool of mine": "a"}},
            "spec.build.nodeSelector: Invalid value: every key must be the name of a label, such as"
            " example.com/pool",
            id="a selector by what is no label",
        ),
        pytest.param(
            {"spec.serving.tolerations": [{"key": "gpu", "operator": "Exists", "value": "yes"}]},
            "spec.serving.tolerations[0].value: Forbidden: operator Exists looks at no value:"
            " remove it, or write operator Equal",
            id="a toleration with a value that is not looked at",
        ),
        pytest.param(
            {"spec.build.tolerations": [{"operator": "Equal", "value": "yes"}]},
            "spec.build.tolerations[0].key: Required value: name the taint's key, or write operator"
            " Exists to tolerate every taint",
            id="a toleration without a key",
        ),
        pytest.param(
            {"spec.serving.tolerations": [{"key": "gpu", "operator": "Like"}]},
            'spec.serving.tolerations[0].operator: Unsupported value: "Like": supported values:'
            ' "Exists", "Equal"',
            id="a toleration with an unknown operator",
        ),
        pytest.param(
            {
                "spec.serving.tolerations": [
                    {"key": "gpu", "effect": "NoSchedule", "tolerationSeconds": 5}
                ]
            },
            "spec.serving.tolerations[0].tolerationSeconds: Forbidden: has a meaning for effect"
            " NoExecute only: remove it, or write that effect",
            id="a toleration that ends without a reason",
        ),
    ],
)
def test_a_wrong_engine_is_refused_with_a_sentence(
    server: Server, changes: dict[str, Any], says: str
) -> None:
    refusal = server.refusal(engine(changes))
    # Where a value of a fixed set is wrong, the API server adds that it has not looked further.
    assert refusal.removeprefix("[").split(", <nil>: ")[0] == says


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("a" * 41, id="too long"),
        pytest.param("1chat", id="beginning with a digit"),
        pytest.param("chat.v1", id="with dots"),
    ],
)
def test_a_name_that_no_service_could_have_is_refused(server: Server, name: str) -> None:
    refusal = server.refusal(engine(name=name))
    assert refusal == f"metadata.name: Invalid value: {NAME.format(name)}"


def test_the_longest_name_is_accepted(server: Server) -> None:
    server.create(engine(name="a" * 40), keep=False)


def test_all_that_is_wrong_is_said_at_once(server: Server) -> None:
    refusal = server.refusal(
        engine(
            {
                "spec.runtime": REMOVED,
                "spec.model.revision": "main",
                "spec.engine.maxBatchSize": 0,
                "spec.architectures": ["x86_64"],
                "spec.build.scratch.storageClassName": "fast",
                "spec.serving.modelName": "-",
            },
            name="9",
        )
    )
    for field in (
        "metadata.name",
        "spec.runtime",
        "spec.model.revision",
        "spec.engine.maxBatchSize",
        "spec.architectures[0]",
        "spec.build.scratch.size",
        "spec.serving.modelName",
    ):
        assert f"{field}: " in refusal


@pytest.mark.parametrize(
    ("changes", "unknown"),
    [
        pytest.param({"spec.replicas": 2}, "spec.replicas", id="in the wrong place"),
        pytest.param({"spec.engine.maxBatchsize": 2}, "spec.engine.maxBatchsize", id="misspelt"),
        pytest.param({"spec.serving.env": []}, "spec.serving.env", id="of other operators"),
        pytest.param(
            {"spec.serving.serviceAccountName": "admin"},
            "spec.serving.serviceAccountName",
            id="that a tenant must not set",
        ),
    ],
)
def test_an_unknown_field_is_refused(server: Server, changes: dict[str, Any], unknown: str) -> None:
    with pytest.raises(Exception, match=f'400: .*unknown field "{unknown}"'):
        server.create(engine(changes), keep=False)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="a model of the hub"),
        pytest.param(S3, id="a model in S3"),
        pytest.param({**S3, "spec.model.uri": "s3://m-1.x/a/b_c/v=1/D.2"}, id="a deep path"),
        pytest.param(PVC, id="a model on a volume"),
        pytest.param({**PVC, "spec.model.uri": "pvc://claim"}, id="a model in a volume's root"),
        pytest.param({"spec.model.secretName": "hf-token"}, id="a Secret"),
        pytest.param(
            {"spec.architectures": ["amd64", "arm64", "sm_90/NVIDIA-H200", "sm_120/NVIDIA-B200"]},
            id="every form of an architecture",
        ),
        pytest.param(
            {
                "spec.architectures": ["sm_90", "sm_120"],
                "spec.engine": {"portability": "ComputeCapability"},
            },
            id="compute capabilities without devices",
        ),
        pytest.param(
            {
                "spec.serving.resources": {
                    "requests": {"cpu": 2, "memory": "4Gi", "ephemeral-storage": "1.5e9"},
                    "limits": {"cpu": "500m", "nvidia.com/gpu": "1", "memory": 4294967296},
                }
            },
            id="amounts as numbers and as text",
        ),
        pytest.param(
            {"spec.build.scratch": {"size": "60Gi", "storageClassName": "fast"}}, id="a disk"
        ),
        pytest.param({"spec.serving.autoscaling": {"maxReplicas": 1}}, id="autoscaling"),
        pytest.param(
            {
                "spec.serving.autoscaling": {
                    "maxReplicas": 1,
                    "targetCPUUtilization": 70,
                    "targetRequestsPerSlot": "4.5",
                    "targetRequestsWaitingPerSlot": 3,
                }
            },
            id="autoscaling on everything",
        ),
        pytest.param(
            {
                "spec.serving": {
                    "autoscaling": {"maxReplicas": 1, "targetCPUUtilization": 80},
                    "terminationGracePeriodSeconds": 60,
                }
            },
            id="what an earlier release filled in",
        ),
        pytest.param({"spec.serving.replicas": 0}, id="no replicas"),
        pytest.param(
            {
                "spec.serving.nodeSelector": {
                    "example.com/pool": "",
                    "kubernetes.io/arch": "amd64",
                },
                "spec.serving.tolerations": [
                    {"operator": "Exists"},
                    {"key": "a", "value": "b"},
                    {"key": "a", "effect": "NoExecute", "tolerationSeconds": 60},
                ],
            },
            id="every form of a toleration",
        ),
    ],
)
def test_what_is_right_is_accepted(server: Server, changes: dict[str, Any]) -> None:
    server.create(engine(changes), keep=False)
