"""Windows over a trial's metrics: their means are the intermediate results of a sweep."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orchestrator.training.collapse import COLLAPSED


class WindowResult(NamedTuple):
    """Means of one window."""

    images_seen: int
    """At the end of the window."""
    values: tuple[float, ...]
    """One for each metric; NaN if it was not logged in the window, and all NaN if the trial has
    collapsed at its end: a collapse can make a metric such as BEGAN's M_global good."""


class MetricWindow:
    """Collects logged metrics and averages them over windows of ``every`` images.

    A window ends at each multiple of ``every`` images and at the end of the trial. It completes
    when all metrics of its last step are logged, before that step is saved. Checkpoints include the
    open window, so a resumed trial gives the same results as an uninterrupted one.
    """

    def __init__(self, metrics: Sequence[str], every: int, total: int, seen: int) -> None:
        """Open the first window of a trial of ``total`` images; results up to ``seen`` exist."""
        self._metrics, self._every, self._total, self._seen = tuple(metrics), every, total, seen
        self.load_state_dict({})

    def state_dict(self) -> dict[str, Any]:
        """Return the open window, as values that JSON can hold."""
        return {
            "start": self._start,
            "now": self._now,
            "points": {name: list(points) for name, points in self._points.items()},
            "logged_now": sorted(self._logged_now),
            "is_collapsed": self.is_collapsed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; an empty mapping means the start of a run.

        Results that were reported after that are not reported again.
        """
        self.is_collapsed = bool(state.get("is_collapsed", False))
        """Whether the samples were nearly one picture when they were last drawn."""
        if state.get("start", -1) < self._seen:
            state = {"start": self._seen, "now": self._seen, "points": {}, "logged_now": ()}
        self._start, self._now = int(state["start"]), int(state["now"])
        self._points: dict[str, list[float]] = {n: list(p) for n, p in state["points"].items()}
        self._logged_now = set(state["logged_now"])
        """Metrics that were logged at ``_now`` images."""

    def add(self, images_seen: int, points: Mapping[str, float]) -> list[WindowResult]:
        """Add metrics logged at ``images_seen``; return the windows that complete, mostly none."""
        collapse = points.get(COLLAPSED)
        if images_seen <= self._start:
            self.is_collapsed = self.is_collapsed if collapse is None else collapse > 0
            return []
        completed = []
        if images_seen > self._now:
            if self._is_due():  # a metric was not logged at the last step of the window
                completed.append(self._close())
            self._now, self._logged_now = images_seen, set()
        self.is_collapsed = self.is_collapsed if collapse is None else collapse > 0
        for name in self._metrics:
            if name in points:
                self._points.setdefault(name, []).append(points[name])
                self._logged_now.add(name)
        if self._is_due() and len(self._logged_now) == len(set(self._metrics)):
            completed.append(self._close())
        return completed

    def _is_due(self) -> bool:
        if self._now <= self._start:
            return False
        return self._now >= self._total or self._now // self._every > self._start // self._every

    def _close(self) -> WindowResult:
        points = [self._points.get(name) for name in self._metrics]
        means = tuple(math.fsum(found) / len(found) if found else math.nan for found in points)
        if self.is_collapsed:
            means = (math.nan,) * len(means)
        result = WindowResult(self._now, means)
        self._start, self._points = self._now, {}
        self._seen = self._now  # holds after a rollback to an earlier checkpoint, too
        return result
