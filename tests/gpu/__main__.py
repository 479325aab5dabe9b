"""On a machine with an NVIDIA GPU: build, publish, fetch, serve and ask, and print what it takes.

    python -m tests.gpu smollm2 smollm2-bfloat16 llama1b faults llama8b --torch PYTHON --vllm PYTHON

Everything runs in the processes of the real pods, against an S3 server on loopback. What is
compared is measured in the same run. `faults` takes the last engine. `--torch` names a Python
with torch and transformers, `--vllm` one with vLLM.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmengine.api.v1alpha1 import DType
from llmengine.artifact import Manifest
from llmengine_server.session import Session
from llmengine_server.session.opening import open_session
from llmengine_server.tokenizer import Tokenizer
from tests.cluster.s3 import S3Server
from tests.contract.store.place import Place
from tests.contract.triton.server import Server
from tests.gpu import faults, llama, serving, speed
from tests.gpu.commands import Ended, Pods
from tests.gpu.machine import Target, options, stage
from tests.models import smollm2

GIB = 1 << 30
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n",
    "Water boils at 100 degrees because",
    "Once upon a time, in a small village by the sea,",
    "The three laws of thermodynamics are",
    "A recipe for bread:",
)
STAGES = ("smollm2", "smollm2-bfloat16", "llama1b", "faults", "llama8b")


@dataclass(frozen=True)
class Other:
    """What is compared with: how the table names it, its program, the Python that runs it, and
    what is wanted."""

    name: str
    program: str
    python: str
    wanted: str


@dataclass
class Run:
    """One run: where everything is, and what was found."""

    pods: Pods
    others: tuple[Other, ...]
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def found(self, what: str, measured: str, wanted: str = "measured") -> None:
        self.rows.append((what, measured, wanted))
        print(f"| {what} | {measured} | {wanted} |", flush=True)


@dataclass(frozen=True)
class Engine:
    """A published engine of a model's folder, which was fetched into `folder`."""

    model: str
    manifest: Manifest
    folder: Path
    built: Ended
    fetched: Ended

    def open(self) -> Session:
        with stage(f"opening {self.folder.name}"):
            return open_session(self.folder / "engine", self.manifest)


def build(run: Run, model: str, dtype: DType, name: str) -> Engine:
    """Build, publish and fetch an engine of 32 slots and cache length 1024."""
    request = run.pods.request(model, options(dtype, 32, 1024))
    with stage(f"build of {name}"):
        built = run.pods.build(request)
    if built.code != 0:
        raise SystemExit(f"the build of {name} failed: {built.last}")
    run.pods.end_scratch()
    manifest = run.pods.manifest(request)
    with stage(f"fetch of {name}"):
        fetched = run.pods.fetch(request, built.last["manifestDigest"], name)
    if fetched.code != 0:
        raise SystemExit(f"the fetch of {name} failed: {fetched.last}")
    seconds = ", ".join(f"{phase} {took:.1f}" for phase, took in manifest.seconds.items())
    verified, footprint = manifest.verification, manifest.footprint
    run.found(
        f"{name}: build",
        f"{built.seconds:.1f} s ({seconds}); plan {manifest.size_bytes / 1e6:.0f} MB; host"
        f" {footprint.host_bytes / GIB:.2f} GiB, GPU {footprint.device_bytes / GIB:.2f} GiB at"
        f" most; mean relative error {verified.mean_relative_error:.1e}, largest gap"
        f" {verified.max_logit_gap:.2f} over {verified.tokens} tokens",
    )
    for warning in manifest.warnings:
        print(f"    warning: {warning}")
    return Engine(model, manifest, run.pods.folder / name, built, fetched)


