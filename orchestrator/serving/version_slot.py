"""The version that serves a name: replaced without a gap when its alias moves."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from orchestrator.errors import UsageError
from orchestrator.serving.served_version import ServedVersion
from orchestrator.serving.service_log import log_event
from orchestrator.serving.service_metrics import ServiceMetrics

Load = Callable[[int | None], ServedVersion | None]
"""Number of the version that serves, or None -> the loaded version that should, or None if the
same one should. Blocks; raises OrchestratorError."""


class VersionSlot:
    """Holds the version that serves, and the requests that use it.

    Methods other than ``load`` are called in the event loop.
    """

    def __init__(self, role: str, load: Load, metrics: ServiceMetrics) -> None:
        """Args: role: main, canary or shadow, for logs and metrics; load: see ``Load``."""
        self.role, self.metrics, self._load = role, metrics, load
        self._current: ServedVersion | None = None
        self._refused = ""

    @property
    def current(self) -> ServedVersion:
        """The version that serves new requests; ``load`` comes first."""
        assert self._current is not None
        return self._current

    def load(self) -> None:
        """Load the first version. Raises OrchestratorError."""
        loaded = self._load(None)
        assert loaded is not None
        self._take(loaded)

    @asynccontextmanager
    async def using(self) -> AsyncIterator[ServedVersion]:
        """Use the current version; it stays loaded within the block."""
        served = self.current
        served.users += 1
        try:
            yield served
        finally:
            served.users -= 1
            _close_if_unused(served)

    async def refresh(self) -> None:
        """Load another version if there should be one; keep this one if that fails."""
        try:
            loaded = await asyncio.to_thread(self._load, self.current.version)
            if loaded is not None:
                check_alike(self.current, loaded)
        except Exception as error:  # whatever fails, the old version serves on
            self.metrics.refresh_failures.labels(self.role).inc()
            if str(error) != self._refused:  # an outage is told once
                kept = self.current.title
                log_event("refresh failed", role=self.role, serving=kept, error=str(error))
            self._refused = str(error)
            return
        self._refused = ""
        if loaded is not None:
            self._take(loaded)

    async def refresh_forever(self, every_s: float) -> None:
        """Call ``refresh`` again and again."""
        while True:
            await asyncio.sleep(every_s)
            await self.refresh()

    def close(self) -> None:
        """Let the version go when its last request has ended."""
        if self._current is not None:
            self._current.is_retired = True
            _close_if_unused(self._current)

    def _take(self, loaded: ServedVersion) -> None:
        before, self._current = self._current, loaded
        self.metrics.version.labels(self.role).set(loaded.version)
        log_event(
            "serving",
            role=self.role,
            version=loaded.title,
            engine=loaded.engine.name,
            device=loaded.device,
            max_batch=loaded.max_batch,
        )
        if before is not None:
            before.is_retired = True
            _close_if_unused(before)


def _close_if_unused(served: ServedVersion) -> None:
    if served.is_retired and not served.users:
        served.close()


def check_alike(one: ServedVersion, other: ServedVersion) -> None:
    """Raise UsageError if clients of one version could not use the other."""
    if one.abilities != other.abilities:
        raise UsageError(
            f"{other.title} takes other inputs than {one.title}; start a new service for it"
        )
