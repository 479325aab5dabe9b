"""What scheduling and Triton cost: each against a bare loop over the same session of SmolLM2.

Run `python -m tests.bench.serving`. What is compared is measured in turns within one run, and
given as a ratio: the machine's own speed swings.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tritonclient.grpc.aio as grpc_aio

from llmengine.artifact import Limits
from llmengine_server.delivery import Delivery, Reply, Stream
from llmengine_server.engine_loop import EngineLoop
from llmengine_server.generation import Finish, Generation
from llmengine_server.sampling import Sampling
from llmengine_server.scheduler import Occupancy, Scheduler
from llmengine_server.session import Session
from llmengine_server.session.opening import open_session
from llmengine_server.tokenizer import Detokenizer, StopWords, Tokenizer
from tests.contract.triton.engines import make_engine, render_repository
from tests.contract.triton.grpc_clients import aio_stream
from tests.contract.triton.server import Server
from tests.models import smollm2

LIMITS = Limits(max_batch_size=8, max_sequence_length=1024, max_batch_tokens=256)
MODEL = "smollm2"
TEXT = "The history of the city begins in the year 1200, when a small group of settlers"


@dataclass
class Client:
    """Waits for one answer; times are those of its first and last response."""

    first: float | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def send(self, reply: Reply) -> None:
        if self.first is None:
            self.first = time.perf_counter()
        if reply.finish is not None:
            self.done.set()

    def cancelled(self) -> bool:
        return False


class NoMeter:
    """Counts nothing."""

    def first_token(self, seconds: float) -> None: ...

    def between_tokens(self, seconds: float) -> None: ...

    def ended(self, finish: Finish, input_tokens: int) -> None: ...

    def report(self, occupancy: Occupancy, generated: int) -> None: ...


class NoPulse:
    """Tells nobody."""

    deadline: float | None = None

    def beat(self) -> None: ...

    def tell_drained(self) -> None: ...


class Serving:
    """Scheduler, loop and delivery as in the server, without Triton."""

    def __init__(self, session: Session, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._next = 0
        self.loop = EngineLoop(Scheduler(session, time.perf_counter), NoPulse())
        self._delivery = Delivery(interval=0.02, meter=NoMeter(), cancel=self.loop.cancel)
        self._threads = [
            threading.Thread(target=self.loop.run, args=(self._delivery,), daemon=True),
            threading.Thread(target=self._delivery.run, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def ask(self, prompt: Sequence[int], tokens: int) -> Client:
        client = Client()
        self._next += 1
        generation = request(self._next, prompt, tokens)
        self._delivery.open(
            Stream(
                generation,
                Detokenizer(self._tokenizer, prompt),
                StopWords(),
                True,
                client,
                time.monotonic(),
            )
        )
        self.loop.submit(generation)
        return client

    def stop(self) -> None:
        self.loop.stop()
        self._delivery.close()
        for thread in self._threads:
            thread.join()


def request(id_: int, prompt: Sequence[int], tokens: int) -> Generation:
    return Generation(
        id=id_,
        prompt=tuple(prompt),
        max_tokens=tokens,
        sampling=Sampling(),
        stop_ids=frozenset(),
    )


def bare(session: Session, prompt: Sequence[int], tokens: int, streams: int = 1) -> float:
    """Tokens a second of the shortest loop over a session."""
    began = time.perf_counter()
    last = [session.prefill(slot, prompt, 0).argmax() for slot in range(streams)]
    past = len(prompt)
    for _ in range(tokens - 1):
        rows = session.decode(last, [past] * streams)
        last = [row.argmax() for row in rows]
        past += 1
    return streams * tokens / (time.perf_counter() - began)


def scheduled(session: Session, prompt: Sequence[int], tokens: int, streams: int = 1) -> float:
    """Tokens a second of the scheduler alone, in one thread."""
    scheduler = Scheduler(session, time.perf_counter)
    began = time.perf_counter()
    for id_ in range(streams):
        scheduler.submit(request(id_, prompt, tokens))
    while not scheduler.idle:
        scheduler.step()
    return streams * tokens / (time.perf_counter() - began)


def delivered(serving: Serving, prompt: Sequence[int], tokens: int, streams: int = 1) -> float:
    """Tokens a second with loop, detokenisation and responses."""
    began = time.perf_counter()
    clients = [serving.ask(prompt, tokens) for _ in range(streams)]
    for client in clients:
        client.done.wait()
    return streams * tokens / (time.perf_counter() - began)


async def _ask(client: grpc_aio.InferenceServerClient, tokens: int) -> None:
    asked = {"text_input": TEXT, "max_tokens": tokens, "end_id": -1, "stream": True}
    async for _ in aio_stream(client, MODEL, **asked):
        pass


def through_triton(url: str, tokens: int, streams: int = 1) -> float:
    """Tokens a second of gRPC streams."""

    async def ask_all() -> float:
        async with grpc_aio.InferenceServerClient(url) as client:
            began = time.perf_counter()
            await asyncio.gather(*(_ask(client, tokens) for _ in range(streams)))
            return streams * tokens / (time.perf_counter() - began)

    return asyncio.run(ask_all())


def first_token_under_load(
    session: Session, serving: Serving, prompt: Sequence[int]
) -> tuple[float, float]:
    """A short prompt's time to first token while 7 others generate, less its own prefill; and
    one decode step of 8: seconds."""
    others = [serving.ask(prompt, 200) for _ in range(LIMITS.max_batch_size - 1)]
    while any(client.first is None for client in others):
        time.sleep(0.001)
    time.sleep(0.2)
    began = time.perf_counter()
    newcomer = serving.ask(prompt, 2)
    newcomer.done.wait()
    assert newcomer.first is not None
    waited = newcomer.first - began
    for client in others:
        client.done.wait()
    time.sleep(0.05)
    # The loop is idle now: the session may be used from here.
    prefills, steps = [], []
    for slot in range(LIMITS.max_batch_size):
        began = time.perf_counter()
        session.prefill(slot, prompt, 0)
        prefills.append(time.perf_counter() - began)
    for step in range(5):
        began = time.perf_counter()
        session.decode([1] * LIMITS.max_batch_size, [len(prompt) + step] * LIMITS.max_batch_size)
        steps.append(time.perf_counter() - began)
    return waited - statistics.median(prefills), statistics.median(steps)


def in_turns(rounds: int, measures: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Every measure once a round."""
    results: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            results[name].append(measure())
    return results