def time_steps(
    run: Run, engine: Engine, session: Session, slots: Sequence[int], wanted: str
) -> dict[int, float]:
    """Microseconds a step over a nearly full cache of 1024 rows, and the share of the memory's
    bandwidth; tokens a second."""
    name = engine.folder.name
    weights = llama.read_bytes(run.pods.models / engine.model)
    found = {}
    for count in slots:
        seconds = speed.step_seconds(session, count)
        bound = speed.floor_seconds(engine.manifest, weights, count, run.pods.target.bandwidth)
        found[count] = count / seconds
        run.found(
            f"{name}: {count} slots, 900 rows each",
            f"{seconds * 1e6:.0f} us a step, {count / seconds:.0f} tokens/s,"
            f" {bound / seconds:.0%} of the floor ({bound * 1e6:.0f} us)",
            wanted if count == 1 else "measured",
        )
    run.found(f"{name}: prompt of 512", f"{speed.prefill_seconds(session, 512) * 1e3:.1f} ms")
    return found


def agree(run: Run, engine: Engine, session: Session, model: Path, wanted: str) -> None:
    tokenizer = Tokenizer.load(engine.folder / "engine")
    with stage("agreement with float32"):
        prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
        agreed = speed.agreement(session, model, prompts, 64)
    run.found(
        f"{engine.folder.name}: tokens that float32 would choose",
        f"{agreed.equal} of {agreed.tokens} ({agreed.equal / agreed.tokens:.1%}), largest gap"
        f" {agreed.largest_gap:.2f} logits",
        wanted,
    )


def serve(run: Run, engine: Engine, session: Session, tokens: int = 200) -> None:
    """Through Triton with 32 clients, beside the bare session; and how soon it is ready."""
    name = engine.folder.name
    prompt = Tokenizer.load(engine.folder / "engine").encode(serving.TEXT)
    with Server(engine.folder / "models", name, engine.folder) as server:
        ready = engine.fetched.seconds + server.start_seconds
        run.found(
            f"{name}: from the store to ready, by its build",
            f"{engine.fetched.seconds:.1f} + {server.start_seconds:.1f} s ="
            f" {ready / engine.built.seconds:.3f} x",
            "<= 0.1 x",
        )
        said = server.generate(text_input=PROMPTS[0], max_tokens=16).json
        print(f"    it says: {PROMPTS[0]}{said['text_output']}")
        turns = []
        for _ in range(2):
            alone = serving.bare(session, prompt, tokens, 32)
            asked = serving.through_triton(server.grpc, name, tokens, 32)
            turns.append((asked / alone, asked, alone))
        ratio, asked, alone = statistics.median_low(turns)
        run.found(
            f"{name}: through Triton with 32 clients, by the bare session",
            f"{asked:.0f} / {alone:.0f} tokens/s = {ratio:.2f} x",
            ">= 0.85 x",
        )


