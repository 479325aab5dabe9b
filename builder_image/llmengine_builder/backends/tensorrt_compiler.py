"""The process that compiles: TensorRT may abort the process that it runs in, so this is its own.

It reads one order from its standard input and says what it does on its standard output, a JSON
object a line. It ends with its parent, whatever it is doing, so that the GPU is free then.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmengine_builder.backends.tensorrt_shapes import Profile, Range
from llmengine_server.session import EngineError
from llmengine_server.session.device import WrongDeviceError, used_memory
from llmengine_server.session.tensorrt_attention import register_attention
from llmengine_server.session.tensorrt_library import load_tensorrt, make_logger

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 0.1
_REMEMBERED = 12
# Of its names for severities.
_ERRORS = ("INTERNAL_ERROR", "ERROR")


@dataclass(frozen=True)
class Order:
    """What to compile. Paths are those of files; `timing` may be empty, and is replaced.

    `portable`: for all GPUs of this one's compute capability, which not every TensorRT can.
    """

    graph: str
    weights: str
    plan: str
    timing: str
    profiles: tuple[Profile, ...]
    portable: bool = False

    def serialize(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def parse(cls, data: bytes) -> Order:
        fields = json.loads(data)
        profiles = tuple(
            {name: _range(shapes) for name, shapes in profile.items()}
            for profile in fields.pop("profiles")
        )
        return cls(**fields, profiles=profiles)


@dataclass(frozen=True)
class Result:
    """What a build took: bytes and seconds."""

    host_bytes: int
    device_bytes: int
    parse_seconds: float
    build_seconds: float


class Percent:
    """How far a build is, by its phases, which lie within one another. Never goes back.

    `say`: called with a percentage below 100 when it has changed.
    """

    def __init__(self, say: Callable[[int], None]) -> None:
        self._say = say
        self._phases: dict[str, list[int]] = {}
        self._parents: dict[str, str | None] = {}
        self._told = 0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        self._phases[phase] = [0, max(steps, 1)]
        self._parents[phase] = parent

    def step(self, phase: str) -> None:
        if phase in self._phases:
            self._phases[phase][0] += 1
            self._tell()

    def finish(self, phase: str) -> None:
        self._phases.pop(phase, None)
        self._parents.pop(phase, None)

    def _tell(self) -> None:
        roots = [name for name, parent in self._parents.items() if parent not in self._phases]
        percent = min(99, int(100 * max((self._share(name) for name in roots), default=0)))
        if percent > self._told:
            self._told = percent
            self._say(percent)

    def _share(self, phase: str) -> float:
        done, steps = self._phases[phase]
        parts = [name for name, parent in self._parents.items() if parent == phase]
        within = max((self._share(name) for name in parts), default=0.0)
        return min(1.0, (done + within) / steps)


def main() -> None:
    """Ends with 0 after `{"done": ...}`, and 1 after `{"failed": [...]}`."""
    parent = os.getppid()
    _end_with_parent()
    order = Order.parse(sys.stdin.buffer.read())
    errors: deque[str] = deque(maxlen=_REMEMBERED)

    def log(severity: str, text: str) -> None:
        if severity in _ERRORS:
            errors.append(text)
        _say({"log": text, "severity": severity})

    try:
        result = compile_order(order, log, lambda: os.getppid() == parent)
    except (EngineError, CompilationError, OSError, MemoryError) as error:
        _say({"failed": [*errors, str(error) or type(error).__name__]})
        sys.exit(1)
    _say({"done": asdict(result)})


class CompilationError(Exception):
    """TensorRT gave back nothing; its log says why."""


def compile_order(
    order: Order, log: Callable[[str, str], None], wanted: Callable[[], bool]
) -> Result:
    """Build the plan. `wanted`: asked at each step, whether anybody still waits for it.

    Raises CompilationError, and EngineError where TensorRT cannot be loaded.
    """
    trt = load_tensorrt()
    logger = make_logger(trt, log)
    register_attention()
    with DeviceMemory() as memory:
        began = time.monotonic()
        builder = _builder(trt, logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        graph = Path(order.graph).read_bytes()
        # Weights are looked for beside the path; nothing needs to be there by that name.
        if not parser.parse(graph, str(Path(order.weights) / "graph.onnx")):
            raise CompilationError(
                "failed to parse: "
                + "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            )
        parsed = time.monotonic()
        config, timing = _configure(trt, builder, order, wanted)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise CompilationError("no plan was built")
        with Path(order.plan).open("wb") as file:
            file.write(plan)
        Path(order.timing).write_bytes(bytes(timing.serialize()))
        built = time.monotonic()
        return Result(
            host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            device_bytes=memory.most(),
            parse_seconds=round(parsed - began, 2),
            build_seconds=round(built - parsed, 2),
        )


def _builder(trt: Any, logger: Any) -> Any:
    """Where it cannot have one, TensorRT 10 aborts the process, and 11 raises TypeError."""
    try:
        return trt.Builder(logger)
    except TypeError as error:
        raise CompilationError("TensorRT makes no builder") from error


def _configure(trt: Any, builder: Any, order: Order, wanted: Callable[[], bool]) -> tuple[Any, Any]:
    config = builder.create_builder_config()
    # float32 is asked for by those who want all of its digits.
    config.clear_flag(trt.BuilderFlag.TF32)
    if order.portable:
        level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
        config.hardware_compatibility_level = level
    config.progress_monitor = _monitor(trt, wanted)
    for ranges in order.profiles:
        profile = builder.create_optimization_profile()
        for name, (least, best, most) in ranges.items():
            profile.set_shape(name, least, best, most)
        if config.add_optimization_profile(profile) < 0:
            raise CompilationError(f"TensorRT takes no profile {dict(ranges)['input_ids']}")
    timing = config.create_timing_cache(Path(order.timing).read_bytes())
    if timing is None or not config.set_timing_cache(timing, ignore_mismatch=False):
        # That of another driver, or damaged: it would only have saved time.
        _say({"log": "earlier timings do not fit, all are measured anew", "severity": "WARNING"})
        timing = config.create_timing_cache(b"")
        config.set_timing_cache(timing, ignore_mismatch=False)
    return config, timing


def _monitor(trt: Any, wanted: Callable[[], bool]) -> Any:
    percent = Percent(lambda percent: _say({"percent": percent}))

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            percent.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            percent.step(phase_name)
            return wanted()

        def phase_finish(self, phase_name: str) -> None:
            percent.finish(phase_name)

    return Monitor()


class DeviceMemory:
    """How much of the GPU's memory came into use since it was entered, at most, in bytes."""

    def __init__(self) -> None:
        self._before = self._most = self._used()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> DeviceMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def most(self) -> int:
        self._look()
        return max(self._most - self._before, 0)

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        self._most = max(self._most, self._used())

    def _used(self) -> int:
        """0 where nobody tells: a figure of the manifest is not worth a build."""
        try:
            return used_memory()
        except WrongDeviceError:
            return 0


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _range(shapes: Any) -> Range:
    least, best, most = (tuple(shape) for shape in shapes)
    return least, best, most


def _say(fields: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
