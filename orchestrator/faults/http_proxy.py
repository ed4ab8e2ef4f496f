"""HTTP proxy of a server on this machine that disturbs some of its exchanges.

Requests are forwarded unchanged, so that a signature that covers the Host header stays valid.
"""

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

HOST = "127.0.0.1"
HEAD_LIMIT = 1 << 18
"""Most bytes of the head of a message; also most bytes of a body that are forwarded at once."""
RUN_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Head:
    """First line and headers of a message, raw and parsed."""

    raw: bytes
    first: str
    headers: dict[str, str]

    @property
    def length(self) -> int:
        """Length of the body in bytes."""
        return int(self.headers.get("content-length", 0))

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in chunks."""
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    @property
    def closes_connection(self) -> bool:
        """Whether the connection ends with this message."""
        return self.headers.get("connection", "").lower() == "close"

    @property
    def method(self) -> str:
        """Method of a request."""
        return self.first.split()[0]

    @property
    def path(self) -> str:
        """Path of a request, without its query."""
        return urlsplit(self.first.split()[1]).path

    @property
    def status(self) -> int:
        """Status of an answer."""
        return int(self.first.split()[1])


@dataclass(frozen=True)
class Disturbance:
    """What happens to one exchange instead of what should.

    Kinds:
        reset: the connection is reset before the request reaches the server.
        refuse: ``answer`` is sent, and the request does not reach the server.
        fail: the server carries the request out, and ``answer`` is sent instead of its own.
        lose: the server carries the request out, and the connection is reset before its answer.
        cut: the connection is closed in the middle of the body of the answer.
        flip: a bit in the middle of the body of the answer is flipped.
        stall: the body of the answer pauses in the middle for ``seconds``.
        delay: the request waits for ``seconds`` before it reaches the server.
    """

    kind: Literal["reset", "refuse", "fail", "lose", "cut", "flip", "stall", "delay"]
    answer: bytes = b""
    seconds: float = 0.0

    @property
    def needs_body(self) -> bool:
        """Whether only an answer with a body can be disturbed this way."""
        return self.kind in ("cut", "flip", "stall")


def http_answer(status: str, body: bytes, content_type: str) -> bytes:
    """Format an answer, such as one of ``503 Slow Down``."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def s3_error(status: str, code: str, message: str = "") -> bytes:
    """Format an error as an S3 server answers it."""
    xml = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{xml}'.encode()
    return http_answer(status, body, "application/xml")