def ratio(results: Mapping[str, list[float]], name: str, base: str) -> float:
    """The median over the rounds of one measure by another of the same round."""
    return statistics.median(a / b for a, b in zip(results[name], results[base], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    tokens = options.tokens
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        manifest = make_engine(smollm2.directory(), work / "engine", LIMITS)
        render_repository(work / "engine", manifest, MODEL, work / "models")
        tokenizer = Tokenizer.load(work / "engine")
        prompt = tokenizer.encode(TEXT)
        session = open_session(work / "engine", manifest)
        serving = Serving(session, tokenizer)
        with Server(work / "models", MODEL, work) as server:
            results = in_turns(
                options.rounds,
                {
                    "bare 1": lambda: bare(session, prompt, tokens),
                    "scheduler 1": lambda: scheduled(session, prompt, tokens),
                    "delivery 1": lambda: delivered(serving, prompt, tokens),
                    "triton 1": lambda: through_triton(server.grpc, tokens),
                    "bare 8": lambda: bare(session, prompt, tokens, 8),
                    "scheduler 8": lambda: scheduled(session, prompt, tokens, 8),
                    "delivery 8": lambda: delivered(serving, prompt, tokens, 8),
                    "triton 8": lambda: through_triton(server.grpc, tokens, 8),
                    "triton 16": lambda: through_triton(server.grpc, tokens, 16),
                },
            )
            waits = [
                first_token_under_load(session, serving, prompt) for _ in range(options.rounds)
            ]
        serving.stop()
    print(f"SmolLM2-135M, float32, {tokens} tokens, prompt of {len(prompt)}; tokens/s, medians")
    for name, speeds in results.items():
        print(f"  {name:12} {statistics.median(speeds):7.1f}")
    for name, base, wanted in (
        ("scheduler 1", "bare 1", ">= 0.9"),
        ("delivery 1", "bare 1", ">= 0.9"),
        ("triton 1", "bare 1", ""),
        ("scheduler 8", "bare 8", ""),
        ("delivery 8", "bare 8", ""),
        ("triton 8", "bare 8", ""),
        ("delivery 8", "delivery 1", ">= 4"),
        ("triton 8", "triton 1", ">= 4"),
        ("bare 8", "bare 1", "(what the session can do)"),
    ):
        print(f"  {name} / {base}: {ratio(results, name, base):.2f} {wanted}")
    steps = statistics.median(wait / step for wait, step in waits)
    print(f"  first token while 7 generate: own prefill + {steps:.1f} decode steps of 8 <= 3")


if __name__ == "__main__":
    main()
