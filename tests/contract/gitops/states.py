"""Every state that the operator's decisions can put an engine in, and what each tool is to make of
it. The docs have a table of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from llmengine.api.crd import engine_crd
from llmengine.api.v1alpha1 import API_VERSION, LLMEngineStatus
from llmengine.artifact import BuildProgress
from llmengine.requests import BuildReason
from llmengine_operator.conditions import rfc3339
from llmengine_operator.decision import ApplyDeployment
from llmengine_operator.kinds import LLMENGINE
from llmengine_operator.labels import MANAGED, Label
from llmengine_operator.observation import (
    AttemptState,
    Engine,
    Found,
    NotFound,
    Unreadable,
    Verdict,
)
from llmengine_operator.plan import decide
from llmengine_operator.reasons import Reason
from llmengine_operator.report import report
from llmengine_operator.targets import Problem
from tests.unit.operator.gpu_nodes import H100, gpu_node
from tests.unit.operator.gpu_world import Gpus, H, L
from tests.unit.operator.world import (
    CONFIG,
    NOW,
    World,
    as_observed,
    make_node,
    make_runtime,
    server_pod,
)

EDITED = {"model": {"uri": "s3://models/smollm2", "revision": "v2"}}


@dataclass(frozen=True)
class State:
    """A situation; `kstatus` and `argo` are what the tools are to say."""

    name: str
    make: Callable[[], dict[str, Any]]
    kstatus: str
    argo: str

    @property
    def object(self) -> dict[str, Any]:
        return self.make()


def as_object(engine: Engine, status: LLMEngineStatus) -> dict[str, Any]:
    """An engine as the API server shows it."""
    return {
        "apiVersion": API_VERSION,
        "kind": LLMENGINE.kind,
        "metadata": {
            "name": engine.name,
            "namespace": engine.namespace,
            "generation": engine.generation,
        },
        "spec": engine.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def reported(world: World, *, refused: Problem | None = None) -> dict[str, Any]:
    """The engine after a pass of the operator."""
    decision = world.decide()
    status = report(world.observation, decision, applied=frozenset(), refused=refused, now=NOW)
    return as_object(world.observation.engine, status)


def engine_crd_default() -> dict[str, Any]:
    (version,) = engine_crd()["spec"]["versions"]
    properties = version["schema"]["openAPIV3Schema"]["properties"]
    return dict(properties["status"]["default"])


def serving() -> World:
    return World().cached().serving()


def edited(world: World) -> World:
    return world.with_spec(**EDITED)


def created() -> dict[str, Any]:
    """What the kind's default makes of an object without a status."""
    shown = as_object(World().engine, LLMEngineStatus())
    return {**shown, "status": engine_crd_default()}


def unseen_edit() -> dict[str, Any]:
    """The spec was edited, and the operator has not come round: the status is the old one."""
    shown = reported(serving())
    shown["metadata"]["generation"] += 1
    return shown


def going() -> dict[str, Any]:
    shown = reported(serving())
    shown["metadata"] |= {
        "deletionTimestamp": "2026-11-24T12:00:00Z",
        "finalizers": ["foregroundDeletion"],
    }
    return shown


def building() -> World:
    world = World().tried(AttemptState.RUNNING, reason=Reason.BUILDING)
    key = world.target.key
    progress = BuildProgress(
        key=key, phase="Compile", percent=40, heartbeat="2026-11-24T12:00:00Z", job="builds/x"
    )
    return world.but(progress={key: progress})


def failed(reason: str, verdict: Verdict = Verdict.FINAL, **more: Any) -> World:
    return World().tried(
        AttemptState.FAILED, reason=reason, message="its last words", verdict=verdict, **more
    )


def with_deployment_status(world: World, **status: Any) -> World:
    child = world.observation.children["Deployment", "chat-amd64"]
    assert isinstance(child, Found)
    changed = Found({**child.value, "status": {"observedGeneration": 1, **status}})
    return world.but(children={**world.observation.children, ("Deployment", "chat-amd64"): changed})


