"""An HTTP proxy in front of the S3 server of s3.py that makes the faults of a busy network.

Requests go through as they are, so that their signature, which covers the Host header, stays
valid. Faults befall GETs of objects alone; each is drawn from a seeded generator and counted.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from .s3 import S3Server

HEAD_LIMIT = 1 << 18
"""The longest head of a message; also the most bytes of a body that are passed on at once."""


@dataclass(frozen=True)
class Faults:
    """The share of each fault among the GETs of objects."""

    slow_down: float = 0.0
    """An answer of 503 SlowDown."""
    forbidden: float = 0.0
    """An answer of 403 AccessDenied."""
    reset: float = 0.0
    """The connection is reset before the answer."""
    truncated: float = 0.0
    """The connection is closed in the middle of the body."""
    stalled: float = 0.0
    """Nothing comes for ``stall_s`` in the middle of the body, and then the rest."""
    stall_s: float = 30.0
    expired_keys: frozenset[str] = frozenset()
    """Access keys that are answered 400 ExpiredToken, whatever they ask for."""


@dataclass(frozen=True)
class _Head:
    """The first line of a message and its headers, as they came and taken apart."""

    raw: bytes
    first: str
    headers: dict[str, str]

    @property
    def length(self) -> int:
        return int(self.headers.get("content-length", 0))

    @property
    def chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    @property
    def closes(self) -> bool:
        return self.headers.get("connection", "").lower() == "close"

    @property
    def status(self) -> int:
        return int(self.first.split()[1])

    @property
    def asks_for_an_object(self) -> bool:
        """Whether this is a GET of a key in a bucket, not of the bucket's own."""
        method, target, _ = self.first.split()
        return method == "GET" and "/" in urlsplit(target).path.strip("/")


