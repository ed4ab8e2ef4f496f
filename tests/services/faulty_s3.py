"""The S3 server of s3.py behind a proxy that injects the faults of a busy network.

Only GETs of objects get random faults; each is drawn from a seeded generator and counted.
Requests may also be delayed by their method and key.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote, urlsplit

from orchestrator.faults.http_proxy import Disturbance, Head, HttpProxy, s3_error

from .s3 import S3Server


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
    delays: tuple[Delay, ...] = ()


SLOW_DOWN = Disturbance("refuse", s3_error("503 Slow Down", "SlowDown", "Reduce your request rate"))
FORBIDDEN = Disturbance("refuse", s3_error("403 Forbidden", "AccessDenied", "Access Denied"))
EXPIRED = Disturbance("refuse", s3_error("400 Bad Request", "ExpiredToken", "It has expired."))
RESET, TRUNCATED = Disturbance("reset"), Disturbance("cut")


@dataclass
class FaultyS3:
    """A running proxy; ``faults`` may be changed at any time."""

    server: S3Server
    faults: Faults
    counts: Counter[str] = field(default_factory=Counter)
    """Number of each fault, by its name in Faults; of GETs of objects, as ``objects``; and of
    delayed requests, such as ``PUT drivers/``."""
    generator: random.Random = field(default_factory=random.Random)
    _gathered: dict[Delay, asyncio.Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.proxy = HttpProxy(self.server.port, self._draw, self._count, hold=self._delay)

    @property
    def port(self) -> int:
        return self.proxy.port

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with the proxy's address and the server's credentials."""
        return self.server.environment | {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.port}"}

    def outage(self, seconds: float) -> None:
        """Cut all connections and refuse new ones for ``seconds``; return at once."""
        self.proxy.outage(seconds)

    def _by_name(self) -> dict[str, Disturbance]:
        return {
            "slow_down": SLOW_DOWN,
            "forbidden": FORBIDDEN,
            "reset": RESET,
            "truncated": TRUNCATED,
            "stalled": Disturbance("stall", seconds=self.faults.stall_s),
        }

    def _draw(self, request: Head) -> Disturbance | None:
        signed_by = request.headers.get("authorization", "")
        if any(f"Credential={key}/" in signed_by for key in self.faults.expired_keys):
            return EXPIRED
        if _method_and_key(request)[0] != "GET":
            return None
        self.counts["objects"] += 1
        drawn = self.generator.random()
        for name, disturbance in self._by_name().items():
            drawn -= getattr(self.faults, name)
            if drawn < 0:
                return disturbance
        return None

    async def _delay(self, request: Head) -> None:
        method, key = _method_and_key(request)
        for delay in self.faults.delays:
            if method != delay.method or delay.key not in key:
                continue
            gathered = self._gathered.setdefault(delay, asyncio.Event())
            self.counts[f"{method} {delay.key}"] += 1
            if self.counts[f"{method} {delay.key}"] >= delay.gather:
                gathered.set()
            await gathered.wait()
            await asyncio.sleep(delay.seconds)

    def _count(self, disturbance: Disturbance) -> None:
        names = {value: name for name, value in self._by_name().items()} | {EXPIRED: "expired"}
        self.counts[names[disturbance]] += 1


def _method_and_key(request: Head) -> tuple[str, str]:
    """The method, or LIST, and the key or the query of a request."""
    parts = urlsplit(request.first.split()[1])
    key = unquote(parts.path).strip("/").partition("/")[2]
    if request.method == "GET" and not key:
        return "LIST", unquote(parts.query)
    return request.method, key


@contextlib.contextmanager
def faulty_s3(server: S3Server, seed: int = 0, **faults: Any) -> Iterator[FaultyS3]:
    """Run a proxy of ``server`` with these ``Faults`` within a with block."""
    started = FaultyS3(server, replace(Faults(), **faults), generator=random.Random(seed))
    with started.proxy.running():
        yield started
