"""HTTP proxy of the S3 server in s3.py that injects the faults of a busy network.

Requests are forwarded unchanged, so that their signature, which covers the Host header, stays
valid. Only GETs of objects get random faults; each is drawn from a seeded generator and counted.
Requests may also be delayed by their method and key.
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
from urllib.parse import unquote, urlsplit

from .s3 import S3Server

HEAD_LIMIT = 1 << 18
"""Most bytes of the head of a message; also most bytes of a body that are forwarded at once."""


@dataclass(frozen=True)
class Delay:
    """Delays requests, such as Delay("PUT", "drivers/", 0.9)."""

    method: str
    """PUT, GET, HEAD or DELETE of an object; or LIST."""
    key: str
    """Part of the object's key."""
    seconds: float
    gather: int = 0
    """The first so many requests wait for each other before that."""


@dataclass(frozen=True)
class Faults:
    """Probability of each fault at a GET of an object."""

    slow_down: float = 0.0
    """An answer of 503 SlowDown."""
    forbidden: float = 0.0
    """An answer of 403 AccessDenied."""
    reset: float = 0.0
    """The connection is reset before the answer."""
    truncated: float = 0.0
    """The connection is closed in the middle of the body."""
    stalled: float = 0.0
    """The body pauses in the middle for ``stall_s``."""
    stall_s: float = 30.0
    expired_keys: frozenset[str] = frozenset()
    """Access keys whose requests are all answered 400 ExpiredToken."""
    delays: tuple["Delay", ...] = ()


@dataclass(frozen=True)
class _Head:
    """First line and headers of a message, raw and parsed."""

    raw: bytes
    first: str
    headers: dict[str, str]

    @property
    def length(self) -> int:
        return int(self.headers.get("content-length", 0))

    @property
    def is_chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    @property
    def closes_connection(self) -> bool:
        return self.headers.get("connection", "").lower() == "close"

    @property
    def status(self) -> int:
        return int(self.first.split()[1])

    @property
    def request(self) -> tuple[str, str]:
        """The method, or LIST, and the key or the query of a request."""
        method, target, _ = self.first.split()
        parts = urlsplit(target)
        key = unquote(parts.path).strip("/").partition("/")[2]
        return ("LIST", unquote(parts.query)) if method == "GET" and not key else (method, key)