def pod_that(world: World, **status: Any) -> World:
    """The engine is cached, and this is its only server pod."""
    deployment = next(a for a in world.decide().actions if isinstance(a, ApplyDeployment)).object
    pod = server_pod(deployment, ready=False)
    conditions = [*pod["status"]["conditions"], *status.pop("conditions", [])]
    world.serving(ready=0)
    rolled = Found(as_observed(deployment, ready=0, replicas=1))
    return world.but(
        children={**world.observation.children, ("Deployment", "chat-amd64"): rolled},
        pods=({**pod, "status": {**pod["status"], "conditions": conditions, **status}},),
    )


def ended(name: str, kind: str = "containerStatuses") -> dict[str, Any]:
    """A container of a pod that ended again and again."""
    words = '{"reason":"EngineCorrupted","message":"blob ab12 is damaged"}'
    last = {"exitCode": 10, "reason": "Error", "message": words}
    return {
        kind: [
            {
                "name": name,
                "ready": False,
                "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": last},
            }
        ]
    }


def down(seconds: float, **status: Any) -> World:
    """An engine that served, whose only pod has not been ready for so long."""
    since = rfc3339(NOW - timedelta(seconds=seconds))
    unready = {"type": "Ready", "status": "False", "lastTransitionTime": since}
    world = pod_that(World().cached(), **status)
    (pod,) = world.observation.pods
    world.but(pods=({**pod, "status": {**pod["status"], "conditions": [unready]}},))
    through = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
    lacks = {"type": "Available", "status": "False", "lastTransitionTime": since}
    return with_deployment_status(world, conditions=[through, lacks])


def stuck(reason: str) -> dict[str, Any]:
    waiting = {"waiting": {"reason": reason, "message": "what the node says"}}
    return {"containerStatuses": [{"name": "server", "image": "i", "state": waiting}]}


def in_the_way(**metadata: Any) -> World:
    obj = {"metadata": {"name": "chat", "uid": "x", **metadata}, "spec": {}}
    return World().but(children={("Service", "chat"): Found(obj)})


def left_behind() -> World:
    owner = {"apiVersion": API_VERSION, "kind": LLMENGINE.kind, "name": "chat", "uid": "old"}
    return in_the_way(labels={**MANAGED, Label.ENGINE: "chat"}, ownerReferences=[owner])


def unreachable(world: World) -> World:
    away = Unreadable(BuildReason.STORE_UNREACHABLE, "no answer from http://s3.test")
    return world.but(manifests=dict.fromkeys(world.observation.manifests, away))


def apply_refused() -> dict[str, Any]:
    return reported(World().cached(), refused=Problem(Reason.APPLY_REFUSED, "its sentence"))


def bucket_unknown() -> dict[str, Any]:
    world = World()
    config = CONFIG.model_copy(update={"models": CONFIG.models.model_copy(update={"s3": ()})})
    decision = decide(world.observation, config, NOW)
    status = report(world.observation, decision, applied=frozenset(), refused=None, now=NOW)
    return as_object(world.engine, status)


PRODUCT = "nvidia.com/gpu.product"


def required(
    name: str = H, *, runtime: dict[str, Any] | None = None, engine: Any = None, **node: Any
) -> Gpus:
    """One kind of GPU is asked for, and the only node that may have it has something wrong."""
    spec = {"engine": engine} if engine else {}
    world = Gpus(runtime=runtime, architectures=[name], **spec)
    return world.on(gpu_node("h", H100, **node)).missing()


def waiting_for_another() -> Gpus:
    """Two kinds serve, and the new engine of one of them is there."""
    world = Gpus(H, L).stored(H, L).rolled_out()
    edited(world)
    return world.stored(L)


DONE = ("Current", "Healthy")
WORK = ("InProgress", "Progressing")
STUCK = ("Failed", "Degraded")
PAUSED = ("InProgress", "Suspended")

