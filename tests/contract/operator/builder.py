"""Plays the builder: does what a build Job was told to do, as far as anybody outside can see."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from llmengine.artifact import (
    BuildProgress,
    Cache,
    Device,
    File,
    Footprint,
    Limits,
    Manifest,
    ModelFile,
    Verification,
    digest_of,
)
from llmengine.requests import BUILD_REQUEST_VARIABLE, BuildFailure, BuildRequest
from llmengine.store import Store
from llmengine_operator.kinds import POD
from tests.cluster import fake_nodes
from tests.contract.operator.stage import Stage

MIB = 1 << 20


def request_of(job: dict[str, Any]) -> BuildRequest:
    """What the Job's container is told."""
    env = job["spec"]["template"]["spec"]["containers"][0]["env"]
    text = next(entry["value"] for entry in env if entry["name"] == BUILD_REQUEST_VARIABLE)
    return BuildRequest.model_validate_json(text)


def make_manifest(
    request: BuildRequest, warnings: tuple[str, ...] = (), gpu_memory: int = 0
) -> Manifest:
    """The manifest of an engine of 10 MiB, whose bytes nobody fetches here."""
    return Manifest(
        key=request.key,
        factors=request.factors,
        created=datetime.now(UTC).isoformat(),
        builder_version="0.1.0",
        model_type="llama",
        vocabulary=64,
        limits=Limits(
            max_batch_size=request.max_batch_size,
            max_sequence_length=request.max_sequence_length,
            max_batch_tokens=request.max_batch_tokens,
        ),
        cache=Cache(
            layout="plain", dtype="float32", layers=1, kv_heads=1, head_dim=8, buckets=(64,)
        ),
        device=Device(name=request.architecture),
        footprint=Footprint(serving_device_bytes=gpu_memory),
        seconds={"Compile": 41.7, "Verify": 0.4},
        warnings=warnings,
        verification=Verification(tokens=8, mean_relative_error=1e-7, max_logit_gap=0.0),
        model_files=(ModelFile(path="config.json", digest=digest_of(b"{}"), size=2),),
        files=(File(path="weights", digest=digest_of(b""), size=10 * MIB, chunks=("0" * 64,)),),
    )


@dataclass(frozen=True)
class Builder:
    """The builder of every Job of a stage."""

    stage: Stage

    @property
    def store(self) -> Store:
        place = self.stage.place
        return Store(place.location, place.credentials)

    def publish(
        self, job: dict[str, Any], warnings: tuple[str, ...] = (), gpu_memory: int = 0
    ) -> str:
        """The engine is in the store from now on; the Job still runs. Returns its digest."""
        request = request_of(job)
        manifest = make_manifest(request, warnings, gpu_memory)
        return self.store.publish_manifest(manifest, request.scope).digest

    def progress(self, job: dict[str, Any], phase: str, percent: int) -> None:
        request = request_of(job)
        said = BuildProgress(
            key=request.key,
            phase=phase,
            percent=percent,
            heartbeat=datetime.now(UTC).isoformat(),
            job=request.job,
        )
        self.store.put_progress(said, request.scope)

    def finish(
        self, job: dict[str, Any], warnings: tuple[str, ...] = (), gpu_memory: int = 0
    ) -> str:
        """Publish, and end well. Returns the manifest's digest."""
        digest = self.publish(job, warnings, gpu_memory)
        self.end(job)
        return digest

    def fail(self, job: dict[str, Any], code: int, reason: str, message: str) -> None:
        """End with last words."""
        words = BuildFailure(reason=reason, message=message).model_dump_json()
        self.end(job, code, message=words)

    def end(
        self, job: dict[str, Any], code: int = 0, *, reason: str = "", message: str = ""
    ) -> None:
        pod = self.pod(job)
        meta = pod["metadata"]
        fake_nodes.end_pod(
            self.stage.api,
            meta["namespace"],
            meta["name"],
            exit_code=code,
            reason=reason,
            message=message,
        )

    # What a node says, where it is not the builder that ends its pod.

    def stuck(self, job: dict[str, Any], reason: str, message: str) -> None:
        """The container waits for something that the node cannot give it."""
        waiting = {"waiting": {"reason": reason, "message": message}}
        self._say(self.pod(job), "Pending", waiting)

    def unstuck(self, job: dict[str, Any]) -> None:
        started = {"running": {"startedAt": _now()}}
        self._say(self.pod(job), "Running", started)

    def killed(self, job: dict[str, Any], *, reason: str = "", container: str = "Error") -> None:
        """The pod failed, by a reason of its own or of its container."""
        self._say(self.pod(job), "Failed", _terminated(137, container), reason=reason)

    def drained(self, job: dict[str, Any]) -> None:
        """Somebody evicts the pod, as `kubectl drain` does, and its container ends."""
        pod = self.pod(job)
        meta = {"name": pod["metadata"]["name"]}
        path = POD.path(pod["metadata"]["namespace"], meta["name"], "eviction")
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta}
        self.stage.api.request("POST", path, eviction)
        self._say(pod, "Failed", _terminated(143, "Error"))

    def pod(self, job: dict[str, Any]) -> dict[str, Any]:
        """The Job's pod, once it runs; of several the newest."""
        meta = job["metadata"]
        labels = f"batch.kubernetes.io/job-name={meta['name']}"

        def seen() -> dict[str, Any] | None:
            pods = self.stage.items(POD, meta["namespace"], labels)
            started = [p for p in pods if p["status"].get("containerStatuses")]
            order = sorted(started, key=lambda p: str(p["metadata"]["creationTimestamp"]))
            return order[-1] if order else None

        return dict(self.stage.until(f"a pod of Job {meta['name']}", seen))

    def _say(
        self, pod: dict[str, Any], phase: str, state: dict[str, Any], *, reason: str = ""
    ) -> None:
        meta = pod["metadata"]
        (container,) = pod["status"]["containerStatuses"]
        said = {**container, "ready": False, "started": False, "state": state}
        status: dict[str, Any] = {"phase": phase, "containerStatuses": [said]}
        if reason:
            status |= {"reason": reason, "message": f"the node says {reason}"}
        path = POD.path(meta["namespace"], meta["name"], "status")
        self.stage.api.merge(path, {"status": status})


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _terminated(code: int, reason: str) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "finishedAt": _now()}}
