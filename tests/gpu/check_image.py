"""The image for GPUs, in the pods that the operator makes, on a node without one: it says so.

Not of `make test`, for it fetches 1.1 GB and takes 15 GB of disk: see CONTRIBUTING.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmengine.artifact import Cache, Device, Limits, Manifest, Verification
from llmengine.key import CLUSTER
from llmengine.requests import BUILD_REQUEST_VARIABLE, BuildRequest, StoreLocation
from llmengine.store import Contents, Credentials, Store
from tests.cluster import images
from tests.cluster.cluster import Cluster
from tests.cluster.images import Image
from tests.cluster.paths import ClusterError
from tests.cluster.waiting import wait_for
from tests.cluster.workloads import RESTRICTED, container, pod, pod_spec
from tests.demo.charts import ROOT
from tests.demo.platform import BUILDS_NAMESPACE, ENGINES, Images, Platform
from tests.e2e.engines import TEAMS, Engine, Engines
from tests.gpu import image as gpu_image
from tests.gpu.nvidia import VERSION
from tests.models.tiny import TinyModel
from tests.unit.operator.gpu_nodes import H100, labels_of

RUNTIME = f"tensorrt-{VERSION}"
WANTED = f"sm_90/{H100}"
DRIVER = "580.159.04"
NO_DRIVER = "no NVIDIA driver answers here"
# What the CPU can do with the image's CUDA: compile kernels for a GPU.
KERNELS = """
from llmengine_server.session import cuda_driver
for capability in ((7, 5), (8, 0), (8, 9), (9, 0)):
    defines = {"ELEMENT": 1, "HEAD_DIM": 64, "GROUP": 4}
    code = cuda_driver._compile(cuda_driver._ATTENTION, capability, defines)
    print(capability, code[:4])
