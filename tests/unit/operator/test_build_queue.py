"""Which Jobs are made and deleted, when several engines want builds."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from llmengine_operator.attempts import read_attempt
from llmengine_operator.build_queue import WAITING_POLL, BuildQueue
from llmengine_operator.config import BuildsConfig
from llmengine_operator.decision import UNKNOWN_OPTIONS
from llmengine_operator.kinds import JOB, POD
from llmengine_operator.observation import Found
from llmengine_operator.plan import decide
from tests.unit.operator.job_kube import JobKube
from tests.unit.operator.world import CONFIG, NOW, World, make_runtime, seconds

SIDE_BY_SIDE = BuildsConfig(max_concurrent_per_architecture=4)
PRIVATE = {"uri": "s3://models/smollm2", "revision": "v1", "secretName": "mine"}


@pytest.fixture
def kube() -> JobKube:
    return JobKube()


@pytest.fixture
def queue(kube: JobKube) -> BuildQueue:
    return BuildQueue(kube, CONFIG)


def tell(queue: BuildQueue, world: World) -> bool:
    return queue.tell(world.observation.engine, world.decide())


def wants(name: str, namespace: str = "team", **spec: Any) -> World:
    return World(name=name, namespace=namespace, **spec)


def started(world: World, kube: JobKube) -> World:
    """The world once its engine has seen the Job: it wishes for nothing more."""
    attempts = [read_attempt(job, (), (), NOW) for job in kube.jobs]
    return world.but(attempts=tuple(a for a in attempts if a.key == world.target.key))


def blocked_pod(kube: JobKube, reason: str) -> None:
    job = kube.jobs[0]
    waiting = {"waiting": {"reason": reason, "message": "no"}}
    kube.put(
        POD,
        {
            "metadata": {
                "name": "pod",
                "namespace": job["metadata"]["namespace"],
                "creationTimestamp": NOW.isoformat(),
                "labels": job["spec"]["template"]["metadata"]["labels"],
                "ownerReferences": [{"uid": job["metadata"]["uid"]}],
            },
            "status": {"containerStatuses": [{"name": "build", "state": waiting}]},
        },
    )


def test_what_two_engines_want_is_built_once(kube: JobKube, queue: BuildQueue) -> None:
    for namespace in ("a", "b"):
        tell(queue, wants("chat", namespace))
    queue.run(NOW)
    assert len(kube.jobs) == 1
    queue.forget(("a", "chat"))
    queue.run(NOW)
    assert len(kube.jobs) == 1
    queue.forget(("b", "chat"))
    queue.run(NOW)
    assert kube.jobs == []


def test_of_engines_that_want_one_key_the_first_by_name_gets_its_job(
    kube: JobKube, queue: BuildQueue
) -> None:
    for namespace in ("b", "a"):
        tell(queue, wants("chat", namespace))
    queue.run(NOW)
    (job,) = kube.jobs
    assert job["metadata"]["annotations"]["llmengine.io/requested-by"] == "a/chat"


def test_the_same_wish_again_is_no_news(queue: BuildQueue) -> None:
    world = wants("chat")
    assert tell(queue, world)
    assert not queue.tell(world.observation.engine, world.decide(NOW + seconds(5)))


def test_an_engine_that_wants_nothing_is_news_once(queue: BuildQueue) -> None:
    world = wants("chat").but(nodes=())
    assert tell(queue, world)
    assert not tell(queue, world)


def test_no_job_is_deleted_before_every_engine_was_heard(kube: JobKube) -> None:
    before = BuildQueue(kube, CONFIG)
    tell(before, wants("chat"))
    before.run(NOW)
    after = BuildQueue(kube, CONFIG)
    after.expect([("team", "chat"), ("team", "late")])
    tell(after, wants("late", engine={"maxBatchSize": 4}))
    after.run(NOW)
    assert len(kube.jobs) == 1
    after.forget(("team", "chat"))
    after.run(NOW)
    assert len(kube.jobs) == 1
    assert kube.jobs[0]["metadata"]["annotations"]["llmengine.io/requested-by"] == "team/late"


@pytest.mark.parametrize("tell_unreadable", [True, False])
def test_an_engine_that_nobody_can_read_keeps_its_build_and_nobody_elses(
    kube: JobKube, queue: BuildQueue, tell_unreadable: bool
) -> None:
    mine, other = wants("chat"), wants("other", engine={"maxBatchSize": 4})
    tell(queue, mine)
    queue.run(NOW)
    tell(queue, other)
    queue.run(NOW + seconds(1))
    if tell_unreadable:
        queue.tell_unreadable(mine.observation.engine.id, {mine.target.key: UNKNOWN_OPTIONS})
    queue.forget(other.observation.engine.id)
    queue.run(NOW + seconds(2))
    assert [j["metadata"]["annotations"]["llmengine.io/requested-by"] for j in kube.jobs] == [
        "team/chat"
    ]


def test_an_engine_that_comes_later_owns_the_running_job_of_its_namespace(
    kube: JobKube, queue: BuildQueue
) -> None:
    tell(queue, wants("chat", model=PRIVATE))
    queue.run(NOW)
    later = started(wants("again", model=PRIVATE), kube)
    assert later.decide().wishes == ()
    tell(queue, later)
    queue.run(NOW)
    owners = kube.jobs[0]["metadata"]["ownerReferences"]
    assert [owner["name"] for owner in owners] == ["chat", "again"]
    assert kube.managers == ["llmengine-uid-team-again"]
    queue.run(NOW)
    assert len(kube.managers) == 1


def test_nobody_owns_the_job_of_the_whole_cluster(kube: JobKube, queue: BuildQueue) -> None:
    for name in ("chat", "again"):
        tell(queue, wants(name, CONFIG.builds.namespace))
    queue.run(NOW)
    queue.run(NOW)
    assert "ownerReferences" not in kube.jobs[0]["metadata"]


def test_a_job_that_may_not_be_shared_hinders_no_other(kube: JobKube) -> None:
    queue = BuildQueue(kube, CONFIG.model_copy(update={"builds": SIDE_BY_SIDE}))
    tell(queue, wants("chat", model=PRIVATE))
    queue.run(NOW)
    kube.refuses.add("patch")
    tell(queue, wants("again", model=PRIVATE))
    tell(queue, wants("public"))
    queue.run(NOW)
    assert len(kube.jobs) == 2


def test_a_job_that_may_not_be_deleted_hinders_no_other(kube: JobKube, queue: BuildQueue) -> None:
    tell(queue, wants("chat"))
    queue.run(NOW)
    kube.end(kube.jobs[0], "Failed")
    queue.forget(("team", "chat"))
    kube.refuses.add("delete")
    tell(queue, wants("other", engine={"maxBatchSize": 4}))
    queue.run(NOW)
    assert len(kube.jobs) == 2


def test_a_refused_job_is_tried_again_soon_and_its_engine_says_why(
    kube: JobKube, queue: BuildQueue
) -> None:
    world = wants("chat")
    tell(queue, world)
    kube.refuses.add("create")
    outcome = queue.run(NOW)
    assert outcome.engines == {("team", "chat")}
    assert outcome.next_due == WAITING_POLL.total_seconds()
    assert "not allowed here" in queue.waiting()[world.target.key]
    kube.refuses.clear()
    outcome = queue.run(NOW)
    assert len(kube.jobs) == 1
    assert outcome.next_due is None
    assert queue.waiting() == {}


def test_a_job_that_its_engine_has_yet_to_see_takes_nobodys_turn(
    kube: JobKube, queue: BuildQueue
) -> None:
    tell(queue, wants("chat"))
    queue.run(NOW)
    kube.end(kube.jobs[0], "Failed")
    tell(queue, wants("other", engine={"maxBatchSize": 4}))
    queue.run(NOW)
    assert len(kube.jobs) == 2


def test_a_job_of_somebody_elses_in_the_way_is_named(kube: JobKube, queue: BuildQueue) -> None:
    world = wants("chat")
    name = f"build-{world.target.key[:20]}-1"
    kube.put(JOB, {"metadata": {"name": name, "namespace": "llmengine-builds"}})
    tell(queue, world)
    queue.run(NOW)
    assert f"llmengine-builds/{name} exists" in queue.waiting()[world.target.key]


def test_a_build_that_waits_for_its_turn_is_looked_at_again(
    kube: JobKube, queue: BuildQueue
) -> None:
    tell(queue, wants("chat"))
    tell(queue, wants("other", engine={"maxBatchSize": 4}))
    assert queue.run(NOW).next_due == WAITING_POLL.total_seconds()
    (reason,) = queue.waiting().values()
    assert "amd64" in reason


def test_a_wish_for_later_wakes_the_queue_when_it_is_due(kube: JobKube, queue: BuildQueue) -> None:
    world = wants("chat")
    decision = world.decide()
    later = replace(decision.wishes[0], not_before=NOW + timedelta(minutes=2))
    queue.tell(world.observation.engine, replace(decision, wishes=(later,)))
    assert queue.run(NOW).next_due == 120
    assert kube.jobs == []
    queue.run(NOW + timedelta(minutes=2))
    assert len(kube.jobs) == 1


@pytest.mark.parametrize(
    "mended",
    [
        pytest.param({"build": {"nodeSelector": {"pool": "big"}}}, id="build options"),
        pytest.param({"image": "v2"}, id="the runtime's image"),
    ],
)
def test_a_job_that_cannot_start_is_replaced_when_what_it_was_made_with_is_mended(
    kube: JobKube, queue: BuildQueue, mended: dict[str, Any]
) -> None:
    tell(queue, wants("chat"))
    queue.run(NOW)
    blocked_pod(kube, "ImagePullBackOff")
    queue.run(NOW)
    assert len(kube.jobs) == 1
    world = wants("chat", **{k: v for k, v in mended.items() if k != "image"})
    if "image" in mended:
        world.but(runtime=Found(make_runtime(image=mended["image"])))
    tell(queue, started(world, kube))
    queue.run(NOW)
    assert kube.jobs == []


def test_a_job_that_runs_is_not_replaced_because_options_were_edited(
    kube: JobKube, queue: BuildQueue
) -> None:
    tell(queue, wants("chat"))
    queue.run(NOW)
    tell(queue, started(wants("chat", build={"attempts": 5}), kube))
    queue.run(NOW)
    assert len(kube.jobs) == 1


def test_a_job_that_runs_is_not_replaced_because_the_operators_default_class_is_another(
    kube: JobKube,
) -> None:
    before, after = (
        CONFIG.model_copy(
            update={"builds": CONFIG.builds.model_copy(update={"priority_class_name": name})}
        )
        for name in ("", "low")
    )
    for config in (before, after):
        world = wants("chat")
        queue = BuildQueue(kube, config)
        seen = started(world, kube)
        queue.tell(seen.observation.engine, decide(seen.observation, config, NOW))
        queue.run(NOW)
    (made,) = kube.jobs
    assert "priorityClassName" not in made["spec"]["template"]["spec"]


def test_a_blocked_job_that_another_engine_still_wants_so_is_kept(
    kube: JobKube, queue: BuildQueue
) -> None:
    tell(queue, wants("chat"))
    tell(queue, wants("again"))
    queue.run(NOW)
    blocked_pod(kube, "ImagePullBackOff")
    tell(queue, started(wants("chat", build={"attempts": 5}), kube))
    tell(queue, started(wants("again"), kube))
    queue.run(NOW)
    assert len(kube.jobs) == 1