def compare(run: Run, model: Path, ours: dict[int, float], name: str) -> None:
    """Against others, on the same GPU, which nobody else uses then."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for other in run.others:
        program = Path(__file__).with_name(other.program)
        with stage(f"{other.name}, {name}"):
            done = subprocess.run(
                [other.python, str(program), str(model), *map(str, ours)],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
        # It may say other things too.
        rates = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        for slots, rate in ((each["slots"], each["tokensPerSecond"]) for each in rates):
            run.found(
                f"{name}: {slots} slots, by {other.name}",
                f"{ours[slots]:.0f} / {rate:.0f} tokens/s = {ours[slots] / rate:.2f} x",
                other.wanted,
            )
        if done.returncode != 0 or len(rates) < len(ours):
            run.found(f"{name}: {other.name}", f"failed: exit {done.returncode}", other.wanted)


def _smollm2(run: Run) -> Path:
    model = run.pods.models / "smollm2"
    if not model.exists():
        model.symlink_to(smollm2.directory())
        _copy_of_link(model)
    return model


def run_smollm2(run: Run) -> Engine:
    model = _smollm2(run)
    half = build(run, "smollm2", DType.FLOAT16, "smollm2-float16")
    session = half.open()
    time_steps(run, half, session, (1, 8, 32), "<= 1400 us")
    agree(run, half, session, model, ">= 99 %")
    serve(run, half, session)
    session.close()
    return half


def run_smollm2_bfloat16(run: Run) -> None:
    model = _smollm2(run)
    brain = build(run, "smollm2", DType.BFLOAT16, "smollm2-bfloat16")
    session = brain.open()
    time_steps(run, brain, session, (1,), "measured")
    agree(run, brain, session, model, ">= 97 %")
    session.close()


def _copy_of_link(link: Path) -> None:
    """A claim with links is read through copies; this one has none."""
    target = link.resolve()
    link.unlink()
    link.mkdir()
    for path in target.iterdir():
        os.link(path, link / path.name)


def run_faults(run: Run, engine: Engine) -> None:
    asked = options(DType.BFLOAT16, 32, 1024)
    for line in faults.check(run.pods, engine.model, asked, engine.folder / "engine"):
        run.found("fault", line)


def run_llama1b(run: Run) -> Engine:
    with stage("writing the 1B model"):
        model = llama.write("1b", run.pods.models)
    engine = build(run, "1b", DType.BFLOAT16, "llama-1b")
    session = engine.open()
    ours = time_steps(run, engine, session, (1, 8, 32), ">= 55 %")
    serve(run, engine, session)
    session.close()
    with stage("the same build with the stored timings"):
        again = options(DType.BFLOAT16, 32, 1024)
        second = run.pods.compile_seconds(run.pods.request("1b", again, "two"))
    first = engine.manifest.seconds["Compile"]
    run.found(
        "llama-1b: second build with the stored timings",
        f"compile {second:.1f} / {first:.1f} s = {second / first:.2f} x",
        "<= 0.4 x",
    )
    compare(run, model, {count: ours[count] for count in (1, 32)}, "llama-1b")
    return engine


def run_llama8b(run: Run) -> None:
    with stage("writing the 8B model"):
        model = llama.write("8b", run.pods.models)
    engine = build(run, "8b", DType.BFLOAT16, "llama-8b")
    session = engine.open()
    ours = time_steps(run, engine, session, (1, 32), ">= 65 %")
    session.close()
    compare(run, model, ours, "llama-8b")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--torch", help="a Python with torch and transformers")
    parser.add_argument("--vllm", help="a Python with vLLM")
    parser.add_argument("--bandwidth", type=float, help="of the GPU's memory, in bytes a second")
    parser.add_argument("--keep", type=Path, help="a folder for models and engines")
    parser.add_argument("--out", type=Path, help="a file for the table, as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpu-") as temporary, S3Server() as server:
        folder = arguments.keep or Path(temporary)
        models = folder / "models"
        models.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder))
        target = Target.here(arguments.bandwidth)
        print(f"{target.name}, {target.backend} {target.version}, {target.architecture}")
        run = Run(Pods(Place.new(server), models, work, target), _others(arguments))
        try:
            _run(run, arguments.stages)
        finally:
            _tell(run, target.name, arguments.out)


def _others(arguments: argparse.Namespace) -> tuple[Other, ...]:
    found = (
        ("transformers static + compiled", "transformers_speed.py", arguments.torch, ">= 3 x"),
        ("vLLM", "vllm_speed.py", arguments.vllm, "measured"),
    )
    return tuple(
        Other(name, program, python, wanted) for name, program, python, wanted in found if python
    )


def _run(run: Run, stages: Sequence[str]) -> None:
    engine = run_smollm2(run) if "smollm2" in stages else None
    if "smollm2-bfloat16" in stages:
        run_smollm2_bfloat16(run)
    if "llama1b" in stages:
        engine = run_llama1b(run)
    if "faults" in stages and engine is not None:
        run_faults(run, engine)
    if "llama8b" in stages:
        run_llama8b(run)


def _tell(run: Run, device: str, out: Path | None) -> None:
    print(f"\n| on {device} | measured | to reach |\n|---|---|---|")
    for row in run.rows:
        print(f"| {' | '.join(row)} |")
    if out is not None:
        record: dict[str, Any] = {"device": device, "rows": run.rows}
        out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