"""
HEARTBEAT = """
import subprocess, time
from pathlib import Path
from llmengine_server.heartbeat import Heartbeat
print(subprocess.run(["llmengine-alive"], capture_output=True, text=True))
Heartbeat(Path("/run/llmengine"), time.monotonic).beat()
print(subprocess.run(["llmengine-alive"], capture_output=True, text=True))
"""


@pytest.fixture(scope="module")
def image() -> Image:
    return gpu_image.build()


@pytest.fixture(scope="module")
def platform(image: Image) -> Iterator[Platform]:
    """A node that is labelled as one with an H100, and lends a GPU that is none."""
    operator = images.build(ROOT / "operator/Dockerfile", None, ROOT, "operator")
    cluster = Cluster.claim(
        "gpu-image",
        fake_gpus=1,
        node_labels=labels_of(H100, driver=DRIVER),
        images=[operator, image],
        tied=True,
    )
    try:
        with cluster:
            platform = Platform(cluster, Images(operator, image), TEAMS)
            repository, _, tag = image.reference.rpartition(":")
            gpu = {"enabled": True, "image": {"repository": repository, "tag": tag}}
            platform.install(resyncSeconds=60, runtimes={RUNTIME: gpu})
            yield platform
    finally:
        cluster.remove()


@pytest.fixture(scope="module")
def engine(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    model = TinyModel(family="llama").write(tmp_path_factory.mktemp("tiny"))
    uri = platform.put_model(model, "tiny")
    engines = Engines(platform, "gpu-image")
    # Required: GPUs that are new in a cluster else count after 2 minutes.
    return engines.apply("chat", uri, runtime=RUNTIME, architectures=[WANTED])


def test_a_build_ends_as_one_on_a_wrong_device(platform: Platform, engine: Engine) -> None:
    sentence = engine.wait_stalled("WrongDevice", 180)
    assert NO_DRIVER in sentence
    (job,) = engine.jobs()
    (ended,) = _pods(platform.cluster, BUILDS_NAMESPACE, job["metadata"]["name"])
    state = ended["status"]["containerStatuses"][0]["state"]["terminated"]
    assert state["exitCode"] == 13
    last = json.loads(state["message"])
    assert (last["reason"], NO_DRIVER in last["message"]) == ("WrongDevice", True)
    assert ended["spec"]["securityContext"]["runAsUser"] == 65532
    assert ended["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"]


def test_a_server_says_why_it_does_not_serve(
    platform: Platform, engine: Engine, tmp_path: Path
) -> None:
    engine.wait_stalled("WrongDevice", 180)
    (job,) = engine.jobs()
    variables = job["spec"]["template"]["spec"]["containers"][0]["env"]
    ordered = next(v["value"] for v in variables if v["name"] == BUILD_REQUEST_VARIABLE)
    _publish(platform, BuildRequest.model_validate_json(ordered), tmp_path)
    engine.annotate(requested_at="published")

    def last_words() -> str:
        for served in engine.pods():
            for status in served["status"].get("containerStatuses", ()):
                states = status["lastState"], status["state"]
                for ended in (state["terminated"] for state in states if "terminated" in state):
                    return f"{ended['exitCode']} {ended['message']}"
        return ""

    code, _, words = wait_for(last_words, 120, "the server's end").partition(" ")
    last = json.loads(words)
    assert (code, last["reason"]) == ("13", "WrongDevice")
    assert NO_DRIVER in last["message"]

    def told() -> bool:
        return NO_DRIVER in engine.condition("Ready").get("message", "")

    wait_for(told, 120, lambda: json.dumps(engine.status(), indent=1))


def test_the_probe_hears_the_heartbeat(platform: Platform, image: Image) -> None:
    ended = _run(platform.cluster, image, "probe", HEARTBEAT)
    silent, alive = ended.splitlines()
    assert "returncode=1" in silent
    assert "the engine loop has not started" in silent
    assert "returncode=0" in alive


def test_kernels_are_compiled_by_what_is_in_the_image(platform: Platform, image: Image) -> None:
    lines = _run(platform.cluster, image, "kernels", KERNELS).splitlines()
    assert len(lines) == 4
    assert all("ELF" in line for line in lines)


@pytest.mark.parametrize(
    ("bindings", "sentence"),
    [
        ("tensorrt_cu12_bindings==10.7.0", "module is of version 10.7.0, its library of version"),
        ("tensorrt_cu13_bindings==11.2.1.2", "libnvonnxparser.so.11: cannot open"),
    ],
)
def test_bindings_of_another_version_make_no_image(bindings: str, sentence: str) -> None:
    with pytest.raises(ClusterError) as caught:
        gpu_image.build(bindings)
    last = str(caught.value).splitlines()
    assert [line for line in last if line.startswith("error: TensorRT's") and sentence in line]


def _publish(platform: Platform, request: BuildRequest, folder: Path) -> None:
    """What such a build would, but that it computes nothing."""
    files = {"engine.plan": b"ftrt" + bytes(1000), "tokenizer.json": b"{}"}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    manifest = Manifest(
        key=request.key,
        factors=request.factors,
        created="2026-11-24T12:00:00Z",
        builder_version="0.1.0",
        model_type="llama",
        vocabulary=64,
        limits=Limits(max_batch_size=1, max_sequence_length=64, max_batch_tokens=16),
        cache=Cache(
            layout="plain", dtype="bfloat16", layers=1, kv_heads=1, head_dim=8, buckets=(64,)
        ),
        device=Device(name=H100, compute_capability="9.0"),
        seconds={"Compile": 1.0},
        verification=Verification(tokens=8, mean_relative_error=1e-3, max_logit_gap=0.0),
        model_files=(),
        files=tuple(Contents.of(folder / name).file(name) for name in files),
    )
    root = platform.s3.root
    location = StoreLocation(**{**request.store.model_dump(), "bucket": ENGINES})
    store = Store(location, Credentials(root.access_key, root.secret_key))

    def put() -> None:
        for file in manifest.files:
            store.put_blob(folder / file.path, Contents.of(folder / file.path), CLUSTER)
        store.publish_manifest(manifest, CLUSTER)

    platform.s3.call(put)


def _run(cluster: Cluster, image: Image, name: str, code: str) -> str:
    """What a program said in a pod of the image that may do no more than ours."""
    mounts = [{"name": volume, "mountPath": path} for volume, path in VOLUMES.items()]
    main = container(
        image.reference, ["python3", "-c", code], securityContext=RESTRICTED, volumeMounts=mounts
    )
    volumes = [{"name": volume, "emptyDir": {}} for volume in VOLUMES]
    cluster.apply(pod(name, TEAMS[0], pod_spec(main, volumes=volumes)))
    path = f"/api/v1/namespaces/{TEAMS[0]}/pods/{name}"

    def ended() -> bool:
        return cluster.api.get(path)["status"].get("phase") in ("Succeeded", "Failed")

    wait_for(ended, 60, lambda: json.dumps(cluster.api.get(path)["status"]))
    return cluster.kubectl("logs", "-n", TEAMS[0], name)


VOLUMES = {"run": "/run/llmengine", "tmp": "/tmp"}


def _pods(cluster: Cluster, namespace: str, job: str) -> list[dict[str, Any]]:
    selector = f"?labelSelector=job-name%3D{job}"
    return cluster.api.items(f"/api/v1/namespaces/{namespace}/pods{selector}")
