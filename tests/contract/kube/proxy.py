"""A proxy before the API server that can stop answering in every way that a network can.

It ends TLS with the API server's own certificate, so that it sees requests, and passes tokens on.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from types import TracebackType

import aiohttp
from aiohttp import web


@dataclass(frozen=True)
class Seen:
    """A request that came by."""

    method: str
    path: str
    query: str
    agent: str

    @property
    def watch(self) -> bool:
        return "watch=true" in self.query


class Fault(Enum):
    """What happens to a request. Those that end a stream do so for running ones as well."""

    NONE = auto()
    UNAVAILABLE = auto()
    """503, and running streams are cut."""
    THROTTLED = auto()
    """429."""
    UNAUTHORIZED = auto()
    """401, and running streams are cut."""
    MISSING = auto()
    """404, as for a kind that the API server does not have yet."""
    BLACK_HOLE = auto()
    """No answer; running streams stay open and bring nothing more."""
    CUT = auto()
    """The connection is closed without an answer."""
    ONLY_BOOKMARKS = auto()
    """A stream that looks alive and has lost every change."""


Faults = Callable[[Seen], Fault]

_STATUS = {
    Fault.UNAVAILABLE: (503, "ServiceUnavailable"),
    Fault.THROTTLED: (429, "TooManyRequests"),
    Fault.UNAUTHORIZED: (401, "Unauthorized"),
    Fault.MISSING: (404, "NotFound"),
}


class ApiProxy:
    """Serves on a free port of loopback, in a thread. `faults` may be replaced at any time."""

    def __init__(self, port: int, pki: Path) -> None:
        self.faults: Faults = lambda seen: Fault.NONE
        self.requests: list[Seen] = []
        self._upstream = f"https://127.0.0.1:{port}"
        self._pki = pki
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="proxy", daemon=True
        )
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self.port = 0

    def __enter__(self) -> ApiProxy:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        client = ssl.create_default_context(cafile=str(self._pki / "ca.crt"))
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(self._pki / "apiserver.crt", self._pki / "apiserver.key")
        connector = aiohttp.TCPConnector(ssl=client, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            self._session = session
            runner = web.ServerRunner(
                web.Server(self._handle, handler_cancellation=True), shutdown_timeout=0.1
            )
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server)
            await site.start()
            self.port = runner.addresses[0][1]
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        agent = request.headers.get("User-Agent", "")
        seen = Seen(request.method, request.path, request.query_string, agent)
        self.requests.append(seen)
        match fault := self.faults(seen):
            case Fault.UNAVAILABLE | Fault.THROTTLED | Fault.UNAUTHORIZED | Fault.MISSING:
                return _status(*_STATUS[fault])
            case Fault.BLACK_HOLE:
                await self._while(seen, Fault.BLACK_HOLE)
                return _cut(request)
            case Fault.CUT:
                return _cut(request)
            case _:
                return await self._forward(request, seen)

    async def _forward(self, request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        kept = ("Accept", "Authorization", "Content-Type", "User-Agent")
        try:
            async with self._session.request(
                request.method,
                self._upstream + request.raw_path,
                headers={name: request.headers[name] for name in kept if name in request.headers},
                data=await request.read() or None,
            ) as answer:
                response = web.StreamResponse(status=answer.status)
                response.content_type = answer.content_type
                await response.prepare(request)
                async for chunk in self._chunks(answer, seen):
                    await response.write(chunk)
                return response
        except (aiohttp.ClientError, ConnectionError):
            return _cut(request)

    async def _chunks(self, answer: aiohttp.ClientResponse, seen: Seen) -> AsyncIterator[bytes]:
        """The answer; a watch's line by line, for as long as there is no fault."""
        if not seen.watch:
            yield await answer.read()
            return
        lines = aiter(answer.content)
        pending = asyncio.ensure_future(anext(lines))
        try:
            while True:
                done, _ = await asyncio.wait([pending], timeout=0.05)
                match self.faults(seen):
                    case Fault.UNAVAILABLE | Fault.UNAUTHORIZED | Fault.CUT:
                        raise ConnectionError
                    case Fault.BLACK_HOLE:
                        await self._while(seen, Fault.BLACK_HOLE)
                        raise ConnectionError
                    case fault:
                        if not done:
                            continue
                line = pending.result()
                if fault is not Fault.ONLY_BOOKMARKS or b'"BOOKMARK"' in line:
                    yield line
                pending = asyncio.ensure_future(anext(lines))
        except StopAsyncIteration:
            return
        finally:
            pending.cancel()

    async def _while(self, seen: Seen, fault: Fault) -> None:
        while self.faults(seen) is fault:  # noqa: ASYNC110 - a test sets it, in another thread
            await asyncio.sleep(0.05)


def _status(code: int, reason: str) -> web.Response:
    body = {"kind": "Status", "code": code, "reason": reason, "message": "said by the proxy"}
    return web.json_response(body, status=code)


def _cut(request: web.BaseRequest) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=502)
