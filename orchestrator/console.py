"""Messages and progress for the user, on stderr: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from orchestrator.redaction import mask

LINE_INTERVAL_S = 15.0
"""Seconds between two lines of progress when stderr is not a terminal."""


def log_info(text: str) -> None:
    """Print a line for the user on stderr, without credentials."""
    sys.stderr.write(f"{mask(text)}\n")
    sys.stderr.flush()


@dataclass(frozen=True)
class ProgressReport:
    """Progress of a training run, with its metrics."""

    images_seen: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Newest value of each metric: losses, validation, images_per_s."""
    points: Mapping[str, float] = field(default_factory=dict)
    """Metrics that were logged at this point."""

    @property
    def losses(self) -> str:
        """The losses and the first validation metric as text."""
        shown = [name for name in self.metrics if name.startswith("validation/")][:1]
        return "  ".join(
            f"{name.removesuffix('/loss')} {value:.3g}"
            for name, value in self.metrics.items()
            if name.endswith("/loss") or name in (*shown, "began/m_global")
        )


class ProgressDisplay:
    """Shows progress on stderr: a bar on a terminal, else a line every 15 s and at the end."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.bar: Progress | None = None
        self._last_line = 0.0
        self._start: tuple[float, int] | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.bar = Progress(
                BarColumn(24),
                TextColumn("{task.fields[images]}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[losses]}"),
                console=self.console,
            )
            self.bar.start()
            self.task = self.bar.add_task("", total=None, images="starting", losses="")
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, report: ProgressReport) -> None:
        """Update the bar, or print a line if one is due."""
        rate = report.metrics.get("images_per_s")
        speed = "" if rate is None else f"{rate:.1f} images/s"
        images = f"{report.images_seen:,}/{report.total:,} images"
        if self.bar is not None:
            self.bar.update(
                self.task,
                completed=report.images_seen,
                total=report.total,
                images=f"{images}  {speed}",
                losses=report.losses,
            )
            return
        now = time.monotonic()
        self._start = self._start or (now, report.images_seen)
        if now - self._last_line >= LINE_INTERVAL_S or report.images_seen >= report.total:
            self._last_line = now
            log_info(f"{images}  {speed}  {self._eta(report, now)}{report.losses}")

    def _eta(self, report: ProgressReport, now: float) -> str:
        assert self._start is not None
        start, images = self._start
        if report.images_seen <= images or report.images_seen >= report.total:
            return ""
        left = (now - start) / (report.images_seen - images) * (report.total - report.images_seen)
        minutes, seconds = divmod(round(left), 60)
        return f"ETA {minutes}:{seconds:02d}  "