STATES = tuple(
    State(name, make, *expected)
    for name, make, expected in (
        # Nobody has looked at the newest spec.
        ("just created", created, WORK),
        ("edited, not seen yet", unseen_edit, WORK),
        # Argo CD asks no script about what is being deleted: it says Progressing by itself.
        ("deleted, its parts are going", going, ("Terminating", "Progressing")),
        # Builds.
        ("a build waits for its turn", lambda: reported(World()), WORK),
        (
            "a build's pod waits",
            lambda: reported(World().tried(AttemptState.WAITING, reason=Reason.BUILD_PENDING)),
            WORK,
        ),
        ("a build runs", lambda: reported(building()), WORK),
        (
            "a build has ended, its manifest is not seen",
            lambda: reported(World().tried(AttemptState.SUCCEEDED, finished=NOW)),
            WORK,
        ),
        (
            "a failed build is tried again",
            lambda: reported(failed(BuildReason.STORE_UNREACHABLE, Verdict.RETRY)),
            WORK,
        ),
        (
            "a build failed for good",
            lambda: reported(failed(BuildReason.MODEL_UNSUPPORTED)),
            STUCK,
        ),
        (
            "a build lacks something, such as a token",
            lambda: reported(failed(BuildReason.MODEL_ACCESS_DENIED, Verdict.ENVIRONMENT)),
            STUCK,
        ),
        (
            "a build's tries are used up",
            lambda: reported(failed(BuildReason.BUG, Verdict.RETRY, number=3, tries_left=0)),
            STUCK,
        ),
        # The store.
        ("the store is away", lambda: reported(unreachable(World())), WORK),
        (
            "the store is away, and the engine serves",
            lambda: reported(unreachable(serving())),
            DONE,
        ),
        (
            "the store must not be built into",
            lambda: reported(World().but(unsafe_store=Unreadable(Reason.STORE_UNSAFE, "why"))),
            STUCK,
        ),
        # Rollouts.
        ("the first pods start", lambda: reported(World().cached()), WORK),
        ("serves as asked", lambda: reported(serving()), DONE),
        (
            "a new engine is built, the old one serves",
            lambda: reported(edited(serving())),
            WORK,
        ),
        (
            "the pods of a new engine start, the old ones serve",
            lambda: reported(edited(serving()).cached()),
            WORK,
        ),
        (
            "a new engine failed, the old one serves",
            lambda: reported(
                edited(serving()).tried(
                    AttemptState.FAILED,
                    reason=BuildReason.MODEL_NOT_FOUND,
                    message="its last words",
                    verdict=Verdict.FINAL,
                )
            ),
            STUCK,
        ),
        (
            "a new image waits for its turn",
            lambda: reported(serving().but(runtime=Found(make_runtime(image="v2")))),
            WORK,
        ),
        (
            "scaled to zero",
            lambda: reported(World(serving={"replicas": 0}).cached().serving(ready=0, replicas=0)),
            DONE,
        ),
        # Pods.
        (
            "no node takes a pod",
            lambda: reported(
                pod_that(
                    World().cached(),
                    conditions=[{"type": "PodScheduled", "status": "False", "message": "no GPU"}],
                )
            ),
            WORK,
        ),
        (
            "an image cannot be pulled",
            lambda: reported(pod_that(World().cached(), **stuck("ImagePullBackOff"))),
            WORK,
        ),
        (
            "a pod lacks a Secret",
            lambda: reported(pod_that(World().cached(), **stuck("CreateContainerConfigError"))),
            STUCK,
        ),
        (
            "a pod cannot fetch its engine",
            lambda: reported(pod_that(World().cached(), **ended("fetch", "initContainerStatuses"))),
            STUCK,
        ),
        (
            "a server ends again and again",
            lambda: reported(pod_that(World().cached(), **ended("server"))),
            WORK,
        ),
        (
            "pods do not get ready in time",
            lambda: reported(
                with_deployment_status(
                    serving(),
                    conditions=[{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}],
                )
            ),
            STUCK,
        ),
        (
            "pods that served crash",
            lambda: reported(down(599, **ended("server"))),
            WORK,
        ),
        (
            "pods that served crash for longer than a rollout may take",
            lambda: reported(down(601, **ended("server"))),
            STUCK,
        ),
        ("pods that served are not ready for as long", lambda: reported(down(601)), STUCK),
        (
            "a quota refuses the pods",
            lambda: reported(
                with_deployment_status(
                    serving(),
                    conditions=[
                        {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
                    ],
                ).but(pods=())
            ),
            STUCK,
        ),
        (
            "a policy refuses the pods",
            lambda: reported(
                with_deployment_status(
                    serving(),
                    conditions=[{"type": "ReplicaFailure", "status": "True", "message": "denied"}],
                ).but(pods=())
            ),
            STUCK,
        ),
        # What the spec asks for.
        ("the runtime is missing", lambda: reported(World().but(runtime=NotFound())), STUCK),
        (
            "the runtime is missing, and the engine serves",
            lambda: reported(serving().but(runtime=NotFound())),
            STUCK,
        ),
        (
            "the backend cannot do it",
            lambda: reported(World(engine={"dtype": "float16"})),
            STUCK,
        ),
        ("no node of the architecture", lambda: reported(World(architectures=["arm64"])), WORK),
        ("no node at all", lambda: reported(World().but(nodes=())), WORK),
        (
            "the model's claim is missing",
            lambda: reported(
                World(model={"uri": "pvc://weights/llama", "revision": "v1"}).but(claim=NotFound())
            ),
            STUCK,
        ),
        (
            "the model's bucket is unknown",
            bucket_unknown,
            STUCK,
        ),
        (
            "selectors contradict each other",
            lambda: reported(
                World(serving={"nodeSelector": {"disk": "hdd"}}).but(
                    runtime=Found(make_runtime(podDefaults={"nodeSelector": {"disk": "ssd"}}))
                )
            ),
            STUCK,
        ),
        (
            "autoscaled without a CPU request",
            lambda: reported(World(serving={"autoscaling": {"maxReplicas": 5}})),
            STUCK,
        ),
        ("a name is taken", lambda: reported(in_the_way(labels={})), STUCK),
        ("a deleted engine of the name is not gone", lambda: reported(left_behind()), WORK),
        ("the API server refuses an object", apply_refused, STUCK),
        # GPUs.
        (
            "a kind of GPU has just been seen",
            lambda: reported(Gpus().on(gpu_node("h", H100, created=NOW))),
            WORK,
        ),
        (
            "one kind of GPU serves, another is built first",
            lambda: reported(waiting_for_another()),
            WORK,
        ),
        (
            "a GPU has no labels",
            lambda: reported(Gpus().on(gpu_node("h", H100, labels={PRODUCT: ""}))),
            WORK,
        ),
        (
            "a GPU is divided",
            lambda: reported(Gpus(architectures=[f"{H}-MIG-1g.10gb"])),
            WORK,
        ),
        (
            "a driver is too old",
            lambda: reported(required(runtime={"minimumDriver": "560"})),
            WORK,
        ),
        (
            "a host's CPU is another",
            lambda: reported(
                required("sm_90", arch="arm64", engine={"portability": "ComputeCapability"})
            ),
            WORK,
        ),
        (
            "more than one GPU is asked for",
            lambda: reported(Gpus(H, serving={"resources": {"limits": {"nvidia.com/gpu": 2}}})),
            STUCK,
        ),
        # Queues and full clusters.
        (
            "a queue has not admitted a pod",
            lambda: reported(
                pod_that(
                    World().cached(),
                    conditions=[
                        {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
                    ],
                )
            ),
            WORK,
        ),
        (
            "old pods make room",
            lambda: reported(
                World(serving={"rollout": {"strategy": "Replace"}}).cached().serving(ready=0)
            ),
            WORK,
        ),
        # Suspended.
        ("suspended before it was built", lambda: reported(World(suspend=True)), PAUSED),
        (
            "suspended, and serves as asked",
            lambda: reported(serving().with_spec(suspend=True)),
            DONE,
        ),
        (
            "suspended, and edited since it served",
            lambda: reported(serving().with_spec(suspend=True, **EDITED)),
            PAUSED,
        ),
        (
            "one of two architectures is built",
            lambda: reported(
                World().cached().serving().but(nodes=(make_node(), make_node("n2", "arm64")))
            ),
            WORK,
        ),
    )
)
