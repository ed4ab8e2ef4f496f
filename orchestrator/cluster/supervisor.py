"""The driver's thread beside a training: shows what workers tell, and asks them to move or stop."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.failure_policy import Cause
from orchestrator.cluster.hang_detection import Stuck, find_stuck, stack_and_end
from orchestrator.cluster.worker_state import STOP, Beat, News
from orchestrator.config.job import ClusterSection
from orchestrator.console import Report, say

POLL_S = 0.5
NODES_S = 1.0
"""Between two looks at nodes that are being taken away, or that have come."""
EXAMINE_S = 20.0
"""The longest that reading the stack of a stuck worker, and ending it, may take."""
SETTLED_S = 10.0
"""Room for more workers must have been there so long, lest the workers move twice."""

logger = logging.getLogger(__name__)


class Watch:
    """Looks after the workers of one run."""

    def __init__(
        self,
        mailbox: Any,
        cluster: ClusterSection,
        resources: dict[str, float],
        show: Callable[[Report], None],
        hear: Callable[[News], None] = lambda news: None,
    ) -> None:
        """``resources`` are those of one worker; ``hear`` takes all that comes."""
        self._mailbox, self._cluster, self._show = mailbox, cluster, show
        self._resources, self._hear = resources, hear
        self._stop, self._done = threading.Event(), threading.Event()
        self._asked: str | None = None
        self._num_notes = self._num_reports = 0
        self._looked = 0.0
        self._ended: set[int] = set()
        """Process ids of stuck workers that were ended."""
        self._room_since: float | None = None
        self._room_wait_s = SETTLED_S
        self.training = False
        """Whether workers are there that can be asked to stop."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the block ends."""
        thread = threading.Thread(target=self._poll, name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            self._stop.set()  # it waits for this one
            thread.join(timeout=5)

    def stop(self) -> None:
        """Ask the workers to save and end after this step; a signal handler may call it."""
        self._asked = STOP
        self._stop.set()

    def _poll(self) -> None:
        last = False
        while not last:
            self._stop.wait(POLL_S)
            last = self._done.is_set()  # and once more: what was told at the end counts too
            with suppress(ray.exceptions.RayError):
                if self._asked == STOP and not last:
                    ray.get(self._mailbox.ask.remote(STOP), timeout=2)
                    self._stop.clear()
                unread = self._mailbox.read_reports.remote(self._num_reports, self._num_notes)
                news: News = ray.get(unread, timeout=2)
                self._tell(news)
                if not last and self._asked != STOP:
                    self._look_after(news)

    def _tell(self, news: News) -> None:
        self._hear(news)
        for note in news.notes:
            say(note)
        self._num_notes += len(news.notes)
        self.training = any(beat.steps for beat in news.beats.values())
        for report in news.reports:
            self._show(Report(**report))
        self._num_reports += len(news.reports)

    def _look_after(self, news: News) -> None:
        stuck = find_stuck(news.beats, self._cluster.hang_timeout_s)
        if stuck is not None and news.beats[stuck.rank].pid not in self._ended:
            self._end(stuck, news.beats[stuck.rank])
        now = time.monotonic()
        if now - self._looked < NODES_S:
            return
        self._looked = now
        if not self.training:  # another group begins, and may be asked anew
            self._asked = None
            return
        draining = draining_nodes()
        if leaving := {b.host for b in news.beats.values() if b.node_id in draining}:
            self._ask_to_move(Cause.PREEMPTED, f"{', '.join(sorted(leaving))} is to be taken away")
        elif self._has_room(next(iter(news.beats.values())).world_size, draining, now):
            self._ask_to_move(Cause.RESIZED, "another worker has room")

    def _ask_to_move(self, cause: Cause, why: str) -> None:
        if self._asked == cause:
            return
        say(f"{why}: the workers save this step and begin again")
        ray.get(self._mailbox.ask.remote(cause.value), timeout=2)
        self._asked = cause

    def _has_room(self, world_size: int, draining: set[str], now: float) -> bool:
        """Whether an elastic job could have had more workers for some time."""
        if world_size >= self._cluster.max_workers or not self._one_more_fits(draining):
            self._room_since = None
            return False
        self._room_since = self._room_since or now
        if now - self._room_since < self._room_wait_s:
            return False
        self._room_since = None
        self._room_wait_s *= 2  # where it came to nothing, it is tried less and less often
        return True

    def _one_more_fits(self, draining: set[str]) -> bool:
        """Whether one node that stays has all that a worker needs."""
        return any(
            all(free.get(kind, 0) >= needed for kind, needed in self._resources.items())
            for node_id, free in ray._private.state.available_resources_per_node().items()
            if node_id not in draining
        )

    def _end(self, stuck: Stuck, beat: Beat) -> None:
        """Log where a stuck worker stands and end it; Ray Train then restarts all."""
        told = f"rank {stuck.rank} on {beat.host} (process {beat.pid}) {stuck.why}"
        ray.get(self._mailbox.hung.remote(told), timeout=2)
        self._ended.add(beat.pid)
        there = NodeAffinitySchedulingStrategy(beat.node_id, soft=False)
        examine: Any = ray.remote(num_cpus=0, max_retries=0)(stack_and_end)
        try:
            stack = ray.get(
                examine.options(scheduling_strategy=there).remote(beat.pid), timeout=EXAMINE_S
            )
        except ray.exceptions.RayError as error:
            stack = f"its machine does not answer: {type(error).__name__}"
        say(f"{told}; it is ended. Its stack:\n{stack}")


def draining_nodes() -> set[str]:
    """Ids of the nodes that have been told to go, as on a preemption notice."""
    # Ray Train finds them like this; there is no public way.
    return set(ray._private.state.state.get_draining_nodes() or ())