class _Connection:
    """Both streams of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def read_head(self) -> _Head:
        raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").rstrip().split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return _Head(raw, first, {name.strip().lower(): value.strip() for name, _, value in pairs})

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def forward(self, sink: "_Connection", count: int) -> None:
        """Forward ``count`` bytes of a body."""
        while count:
            data = await self.reader.read(min(count, HEAD_LIMIT))
            if not data:
                raise ConnectionError("the body ends too early")
            await sink.send(data)
            count -= len(data)

    async def forward_chunks(self, sink: "_Connection") -> None:
        """Forward a chunked body with its trailers."""
        size = -1
        while size:
            line = await self.reader.readuntil(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            await sink.send(line)
            await self.forward(sink, size + 2 if size else 0)
        while line != b"\r\n":
            line = await self.reader.readuntil(b"\r\n")
            await sink.send(line)

    async def forward_body(self, sink: "_Connection", head: _Head) -> None:
        if head.is_chunked:
            await self.forward_chunks(sink)
        else:
            await self.forward(sink, head.length)

    def reset(self) -> None:
        """Close with RST: data that was sent but not read is lost."""
        end = self.writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class FaultyS3:
    """A running proxy; ``faults`` may be changed at any time."""

    server: S3Server
    port: int
    faults: Faults
    counts: Counter[str] = field(default_factory=Counter)
    """Number of each fault, by its name in Faults; of GETs of objects, as ``objects``; and of
    delayed requests, such as ``PUT drivers/``."""
    _random: random.Random = field(default_factory=random.Random)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _listener: asyncio.Server | None = None
    _connections: set[_Connection] = field(default_factory=set)
    _restart: asyncio.Task[None] | None = None
    _gathered: dict[Delay, asyncio.Event] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with the proxy's address and the server's credentials."""
        return self.server.environment | {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.port}"}

    def outage(self, seconds: float) -> None:
        """Cut all connections and refuse new ones for ``seconds``; return at once."""
        self._run(self._start_outage(seconds))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, limit=HEAD_LIMIT, backlog=1024
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _start_outage(self, seconds: float) -> None:
        assert self._listener is not None, "there is an outage already"
        self._listener.close()
        self._listener = None
        # A bound port without a listener refuses connections, and no other process can take it.
        placeholder = socket.socket()
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        placeholder.bind(("127.0.0.1", self.port))
        for connection in self._connections:
            connection.reset()

        async def restart() -> None:
            with placeholder:
                await asyncio.sleep(seconds)
            await self._listen()

        self._restart = self._loop.create_task(restart())

    async def _stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection of a client through one connection to the server."""
        client, server = _Connection(reader, writer), None
        self._connections.add(client)
        disconnected = (OSError, asyncio.IncompleteReadError, asyncio.CancelledError)
        try:
            while True:
                request = await client.read_head()
                if server is None or server.reader.at_eof():
                    opened = asyncio.open_connection(
                        "127.0.0.1", self.server.port, limit=HEAD_LIMIT
                    )
                    server = _Connection(*await opened)
                if not await self._exchange(client, server, request):
                    return
        except disconnected:
            pass
        finally:
            self._connections.discard(client)
            for connection in (client, server):
                if connection is not None:
                    connection.writer.close()

    async def _exchange(self, client: _Connection, server: _Connection, request: _Head) -> bool:
        """Forward a request and its answer; return whether the connection can be reused."""
        fault = self._draw(request)
        if fault == "reset":
            client.reset()
            return False
        if fault in _REFUSALS:
            head, body = _refusal(fault)
            await client.send(head if request.first.startswith("HEAD ") else head + body)
            return not (request.length or request.is_chunked)
        await self._delay(request)
        await server.send(request.raw)
        # While waiting for the answer: a server may refuse an unread body or send 100 Continue.
        sending = self._loop.create_task(client.forward_body(server, request))
        try:
            answer = await server.read_head()
            while answer.status < 200:
                await client.send(answer.raw)
                answer = await server.read_head()
            await client.send(answer.raw)
            if request.first.startswith("HEAD ") or answer.status in (204, 304):
                pass
            elif fault in ("truncated", "stalled") and answer.status < 300 and answer.length > 1:
                await server.forward(client, answer.length // 2)
                self.counts[fault] += 1
                if fault == "truncated":
                    return False
                await asyncio.sleep(self.faults.stall_s)
                await server.forward(client, answer.length - answer.length // 2)
            else:
                await server.forward_body(client, answer)
            return sending.done() and not (answer.closes_connection or request.closes_connection)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _delay(self, request: _Head) -> None:
        method, key = request.request
        for delay in self.faults.delays:
            if method != delay.method or delay.key not in key:
                continue
            gathered = self._gathered.setdefault(delay, asyncio.Event())
            self.counts[f"{method} {delay.key}"] += 1
            if self.counts[f"{method} {delay.key}"] >= delay.gather:
                gathered.set()
            await gathered.wait()
            await asyncio.sleep(delay.seconds)

    def _draw(self, request: _Head) -> str:
        """Return the fault for ``request``, counted unless it depends on the answer."""
        signed_by = request.headers.get("authorization", "")
        if any(f"Credential={key}/" in signed_by for key in self.faults.expired_keys):
            self.counts["expired"] += 1
            return "expired"
        if request.request[0] != "GET":
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
    """Run a proxy of ``server`` with these ``Faults`` within a with block."""
    proxy = FaultyS3(server, 0, replace(Faults(), **faults), _random=random.Random(seed))
    thread = threading.Thread(target=proxy._loop.run_forever, name="faulty_s3", daemon=True)
    thread.start()
    proxy._run(proxy._listen())
    try:
        yield proxy
    finally:
        proxy._run(proxy._stop())
        proxy._loop.call_soon_threadsafe(proxy._loop.stop)
        thread.join()
        proxy._loop.close()
