"""Where workers leave what the driver must know. Imports little: its actor is to start at once."""

import time
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.cluster.failure_policy import Cause, Decision, Failure
from orchestrator.errors import OrchestratorError

STOP = "stop"
"""What the workers are asked for when someone stops the run."""
SILENT_S = 25.0
"""A rank without a sign of life for so long is stopped or swapped out; beats come every second."""
ENDED = "ended"
"""What a rank does last; others may still be writing the checkpoint."""


@dataclass(frozen=True)
class Beat:
    """A sign of life of one rank."""

    world_size: int
    node_id: str
    host: str
    pid: int
    doing: str
    """What it has been doing for ``for_s`` seconds."""
    for_s: float
    steps: int
    """Steps that it has begun in this process."""
    longest_step_s: float
    """Of those after the first, which compiles and allocates."""
    group: Any = None
    """Ray's placement group of the workers."""
    saved_at: float | None = None
    """When its newest checkpoint was committed, by its clock; of rank 0."""
    gpu_bytes: int = 0
    """Memory of GPUs that it holds."""
    age_s: float = 0.0
    """How long ago it came, when it is read."""


@dataclass
class News:
    """What the workers have told, the newest of each kind."""

    report: dict[str, Any] | None = None
    """The fields of the newest Report, from rank 0."""
    reports: list[dict[str, Any]] = field(default_factory=list)
    """Those that were not read before."""
    outcome: dict[str, Any] | None = None
    """The fields of an Outcome, from rank 0, when training has ended."""
    error: OrchestratorError | None = None
    """What no retry can mend."""
    notes: list[str] = field(default_factory=list)
    """What a person is to be told, in the order of arrival; of these too those not read before."""
    beats: dict[int, Beat] = field(default_factory=dict)
    """Of the ranks of the present group."""
    failures: list[Failure] = field(default_factory=list)
    decision: Decision | None = None
    """The last one."""


class Mailbox:
    """An actor that outlives a restart of the workers."""

    def __init__(self) -> None:
        self.news = News()
        self._wish: str | None = None
        self._hung: str | None = None
        self._came: dict[int, float] = {}
        self._reports: list[dict[str, Any]] = []
        self._num_read = 0

    def tell(self, **news: Any) -> None:
        """Replace what was told before under the names of News."""
        for name, value in news.items():
            setattr(self.news, name, value)
        if "report" in news:
            self._reports.append(news["report"])

    def note(self, text: str) -> None:
        """Keep words for the driver to say."""
        self.news.notes.append(text)

    def beat(self, rank: int, beat: Beat) -> str | None:
        """Take a sign of life; what the workers are asked for: see ``ask``."""
        self.news.beats[rank] = beat
        self._came[rank] = time.monotonic()
        return self._wish

    def ask(self, wish: str | None) -> None:
        """Ask the workers to save and end: ``STOP``, or a Cause for which to begin again."""
        self._wish = wish

    def wish(self) -> str | None:
        """What the workers are asked for now."""
        return self._wish

    def hung(self, told: str) -> None:
        """The driver ends a worker that is stuck: the failure that comes next is due to that."""
        self._hung = told

    def failed(self, failure: Failure) -> list[Failure]:
        """Take the end of a group; all failures so far. The next group begins anew."""
        if self._hung is not None:
            failure = replace(failure, cause=Cause.HUNG, told=self._hung)
            self._hung = None
        self.news.failures.append(failure)
        self.news.beats, self._came = {}, {}
        if self._wish != STOP:
            self._wish = None
        return self.news.failures

    def failures(self) -> list[Failure]:
        """How the groups before this one have ended, for a worker that begins.

        Were each one sent all news, n workers would get the signs of life of n * n / 2.
        """
        return self.news.failures

    def read_reports(self, num_read: int, num_notes: int) -> News:
        """As ``read``, with the reports and the notes after those that its one reader has."""
        del self._reports[: num_read - self._num_read]
        self._num_read = num_read
        news = self.read()
        return replace(news, reports=list(self._reports), notes=news.notes[num_notes:])

    def read(self) -> News:
        """All that has been told, but for the reports before the newest."""
        now = time.monotonic()
        aged = {r: replace(b, age_s=now - self._came[r]) for r, b in self.news.beats.items()}
        return replace(self.news, beats=aged)
