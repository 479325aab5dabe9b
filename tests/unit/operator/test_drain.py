"""How long a pod may take to end follows from the engine, and moves no pod afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmengine.artifact import DecodeStep, Limits, Manifest, Speed
from llmengine_operator import drain
from llmengine_operator.decision import ApplyDeployment
from llmengine_operator.observation import Found
from tests.unit.operator.world import World, make_runtime, make_stored

# 4096 tokens, 8 slots: see make_stored.
FAST = Speed(slots=8, steps=(DecodeStep(length=128, seconds=0.01),))
SLOW = Speed(slots=8, steps=(DecodeStep(length=128, seconds=0.02),))


def manifest(speed: Speed | None, **limits: int) -> Manifest:
    world = World()
    made = make_stored(world.target.key, world.target.factors, speed).manifest
    default = {"max_batch_size": 8, "max_sequence_length": 4096, "max_batch_tokens": 512}
    return made.model_copy(update={"limits": Limits.model_validate({**default, **limits})})


def measured(*steps: tuple[int, float], slots: int = 8) -> Speed:
    return Speed(slots=slots, steps=tuple(DecodeStep(length=n, seconds=s) for n, s in steps))


@pytest.mark.parametrize(
    ("speed", "limits", "seconds"),
    [
        # 5 + 2 * 4096 * 0.01 + 6
        pytest.param(measured((128, 0.01)), {}, 93, id="by the one length that was measured"),
        # At 4096 a step takes 0.01 + 0.001 * (4096 - 128) / 128 = 0.041, on average 0.0255.
        pytest.param(measured((128, 0.01), (256, 0.011)), {}, 220, id="longer as the cache grows"),
        pytest.param(measured((128, 0.01), (256, 0.009)), {}, 93, id="a longer cache is no faster"),
        pytest.param(measured((128, 0.01), slots=2), {}, 339, id="slots that were not measured"),
        pytest.param(
            measured((128, 0.01)), {"max_batch_size": 2}, 93, id="fewer slots than were measured"
        ),
        pytest.param(
            measured((16, 0.01)), {"max_sequence_length": 16}, 30, id="Kubernetes' own at least"
        ),
        pytest.param(
            measured((128, 1.0)), {"max_sequence_length": 1_000_000}, 86400, id="a day at most"
        ),
        pytest.param(None, {}, None, id="nothing was measured"),
    ],
)
def test_a_pod_gets_as_long_as_the_longest_generation_may_take(
    speed: Speed | None, limits: dict[str, int], seconds: int | None
) -> None:
    assert drain.grace_seconds(manifest(speed, **limits)) == seconds


def template(world: World) -> dict[str, Any]:
    """Of the Deployment as it ought to be now."""
    (found,) = [a.object for a in world.decide().actions if isinstance(a, ApplyDeployment)]
    return dict(found["spec"]["template"]["spec"])


def grace(world: World) -> int:
    return int(template(world)["terminationGracePeriodSeconds"])


def exit_timeout(world: World) -> str:
    (server,) = template(world)["containers"]
    return str(next(e["value"] for e in server["env"] if e["name"] == "LLMENGINE_EXIT_TIMEOUT"))


def test_the_grace_period_is_that_of_the_engine_and_the_server_knows_it() -> None:
    world = World().cached(FAST)
    assert grace(world) == 93
    assert exit_timeout(world) == str(93 - 5 - 1)
    row = world.serving().observation.engine.status.serving[0]
    assert row.termination_grace_period_seconds == 93


def test_an_engine_that_nobody_measured_has_the_default() -> None:
    assert grace(World().cached()) == 60


@pytest.mark.parametrize("speed", [FAST, None])
def test_the_users_word_wins(speed: Speed | None) -> None:
    world = World(serving={"terminationGracePeriodSeconds": 20}).cached(speed)
    assert (grace(world), exit_timeout(world)) == (20, "14")


def test_a_user_who_takes_it_back_gets_what_was_derived_for_the_engine() -> None:
    world = World(serving={"terminationGracePeriodSeconds": 20}).cached(FAST).serving()
    assert grace(world.with_spec()) == 93


def test_pods_do_not_roll_because_a_later_release_reckons_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World().cached(FAST).serving()
    before = template(world)
    monkeypatch.setattr(drain, "SAFETY", 3)
    assert template(world) == before
    assert grace(World().cached(FAST)) == 134, "an engine that begins to serve"


def test_pods_of_an_earlier_release_do_not_roll_either() -> None:
    world = World().cached(FAST).serving()
    status = world.observation.engine.status
    rows = [
        row.model_copy(update={"termination_grace_period_seconds": None}) for row in status.serving
    ]
    world.with_engine(status=status.model_copy(update={"serving": rows}))
    assert grace(world) == 60
    image = replace(world.observation, runtime=Found(make_runtime("v2")), may_roll_image=True)
    world.observation = image
    assert grace(world) == 93, "the new image rolls them anyway"


def test_another_engine_brings_its_own() -> None:
    world = World().cached(FAST).serving()
    world.with_spec(model={"uri": "s3://models/smollm2", "revision": "v2"})
    assert grace(world) == 93, "while the other one is built"
    assert grace(world.cached(SLOW)) == 175
