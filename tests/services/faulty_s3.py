"""The S3 server of s3.py behind a proxy that injects the faults of a busy network.

Only GETs of objects get faults; each is drawn from a seeded generator and counted.
"""

import contextlib
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.faults.http_proxy import Disturbance, Head, HttpProxy, s3_error

from .s3 import S3Server


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
    """Number of each fault, by its name in Faults; and of GETs of objects, as ``objects``."""
    generator: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self.proxy = HttpProxy(self.server.port, self._draw, self._count)

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
        if request.method != "GET" or "/" not in request.path.strip("/"):
            return None
        self.counts["objects"] += 1
        drawn = self.generator.random()
        for name, disturbance in self._by_name().items():
            drawn -= getattr(self.faults, name)
            if drawn < 0:
                return disturbance
        return None

    def _count(self, disturbance: Disturbance) -> None:
        names = {value: name for name, value in self._by_name().items()} | {EXPIRED: "expired"}
        self.counts[names[disturbance]] += 1


@contextlib.contextmanager
def faulty_s3(server: S3Server, seed: int = 0, **faults: Any) -> Iterator[FaultyS3]:
    """Run a proxy of ``server`` with these ``Faults`` within a with block."""
    started = FaultyS3(server, replace(Faults(), **faults), generator=random.Random(seed))
    with started.proxy.running():
        yield started
