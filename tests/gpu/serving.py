"""Tokens a second through Triton, asked by a process of its own, beside a bare session."""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence

import tritonclient.grpc.aio as grpc_aio

from llmengine_server.session import Session
from tests.contract.triton.grpc_clients import aio_stream

TEXT = "The history of the city begins in the year 1200, when a small group of settlers"


def bare(session: Session, prompt: Sequence[int], tokens: int, streams: int) -> float:
    """Tokens a second of the shortest loop over a session, prompts included."""
    began = time.perf_counter()
    first = [session.prefill(slot, prompt, 0).argmax() for slot in range(streams)]
    past = len(prompt)
    pending = session.start_decode(first, [past] * streams)
    for step in range(1, tokens - 1):
        newer = session.start_decode(None, [past + step] * streams)
        [row.argmax() for row in pending.collect()]
        pending = newer
    pending.collect()
    return streams * tokens / (time.perf_counter() - began)


def through_triton(url: str, model: str, tokens: int, streams: int) -> float:
    """The same, of as many gRPC streams; measured in another process, as clients are."""
    command = [sys.executable, "-m", "tests.gpu.serving", url, model, str(tokens), str(streams)]
    done = subprocess.run(command, env=os.environ, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


async def _measure(url: str, model: str, tokens: int, streams: int) -> float:
    async def ask(client: grpc_aio.InferenceServerClient) -> None:
        asked = {"text_input": TEXT, "max_tokens": tokens, "end_id": -1, "stream": True}
        async for _ in aio_stream(client, model, **asked):
            pass

    async with grpc_aio.InferenceServerClient(url) as client:
        await ask(client)
        began = time.perf_counter()
        await asyncio.gather(*(ask(client) for _ in range(streams)))
        return streams * tokens / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("tokens", type=int)
    parser.add_argument("streams", type=int)
    options = parser.parse_args()
    print(asyncio.run(_measure(options.url, options.model, options.tokens, options.streams)))


if __name__ == "__main__":
    main()