class _Link:
    """The streams of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def head(self) -> _Head:
        raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").rstrip().split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return _Head(raw, first, {name.strip().lower(): value.strip() for name, _, value in pairs})

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def pass_on(self, sink: "_Link", count: int) -> None:
        """``count`` bytes of a body."""
        while count:
            data = await self.reader.read(min(count, HEAD_LIMIT))
            if not data:
                raise ConnectionError("the body ends too early")
            await sink.send(data)
            count -= len(data)

    async def pass_chunks_on(self, sink: "_Link") -> None:
        """A body in HTTP's chunks, up to the last one and the trailers behind it."""
        size = -1
        while size:
            line = await self.reader.readuntil(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            await sink.send(line)
            await self.pass_on(sink, size + 2 if size else 0)
        while line != b"\r\n":
            line = await self.reader.readuntil(b"\r\n")
            await sink.send(line)

    async def pass_body_on(self, sink: "_Link", head: _Head) -> None:
        await (self.pass_chunks_on(sink) if head.chunked else self.pass_on(sink, head.length))

    def reset(self) -> None:
        """End with RST: whatever was sent and not yet read is lost."""
        end = self.writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class FaultyS3:
    """A running proxy; ``faults`` may be set anew at any time."""

    server: S3Server
    port: int
    faults: Faults
    counts: Counter[str] = field(default_factory=Counter)
    """How often each fault happened, by its name in Faults; and ``objects``, the GETs of them."""
    _random: random.Random = field(default_factory=random.Random)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _listener: asyncio.Server | None = None
    _links: set[_Link] = field(default_factory=set)
    _coming_back: asyncio.Task[None] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a client finds this proxy and the server's credentials by."""
        return self.server.environment | {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.port}"}

    def outage(self, seconds: float) -> None:
        """Cut all connections and refuse new ones for so long; returns at once."""
        self._wait_for(self._go_away(seconds))

    def _wait_for(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, limit=HEAD_LIMIT, backlog=1024
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _go_away(self, seconds: float) -> None:
        assert self._listener is not None, "an outage is going on already"
        self._listener.close()
        self._listener = None
        # A port that is bound and not listened at refuses, and nobody else can take it.
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", self.port))
        for link in self._links:
            link.reset()

        async def come_back() -> None:
            with held:
                await asyncio.sleep(seconds)
            await self._listen()

        self._coming_back = self._loop.create_task(come_back())

    async def _end(self) -> None:
        if self._listener is not None:
            self._listener.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client, with one to the server beside it."""
        client, server = _Link(reader, writer), None
        self._links.add(client)
        gone = (OSError, asyncio.IncompleteReadError, asyncio.CancelledError)
        try:
            while True:
                request = await client.head()
                if server is None or server.reader.at_eof():
                    opened = asyncio.open_connection(
                        "127.0.0.1", self.server.port, limit=HEAD_LIMIT
                    )
                    server = _Link(*await opened)
                if not await self._exchange(client, server, request):
                    return
        except gone:
            pass
        finally:
            self._links.discard(client)
            for link in (client, server):
                if link is not None:
                    link.writer.close()

    async def _exchange(self, client: _Link, server: _Link, request: _Head) -> bool:
        """One request and its answer; whether the connection is still good for another."""
        fault = self._draw(request)
        if fault == "reset":
            client.reset()
            return False
        if fault in _REFUSALS:
            head, body = _refusal(fault)
            await client.send(head if request.first.startswith("HEAD ") else head + body)
            return not (request.length or request.chunked)
        await server.send(request.raw)
        # Beside the answer: a server may refuse a body unread, or say 100 Continue first.
        sending = self._loop.create_task(client.pass_body_on(server, request))
        try:
            answer = await server.head()
            while answer.status < 200:
                await client.send(answer.raw)
                answer = await server.head()
            await client.send(answer.raw)
            if request.first.startswith("HEAD ") or answer.status in (204, 304):
                pass
            elif fault in ("truncated", "stalled") and answer.status < 300 and answer.length > 1:
                await server.pass_on(client, answer.length // 2)
                self.counts[fault] += 1
                if fault == "truncated":
                    return False
                await asyncio.sleep(self.faults.stall_s)
                await server.pass_on(client, answer.length - answer.length // 2)
            else:
                await server.pass_body_on(client, answer)
            return sending.done() and not (answer.closes or request.closes)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    def _draw(self, request: _Head) -> str:
        """The fault that is to befall ``request``, counted unless it depends on the answer."""
        signed_by = request.headers.get("authorization", "")
        if any(f"Credential={key}/" in signed_by for key in self.faults.expired_keys):
            self.counts["expired"] += 1
            return "expired"
        if not request.asks_for_an_object:
            return ""
        self.counts["objects"] += 1
        drawn, faults = self._random.random(), self.faults
        for name in ("slow_down", "forbidden", "reset", "truncated", "stalled"):
            drawn -= getattr(faults, name)
            if drawn < 0:
                self.counts[name] += name not in ("truncated", "stalled")
                return name
        return ""


_REFUSALS = {
    "slow_down": ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
    "forbidden": ("403 Forbidden", "AccessDenied", "Access Denied"),
    "expired": ("400 Bad Request", "ExpiredToken", "The provided token has expired."),
}


def _refusal(fault: str) -> tuple[bytes, bytes]:
    status, code, message = _REFUSALS[fault]
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    )
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode(), body.encode()


@contextlib.contextmanager
def faulty_s3(server: S3Server, seed: int = 0, **faults: Any) -> Iterator[FaultyS3]:
    """A proxy in front of ``server`` with such ``Faults``; it ends with the block."""
    proxy = FaultyS3(server, 0, replace(Faults(), **faults), _random=random.Random(seed))
    thread = threading.Thread(target=proxy._loop.run_forever, name="faulty_s3", daemon=True)
    thread.start()
    proxy._wait_for(proxy._listen())
    try:
        yield proxy
    finally:
        proxy._wait_for(proxy._end())
        proxy._loop.call_soon_threadsafe(proxy._loop.stop)
        thread.join()
        proxy._loop.close()
