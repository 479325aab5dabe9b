"""Many clients that stream answers from an engine, and what became of each of them.

`loaded()` runs them inside the cluster's network, in a process of their own:
`python -m tests.e2e.load HOST MODEL --clients N`, which ends when its standard input does, once it
has had so many answers. Each request is a connection of its own, as curl's is, and none is sent
twice. An answer counts as whole when its last piece says why it ended.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import aiohttp

from tests.cluster.cluster import Cluster

TOKENS = 8
# Longer than any answer takes while two pods and a build share two cores. A connection that was led
# to a pod a moment before its network went is never answered, and stays led there: no request has
# gone out yet, so a client that gives it up loses nothing.
LIMIT = aiohttp.ClientTimeout(total=60, sock_connect=10)
# The node's own address among those of pods: from there kube-proxy changes no port on the way, so
# that a pod and its client call a connection by the same number.
SOURCE = "10.244.0.1"
# Who could not connect tries something else after a moment, as people and libraries do.
PAUSE_AFTER_REFUSAL = 0.05
PATIENCE = 600.0


class Fate(StrEnum):
    """How an answer ended that is not whole."""

    REFUSED = "refused"
    """No connection: no server has seen the request."""
    BROKEN = "broken off"
    """The connection ended before the answer did, and the client knows it."""
    SAID = "error said"
    """The server said what went wrong."""
    LOOKS_WHOLE = "looks whole"
    """It ended as an answer ends, but is none: the worst."""
    HANGS = "hangs"
    """Nothing came for a minute."""


@dataclass(frozen=True)
class Loss:
    """An answer that is not whole: its client's port, and when it began to connect and when it
    knew, in seconds of the system's monotonic clock.
    """

    fate: Fate
    text: str
    port: int
    connected: float
    ended: float


@dataclass
class Tally:
    """What the clients saw."""

    whole: int = 0
    slowest: float = 0.0
    losses: list[Loss] = field(default_factory=list)

    @property
    def all(self) -> int:
        return self.whole + len(self.losses)

    def of(self, *fates: Fate) -> list[Loss]:
        return [loss for loss in self.losses if loss.fate in fates]

    @classmethod
    def parse(cls, text: str) -> Tally:
        said = json.loads(text)
        losses = [Loss(**{**each, "fate": Fate(each["fate"])}) for each in said.pop("losses")]
        return cls(**said, losses=losses)


class LostError(Exception):
    """An answer is not whole, though the connection held."""

    def __init__(self, fate: Fate, text: str) -> None:
        super().__init__(text)
        self.fate = fate


class Client:
    """Sends one request after the other."""

    def __init__(
        self, url: str, first: int, tokens: int, tally: Tally, answered: asyncio.Event
    ) -> None:
        self._url = url
        self._answered = answered
        self._number = first
        self._tokens = tokens
        self._tally = tally
        self._port, self._connected = 0, 0.0

    async def run(self, stop: asyncio.Event, at_least: int, pause: float) -> None:
        connector = aiohttp.TCPConnector(force_close=True, socket_factory=self._connect)
        async with aiohttp.ClientSession(connector=connector, timeout=LIMIT) as session:
            while not (stop.is_set() and self._tally.all >= at_least):
                began = time.monotonic()
                loss = await self._ask(session)
                if loss is None:
                    self._tally.whole += 1
                else:
                    self._tally.losses.append(loss)
                self._answered.set()
                self._tally.slowest = max(self._tally.slowest, time.monotonic() - began)
                refused = loss is not None and loss.fate is Fate.REFUSED
                await asyncio.sleep(PAUSE_AFTER_REFUSAL if refused else pause)

    def _connect(self, address: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, _ = address
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        made.bind((SOURCE, 0))
        self._port, self._connected = made.getsockname()[1], time.monotonic()
        return made

    async def _ask(self, session: aiohttp.ClientSession) -> Loss | None:
        try:
            await self._answer(session)
        except LostError as error:
            fate, text = error.fate, str(error)
        except aiohttp.ConnectionTimeoutError as error:
            fate, text = Fate.REFUSED, str(error)
        except TimeoutError:
            fate, text = Fate.HANGS, "timeout"
        except aiohttp.ClientConnectorError as error:
            fate, text = Fate.REFUSED, f"{error} (errno {error.errno})"
        except (aiohttp.ClientError, OSError) as error:
            fate, text = Fate.BROKEN, f"{type(error).__name__}: {error}"
        else:
            return None
        return Loss(fate, text, self._port, self._connected, time.monotonic())

    async def _answer(self, session: aiohttp.ClientSession) -> None:
        """Read one answer to its end."""
        self._number += 1
        text = f"{self._number} Hello"
        body = {"text_input": text, "max_tokens": self._tokens, "stream": True}
        last: dict[str, Any] = {}
        async with session.post(self._url, json=body) as response:
            if response.status != 200:
                raise LostError(Fate.SAID, f"{response.status}: {await response.text()}")
            async for line in response.content:
                if line.startswith(b"data: "):
                    last = json.loads(line[6:])
                    if "error" in last:
                        raise LostError(Fate.SAID, str(last["error"]))
        if last.get("finish_reason") not in ("length", "stop"):
            raise LostError(Fate.LOOKS_WHOLE, f"it ended after {last}")


@contextmanager
def loaded(cluster: Cluster, host: str, model: str, *options: str) -> Iterator[Callable[[], Tally]]:
    """Clients stream; the yielded function ends them and says what they saw."""
    command = [sys.executable, "-m", "tests.e2e.load", host, model, *options]
    process = subprocess.Popen(
        cluster.command(*command),
        env=cluster.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()  # the first answer came: the load is there

    def end() -> Tally:
        said, _ = process.communicate("", timeout=PATIENCE)
        return Tally.parse(said)

    try:
        yield end
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


async def load(url: str, clients: int, *, tokens: int, at_least: int, pause: float) -> Tally:
    """Until standard input ends."""
    tally, answered, stop = Tally(), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    made = [Client(url, index * 10**6, tokens, tally, answered) for index in range(clients)]
    running = [asyncio.create_task(client.run(stop, at_least, pause)) for client in made]
    await answered.wait()
    print("loaded", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    stop.set()
    await asyncio.gather(*running)
    return tally


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of an answer, at most")
    parser.add_argument("--answers", type=int, default=0, help="at the least")
    parser.add_argument("--pause", type=float, default=0, help="seconds between two requests")
    options = parser.parse_args(arguments)
    url = f"http://{options.host}:8000/v2/models/{options.model}/generate_stream"
    asked = {"tokens": options.tokens, "at_least": options.answers, "pause": options.pause}
    print(json.dumps(asdict(asyncio.run(load(url, options.clients, **asked)))))


if __name__ == "__main__":
    main()