class HttpProxy:
    """A proxy of the server at ``target`` of this machine.

    Args:
        disturb: chooses what happens to a request; called in the proxy's thread.
        on_disturbed: called after an exchange was really disturbed.
        hold: awaited before a request is forwarded.
        rewrite_host: name the target in the Host header, for servers that check it.
    """

    def __init__(
        self,
        target: int,
        disturb: Callable[[Head], Disturbance | None],
        on_disturbed: Callable[[Disturbance], None] = lambda disturbance: None,
        *,
        hold: Callable[[Head], Coroutine[Any, Any, None]] | None = None,
        rewrite_host: bool = False,
    ) -> None:
        self.target, self.port = target, 0
        self._disturb, self._on_disturbed = disturb, on_disturbed
        self._hold, self._rewrite_host = hold, rewrite_host
        self._loop = asyncio.new_event_loop()
        self._listener: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._restart: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Serve on ``port``, which is chosen first, until the block ends."""
        thread = threading.Thread(target=self._loop.run_forever, name="http-proxy", daemon=True)
        thread.start()
        self._run(self._listen())
        try:
            yield
        finally:
            self._run(self._stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def outage(self, seconds: float) -> None:
        """Cut all connections and refuse new ones for ``seconds``; return at once."""
        self._run(self._start_outage(seconds))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=RUN_TIMEOUT_S)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(
            self._serve, HOST, self.port, limit=HEAD_LIMIT, backlog=1024
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _start_outage(self, seconds: float) -> None:
        assert self._listener is not None, "there is an outage already"
        self._listener.close()
        self._listener = None
        # A bound port without a listener refuses connections, and no other process can take it.
        placeholder = socket.socket()
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        placeholder.bind((HOST, self.port))
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
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)  # the loop has weak references only
        disconnected = (OSError, asyncio.IncompleteReadError, asyncio.CancelledError)
        try:
            while True:
                request = await client.read_head()
                if server is None or server.reader.at_eof():
                    opened = asyncio.open_connection(HOST, self.target, limit=HEAD_LIMIT)
                    server = _Connection(*await opened)
                if not await self._exchange(client, server, request):
                    return
        except disconnected:
            pass
        finally:
            self._connections.discard(client)
            self._tasks.discard(task)
            for connection in (client, server):
                if connection is not None:
                    connection.writer.close()

    async def _exchange(self, client: "_Connection", server: "_Connection", request: Head) -> bool:
        """Forward a request and its answer; return whether the connection can be reused."""
        disturbance = self._disturb(request)
        kind = disturbance.kind if disturbance else None
        if disturbance is not None and not disturbance.needs_body:
            self._on_disturbed(disturbance)
        if disturbance is not None and kind in ("reset", "refuse"):
            if kind == "reset":
                client.reset()
                return False
            await client.send_answer(disturbance.answer, request)
            return not (request.length or request.is_chunked)
        if disturbance is not None and kind == "delay":
            await asyncio.sleep(disturbance.seconds)
        if self._hold is not None:
            await self._hold(request)
        await server.send(self._forwarded(request))
        # While waiting for the answer: a server may refuse an unread body or send 100 Continue.
        sending = self._loop.create_task(client.forward_body(server, request))
        try:
            answer = await server.read_head()
            while answer.status < 200:
                await client.send(answer.raw)
                answer = await server.read_head()
            if disturbance is not None and kind in ("fail", "lose"):
                await sending
                if kind == "fail":
                    await client.send_answer(disturbance.answer, request)
                else:
                    client.reset()
                return False
            await client.send(answer.raw)
            if not await self._forward_body(client, server, request, answer, disturbance):
                return False
            return sending.done() and not (answer.closes_connection or request.closes_connection)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _forward_body(
        self,
        client: "_Connection",
        server: "_Connection",
        request: Head,
        answer: Head,
        disturbance: Disturbance | None,
    ) -> bool:
        """Forward the body of an answer; return whether the connection can be used further."""
        if request.method == "HEAD" or answer.status in (204, 304):
            return True
        if disturbance is not None and disturbance.needs_body and _has_body(answer):
            self._on_disturbed(disturbance)
            return await _disturb_body(disturbance, client, server, answer.length)
        await server.forward_body(client, answer)
        return True

    def _forwarded(self, request: Head) -> bytes:
        if not self._rewrite_host:
            return request.raw
        host = f"Host: {HOST}:{self.target}".encode()
        return re.sub(rb"(?im)^host:[^\r]*", host, request.raw, count=1)


class _Connection:
    """Both streams of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def read_head(self) -> Head:
        raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").rstrip().split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return Head(raw, first, {name.strip().lower(): value.strip() for name, _, value in pairs})

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send_answer(self, answer: bytes, request: Head) -> None:
        """Send an answer, without its body to a HEAD request."""
        head, separator, body = answer.partition(b"\r\n\r\n")
        await self.send(head + separator + (b"" if request.method == "HEAD" else body))

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

    async def forward_body(self, sink: "_Connection", head: Head) -> None:
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


def _has_body(answer: Head) -> bool:
    return answer.status < 300 and answer.length > 1


async def _disturb_body(
    disturbance: Disturbance, client: _Connection, server: _Connection, length: int
) -> bool:
    """Forward a body of ``length`` bytes that is cut, flipped or stalled in the middle.

    Returns whether the connection can be used further.
    """
    half = length // 2
    await server.forward(client, half)
    if disturbance.kind == "cut":
        return False
    if disturbance.kind == "flip":
        (byte,) = await server.reader.readexactly(1)
        await client.send(bytes([byte ^ 1]))
        half += 1
    else:
        await asyncio.sleep(disturbance.seconds)
    await server.forward(client, length - half)
    return True
