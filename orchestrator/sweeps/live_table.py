"""Live status of a sweep: a table on a terminal, otherwise a line now and then."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from orchestrator.console import log_info
from orchestrator.sweeps.records import TERMINAL, RankedConfig, Sweep, Trial, rank_configs
from orchestrator.sweeps.status import SweepStatus

LINE_INTERVAL_S = 15.0
MAX_ROWS = 20


class LiveTable:
    """Live display of a sweep on stderr."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._live: Live | None = None
        self._last_line = 0.0
        self._logged: set[int] = set()
        self._start: tuple[float, int] | None = None
        """Time and images seen at the first update."""

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, status: SweepStatus) -> None:
        """Update the display."""
        sweep, now = status.sweep, time.monotonic()
        total = count_images(sweep, status.images_seen)
        self._start = self._start or (now, total)
        summary = self._summarize(sweep, total, now)
        if self._live is not None:
            self._live.update(build_table(sweep, status.images_seen, summary))
            return
        for trial in sweep.trials:
            if trial.is_over and trial.number not in self._logged:
                self._logged.add(trial.number)
                log_info(f"trial {trial.number}: {format_trial(sweep, trial)}")
        if now - self._last_line >= LINE_INTERVAL_S:
            self._last_line = now
            log_info(summary)

    def _summarize(self, sweep: Sweep, total: int, now: float) -> str:
        found: Counter[str] = Counter(trial.status for trial in sweep.trials)
        shown = ("running", "paused", "waiting", *TERMINAL)
        counts = [f"{found[status]} {status}" for status in shown if found[status]]
        ranked = rank_configs(sweep)
        best = f"  best {format_config(sweep, ranked[0])}" if ranked else ""
        eta = self._format_eta(sweep, total, now)
        return f"{', '.join(counts)} of {sweep.num_trials}{eta}{best}"

    def _format_eta(self, sweep: Sweep, total: int, now: float) -> str:
        """Estimate the time left if no more trials stop early."""
        assert self._start is not None
        start, before = self._start
        left = sum(sweep.total_images - t.images_seen for t in sweep.trials if not t.is_over)
        left += (sweep.num_trials - len(sweep.trials)) * sweep.total_images
        if total <= before or left <= 0:
            return ""
        minutes = (now - start) / (total - before) * left / 60
        return f"  at most {minutes:.0f} min left" if minutes >= 1 else "  less than a minute left"


def count_images(sweep: Sweep, running: Mapping[int, int]) -> int:
    """Count the images that all trials have seen; a copy's parent is not counted again."""
    seen = (max(t.images_seen, running.get(t.number, 0)) for t in sweep.trials)
    return sum(seen) - sum(s.start_images for t in sweep.trials for s in t.segments[1:])


def format_trial(sweep: Sweep, trial: Trial) -> str:
    """Format a trial that is over as one line."""
    values = trial.results[-1].values if trial.results else ()
    pairs = zip(sweep.section.metrics, values, strict=False)
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in pairs)
    reason = f" ({trial.reason.splitlines()[0]})" if trial.reason else ""
    seen = f"{trial.images_seen:,} images"
    return f"{trial.status} after {seen}{reason}: {metrics}; {format_values(trial.values)}"


def format_config(sweep: Sweep, config: RankedConfig) -> str:
    """Format a configuration and its metrics as one line."""
    columns = zip(sweep.section.metrics, config.means, config.spreads, strict=True)
    metrics = ", ".join(
        f"{name} {mean:.4g}" + (f" +- {spread:.2g}" if len(config.trials) > 1 else "")
        for name, mean, spread in columns
    )
    return f"{metrics} with {format_values(config.values)}"


def format_values(values: Mapping[str, object]) -> str:
    """Format fields and their values in one line."""
    return ", ".join(f"{name} {format_value(value)}" for name, value in values.items())


def format_value(value: object) -> str:
    """Format a value, a float with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def build_table(sweep: Sweep, running: Mapping[int, int], summary: str) -> Table:
    """Build the table of trials: the ``running`` ones (number -> images) first, then the best."""
    fields = list(sweep.section.space)
    table = Table(title=f"{sweep.name}: {summary}", title_justify="left")
    for heading in ("trial", "status", "images", *sweep.section.metrics, *fields):
        table.add_column(heading, justify="right")
    best_first = [number for config in rank_configs(sweep) for number in config.trials]
    rank = {number: position for position, number in enumerate(best_first)}
    trials = sorted(
        sweep.trials, key=lambda t: (t.status != "running", rank.get(t.number, len(rank)), t.number)
    )
    for trial in trials[:MAX_ROWS]:
        seen = max(trial.images_seen, running.get(trial.number, 0))
        metrics = (trial.last_value(k) for k in range(len(sweep.section.metrics)))
        table.add_row(
            str(trial.number),
            trial.status,
            f"{seen:,}/{sweep.total_images:,}",
            *(f"{value:.4g}" for value in metrics),
            *(format_value(trial.values.get(name)) for name in fields),
        )
    return table
