"""Many clients that stream short answers from an engine until they are told to stop.

Run `python -m tests.bench.load HOST MODEL --clients N`, and close its standard input to end it;
it ends then, or once it has had so many answers.
Each request is a connection of its own, as curl's is. An answer counts as whole when its last
piece says why it ended; anything else is an error, which is printed. No request is sent twice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp

TOKENS = 8
# Longer than any answer takes while two pods and a build share two cores.
LIMIT = aiohttp.ClientTimeout(total=60)


@dataclass
class Tally:
    """Answers, and what went wrong with those that were not whole, at which second."""

    whole: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    @property
    def all(self) -> int:
        return self.whole + sum(self.failures.values())

    def report(self) -> dict[str, Any]:
        return {"whole": self.whole, "failures": self.failures, "slowest": round(self.slowest, 2)}


async def answer(session: aiohttp.ClientSession, url: str, number: int) -> None:
    """Read one answer to its end. Raises ValueError for one that is not whole."""
    body = {"text_input": f"{number} Hello", "max_tokens": TOKENS, "stream": True}
    last: dict[str, Any] = {}
    async with session.post(url, json=body) as response:
        if response.status != 200:
            raise ValueError(f"{response.status}: {await response.text()}")
        async for line in response.content:
            if line.startswith(b"data: "):
                last = json.loads(line[6:])
                if "error" in last:
                    raise ValueError(str(last["error"]))
    if last.get("finish_reason") not in ("length", "stop"):
        raise ValueError(f"it broke off after {last}")


async def client(url: str, first: int, stop: asyncio.Event, tally: Tally, at_least: int) -> None:
    """One request after the other."""
    number = first
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=LIMIT) as session:
        while not (stop.is_set() and tally.all >= at_least):
            number += 1
            began = time.monotonic()
            try:
                await answer(session, url, number)
                tally.whole += 1
            except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
                tally.failures[f"{type(error).__name__}: {error}"] += 1
            tally.slowest = max(tally.slowest, time.monotonic() - began)


async def load(url: str, clients: int, at_least: int) -> Tally:
    """Until standard input ends."""
    tally, stop = Tally(), asyncio.Event()
    loop = asyncio.get_running_loop()
    running = [
        asyncio.create_task(client(url, index * 10**6, stop, tally, at_least))
        for index in range(clients)
    ]
    await loop.run_in_executor(None, sys.stdin.read)
    stop.set()
    await asyncio.gather(*running)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--answers", type=int, default=0, help="at the least")
    options = parser.parse_args()
    url = f"http://{options.host}:8000/v2/models/{options.model}/generate_stream"
    print(json.dumps(asyncio.run(load(url, options.clients, options.answers)).report()))


if __name__ == "__main__":
    main()
