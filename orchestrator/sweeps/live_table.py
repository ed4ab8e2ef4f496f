"""How a sweep stands, told while it runs: a table on a terminal, else a line now and then."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from orchestrator.console import say
from orchestrator.sweeps.records import OVER, Standing, Sweep, Trial, standings
from orchestrator.sweeps.status import Progress

LINE_INTERVAL_S = 15.0
MOST_ROWS = 20


class LiveTable:
    """Shows a sweep on stderr."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._live: Live | None = None
        self._last_line = 0.0
        self._told: set[int] = set()
        self._start: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: "Progress") -> None:
        """Show how the sweep stands."""
        sweep, now = progress.sweep, time.monotonic()
        spent = images_spent(sweep, progress.images_seen)
        self._start = self._start or (now, spent)
        summary = self._summary(sweep, spent, now)
        if self._live is not None:
            self._live.update(table_of(sweep, progress.images_seen, summary))
            return
        for trial in sweep.trials:
            if trial.is_over and trial.number not in self._told:
                self._told.add(trial.number)
                say(f"training {trial.number}: {line_of(sweep, trial)}")
        if now - self._last_line >= LINE_INTERVAL_S:
            self._last_line = now
            say(summary)

    def _summary(self, sweep: Sweep, spent: int, now: float) -> str:
        counts = [
            f"{sum(trial.status == status for trial in sweep.trials)} {status}"
            for status in ("running", "paused", "waiting", *OVER)
            if any(trial.status == status for trial in sweep.trials)
        ]
        found = standings(sweep)
        best = f"  best {told(sweep, found[0])}" if found else ""
        return f"{', '.join(counts)} of {sweep.num_trials}{self._eta(sweep, spent, now)}{best}"

    def _eta(self, sweep: Sweep, spent: int, now: float) -> str:
        """The time if no more trainings are ended early."""
        assert self._start is not None
        start, before = self._start
        left = sum(sweep.total_images - t.images_seen for t in sweep.trials if not t.is_over)
        left += (sweep.num_trials - len(sweep.trials)) * sweep.total_images
        if spent <= before or left <= 0:
            return ""
        minutes = (now - start) / (spent - before) * left / 60
        return f"  at most {minutes:.0f} min left" if minutes >= 1 else "  less than a minute left"


def images_spent(sweep: Sweep, running: Mapping[int, int]) -> int:
    """Images that all trainings have seen."""
    own = (max(t.images_seen, running.get(t.number, 0)) for t in sweep.trials)
    return sum(own) - sum(leg.from_images for t in sweep.trials for leg in t.legs[1:])


def line_of(sweep: Sweep, trial: Trial) -> str:
    """A training that is over, in a line."""
    metrics = ", ".join(
        f"{name} {value:.4g}"
        for name, value in zip(
            sweep.section.metrics, trial.looks[-1].values if trial.looks else (), strict=False
        )
    )
    values = ", ".join(f"{key} {short(value)}" for key, value in trial.values.items())
    why = f" ({trial.why.splitlines()[0]})" if trial.why else ""
    return f"{trial.status} after {trial.images_seen:,} images{why}: {metrics}; {values}"


def told(sweep: Sweep, standing: Standing) -> str:
    """A configuration and how good it is, in a line."""
    metrics = ", ".join(
        f"{name} {mean:.4g}" + (f" +- {spread:.2g}" if len(standing.trials) > 1 else "")
        for name, mean, spread in zip(
            sweep.section.metrics, standing.means, standing.spreads, strict=True
        )
    )
    values = ", ".join(f"{key} {short(value)}" for key, value in standing.values.items())
    return f"{metrics} with {values}"


def short(value: object) -> str:
    """A value with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table_of(sweep: Sweep, running: Mapping[int, int], summary: str) -> Table:
    """The trainings, those that run first, then the best."""
    names = list(sweep.section.space)
    table = Table(title=f"{sweep.name}: {summary}", title_justify="left")
    for heading in ("no.", "status", "images", *sweep.section.metrics, *names):
        table.add_column(heading, justify="right")
    order = [number for standing in standings(sweep) for number in standing.trials]
    rank = {number: place for place, number in enumerate(order)}
    trials = sorted(
        sweep.trials, key=lambda t: (t.status != "running", rank.get(t.number, len(rank)), t.number)
    )
    for trial in trials[:MOST_ROWS]:
        seen = max(trial.images_seen, running.get(trial.number, 0))
        metrics = (
            trial.looks[-1].values if trial.looks else [float("nan")] * len(sweep.section.metrics)
        )
        table.add_row(
            str(trial.number),
            trial.status,
            f"{seen:,}/{sweep.total_images:,}",
            *(f"{value:.4g}" for value in metrics),
            *(short(trial.values.get(name)) for name in names),
        )
    return table
