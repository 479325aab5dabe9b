"""Reasons of conditions, rows and events: one word for one situation, everywhere the same."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    # Serving
    SERVING = "Serving"
    SCALED_TO_ZERO = "ScaledToZero"
    ROLLING_OUT = "RollingOut"
    MAKING_ROOM = "MakingRoom"
    WAITING_FOR_ROLLOUT = "WaitingForRollout"
    WAITING_FOR_ENGINES = "WaitingForEngines"
    SUSPENDED = "Suspended"
    NO_POD_READY = "NoPodReady"
    # Pods
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONTAINER_CONFIG_INVALID = "ContainerConfigInvalid"
    UNSCHEDULABLE = "Unschedulable"
    WAITING_FOR_QUOTA = "WaitingForQuota"
    FETCH_FAILED = "FetchFailed"
    CRASH_LOOPING = "CrashLooping"
    PODS_NOT_READY = "PodsNotReady"
    ROLLOUT_FAILED = "RolloutFailed"
    PODS_REFUSED = "PodsRefused"
    # What the spec asks for
    SPEC_INVALID = "SpecInvalid"
    RUNTIME_NOT_FOUND = "RuntimeNotFound"
    UNSUPPORTED = "Unsupported"
    NO_NODE = "NoNode"
    ARCHITECTURE_SETTLING = "ArchitectureSettling"
    GPU_UNLABELLED = "GPUUnlabelled"
    MIG_UNSUPPORTED = "MIGUnsupported"
    DRIVER_TOO_OLD = "DriverTooOld"
    GPU_TOO_SMALL = "GpuTooSmall"
    HOST_UNSUPPORTED = "HostUnsupported"
    GPU_COUNT_UNSUPPORTED = "GPUCountUnsupported"
    CLAIM_NOT_FOUND = "ClaimNotFound"
    MODEL_ENDPOINT_UNKNOWN = "ModelEndpointUnknown"
    NAME_TAKEN = "NameTaken"
    SELECTOR_CONFLICT = "SelectorConflict"
    CPU_REQUEST_MISSING = "CPURequestMissing"
    APPLY_REFUSED = "ApplyRefused"
    # Store
    STORE_UNSAFE = "StoreUnsafe"
    # Builds
    CACHED = "Cached"
    BUILD_QUEUED = "BuildQueued"
    BUILD_PENDING = "BuildPending"
    BUILDING = "Building"
    BUILD_RETRYING = "BuildRetrying"
    BUILD_FAILED = "BuildFailed"
    BUILD_OUT_OF_MEMORY = "BuildOutOfMemory"
    BUILD_DEADLINE_EXCEEDED = "BuildDeadlineExceeded"
    BUILD_EVICTED = "BuildEvicted"
    BUILD_LOST = "BuildLost"
    PUBLISHING = "Publishing"
    QUOTA_EXCEEDED = "QuotaExceeded"
