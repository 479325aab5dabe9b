"""How long a pod may take to end: as long as the longest generation that it may be running. Pure.

Derived once for an engine and kept with it in the status: pods must not roll because a later
release reckons otherwise. What queues is not counted, for that would be five times as long: the
server finishes of it what the time allows, and refuses the rest (`llmengine_server.scheduler`).
"""

from __future__ import annotations

import math

from llmengine.artifact import Manifest

# Endpoints learn of a pod's end later than the pod: it keeps serving new requests until then.
PRE_STOP_SECONDS = 5
# After the last generation: one in which clients are told that they are cut off, up to 4 of
# Triton's exit (both `llmengine_server.serve`), and one to spare before the kubelet kills the rest.
EXIT_SECONDS = 6
# A node that serves is busier than one that has just built, and prompts that were begun are
# computed between the steps.
SAFETY = 2
# Of an engine whose speed nobody measured.
DEFAULT_SECONDS = 60
# Kubernetes' own default, and the most that spec.serving.terminationGracePeriodSeconds may be.
SHORTEST, LONGEST = 30, 86400


def grace_seconds(manifest: Manifest) -> int | None:
    """Whole seconds from a pod's notice to its end; None where no speed was measured."""
    generation = longest_generation_seconds(manifest)
    if generation is None:
        return None
    seconds = PRE_STOP_SECONDS + math.ceil(SAFETY * generation) + EXIT_SECONDS
    return min(max(seconds, SHORTEST), LONGEST)


def longest_generation_seconds(manifest: Manifest) -> float | None:
    """A sequence that grows from nothing to the engine's limit, beside others in all its slots.

    A step takes a + b * (length of the cache) seconds, by the shortest and the longest length that
    were measured; the mean over the sequence is that of both its ends. Slots that were not
    measured are taken to cost what those did that were, which is more than they do.
    """
    speed, limits = manifest.speed, manifest.limits
    if speed is None:
        return None
    first, last = speed.steps[0], speed.steps[-1]
    longest = limits.max_sequence_length
    at_end = first.seconds
    if last.length > first.length:
        # A longer cache is never faster: where it seems so, that was noise.
        slope = max(last.seconds - first.seconds, 0.0) / (last.length - first.length)
        at_end += slope * max(longest - first.length, 0)
    slots = max(limits.max_batch_size / speed.slots, 1.0)
    return longest * slots * (first.seconds + at_end) / 2
