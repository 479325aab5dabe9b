"""As much of TensorRT's module as the compiler calls; a plan tells what it was asked for, as JSON.

FAKE_TENSORRT says how it fails: `abort`, `kill`, `hang`, `no builder: WORDS`, `parse: WORDS`,
`error: WORDS`, or `pad: BYTES` for a plan with so many bytes more.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__version__ = "10.6.0"
_HOW, _, _WORDS = os.environ.get("FAKE_TENSORRT", "").partition(": ")
_load = ctypes.CDLL


def _load_fake(name: str | None, *arguments: Any, **options: Any) -> Any:
    if name == "libnvinfer.so.10":
        return SimpleNamespace(getInferLibVersion=lambda: 100600)
    return _load(name, *arguments, **options)


ctypes.CDLL = _load_fake  # type: ignore[assignment,misc]


class _Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = _Severity


class IProgressMonitor: ...


class IPluginV3: ...


class IPluginV3OneCore: ...


class IPluginV3OneBuild: ...


class IPluginV3OneRuntime: ...


class IPluginCreatorV3One: ...


float32, float16, bfloat16, int32, int64 = range(5)
PluginFieldType = SimpleNamespace(INT32=3)
PluginFieldCollection = list


def PluginField(name: str, data: Any, kind: int) -> SimpleNamespace:
    return SimpleNamespace(name=name, data=data, type=kind)


_plugins: list[str] = []


class _Registry:
    def register_creator(self, creator: Any, namespace: str) -> bool:
        assert creator.plugin_namespace == namespace
        _plugins.append(f"{namespace}/{creator.name}/{creator.plugin_version}")
        return True


def get_plugin_registry() -> _Registry:
    return _Registry()


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class HardwareCompatibilityLevel(IntEnum):
    NONE = 0
    SAME_COMPUTE_CAPABILITY = 2


class BuilderFlag(IntEnum):
    TF32 = 7


class OnnxParser:
    num_errors = 1

    def __init__(self, network: dict[str, Any], logger: Any) -> None:
        self._network = network

    def parse(self, graph: bytes, path: str) -> bool:
        self._network["graph"] = len(graph)
        self._network["weights"] = sorted(p.name for p in Path(path).parent.iterdir())
        return _HOW != "parse"

    def get_error(self, index: int) -> str:
        return _WORDS


class _Timing:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> bytes:
        return self._data + b"+"


class _Config:
    progress_monitor: Any = None
    hardware_compatibility_level = HardwareCompatibilityLevel.NONE

    def __init__(self) -> None:
        self.profiles: list[dict[str, Any]] = []
        self.off: list[str] = []

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.off.append(flag.name)

    def add_optimization_profile(self, profile: _Profile) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> _Timing:
        return _Timing(data)

    def set_timing_cache(self, timing: _Timing, ignore_mismatch: bool) -> bool:
        return not timing.serialize().startswith(b"another")


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *shapes: Any) -> None:
        self.shapes[name] = shapes


class Builder:
    def __init__(self, logger: Any) -> None:
        self._logger = logger
        if _HOW == "no builder":
            logger.log(_Severity.ERROR, _WORDS)
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int) -> dict[str, Any]:
        assert flags == 2, "not strongly typed"
        return {}

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: dict[str, Any], config: _Config) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        if not monitor.step_complete("Building", 0):
            return None
        if _HOW == "abort":
            os.write(2, b"terminate called without an active exception\n")
            os.abort()
        if _HOW == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if _HOW == "hang":
            time.sleep(600)
        if _HOW == "error":
            self._logger.log(_Severity.ERROR, _WORDS)
            return None
        monitor.step_complete("Building", 1)
        monitor.phase_finish("Building")
        self._logger.log(_Severity.WARNING, "this is a warning")
        asked = {"profiles": config.profiles, "off": config.off, "plugins": _plugins}
        asked["compatible"] = config.hardware_compatibility_level.name
        told = json.dumps({**network, **asked}).encode()
        return told + b" " * int(_WORDS or 0)
