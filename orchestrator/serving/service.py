"""Draw with the version that serves, with a share of the requests to another, or with a copy."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.format.images import Fit
from orchestrator.sampling.image_inputs import DEFAULT_FIT
from orchestrator.serving.limits import Limits
from orchestrator.serving.refused_request import Refused
from orchestrator.serving.request_batcher import Columns
from orchestrator.serving.served_version import ServedVersion
from orchestrator.serving.service_log import log_event
from orchestrator.serving.service_metrics import ServiceMetrics
from orchestrator.serving.version_slot import VersionSlot, check_alike

T = TypeVar("T")
P = ParamSpec("P")
Prepare: TypeAlias = Callable[[ServedVersion], Columns]
"""Returns what a version draws from."""


async def run(in_thread: bool, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function: here if it takes less time than telling a thread to do it."""
    if in_thread:
        return await asyncio.to_thread(function, *args, **kwargs)
    return function(*args, **kwargs)


@dataclass(frozen=True)
class DrawnImages:
    """Images, and what drew them."""

    images: NDArray[np.uint8]
    """(B, C, H, W)."""
    name: str
    version: int
    fit: Fit
    """How images that it translates become square."""


@dataclass
class DrawingService:
    """The versions that answer requests. Methods other than ``load`` run in the event loop."""

    main: VersionSlot
    metrics: ServiceMetrics
    limits: Limits
    canary: VersionSlot | None = None
    """Answers ``canary_share`` of the requests to draw."""
    canary_share: float = 0.0
    shadow: VersionSlot | None = None
    """Draws what the main version draws, for the metrics; nobody sees it."""
    refresh_s: float = 30.0
    """Seconds between two looks at the registry; 0: none."""
    _tasks: set["asyncio.Task[Any]"] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.metrics.waiting.set_function(
            lambda: sum(slot.current.num_waiting for slot in self.slots)
        )

    @property
    def slots(self) -> list[VersionSlot]:
        """All slots."""
        return [slot for slot in (self.main, self.canary, self.shadow) if slot is not None]

    def load(self) -> None:
        """Load all versions. Raises OrchestratorError, also if they take different inputs."""
        for slot in self.slots:
            slot.load()
            check_alike(self.main.current, slot.current)

    def watch(self) -> None:
        """Look for new versions from now on."""
        if self.refresh_s:
            for slot in self.slots:
                self._spawn(slot.refresh_forever(self.refresh_s))

    async def stop(self) -> None:
        """Let the versions go."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for slot in self.slots:
            slot.close()

    async def draw(
        self, prepare: Prepare, *, decoding: bool = False, in_thread: bool = False
    ) -> DrawnImages:
        """Draw the inputs that ``prepare`` returns, which may raise Refused.

        Args:
            decoding: the first input is latents instead of seeds.
            in_thread: ``prepare`` takes long.
        """
        is_canary = self.canary is not None and random.random() < self.canary_share
        slot = self.canary if is_canary and self.canary is not None else self.main
        drawn = await self._draw(slot, prepare, decoding=decoding, in_thread=in_thread)
        shadow = self.shadow
        if shadow is not None and shadow.current.num_waiting < self.limits.waiting // 2:
            self._spawn(self._draw(shadow, prepare, decoding=decoding, in_thread=in_thread))
        return drawn

    async def _draw(
        self, slot: VersionSlot, prepare: Prepare, *, decoding: bool, in_thread: bool
    ) -> DrawnImages:
        async with slot.using() as served:
            columns = await run(in_thread, prepare, served)
            batcher = served.decoding if decoding else served.drawing
            images = await self._timed(
                slot, served, batcher.submit(*columns, timeout_s=self.limits.timeout_s)
            )
            fit = served.preparation.fit or DEFAULT_FIT
            return DrawnImages(images, served.name, served.version, fit)

    async def measure(self, prepare: Prepare) -> tuple[str, float, int]:
        """Return name and nats of one image, and the number of its values."""
        async with self.main.using() as served:
            columns = await asyncio.to_thread(prepare, served)
            timeout_s = self.limits.timeout_s
            nats = await self._timed(
                self.main, served, served.measuring.submit(*columns, timeout_s=timeout_s)
            )
            return served.likelihood_name, float(nats[0]), columns[0][0].size

    async def _timed(self, slot: VersionSlot, served: ServedVersion, answer: Awaitable[T]) -> T:
        """Wait for an answer of a version; count its time, or its error."""
        started = time.monotonic()
        try:
            found = await answer
        except Refused:
            raise
        except Exception as error:
            self.metrics.draw_errors.labels(slot.role, served.title).inc()
            log_event("drawing failed", role=slot.role, version=served.title, error=repr(error))
            raise Refused(500, f"{served.title} could not draw this") from error
        seconds = time.monotonic() - started
        self.metrics.draw_seconds.labels(slot.role, served.title).observe(seconds)
        return found

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run ``work`` beside the requests; what a shadow is refused is counted, not raised."""

        async def unseen() -> None:
            try:
                await work
            except Refused:
                return

        task = asyncio.get_running_loop().create_task(unseen())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
