"""From a training's points to the looks by which a sweep judges it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Seen(NamedTuple):
    """What a look found."""

    images_seen: int
    values: tuple[float, ...]
    """The mean of each metric's points since the look before; NaN where there was none."""


class Looks:
    """A look at each multiple of ``every`` images and at the end.

    It is complete with the points of the very step that reaches the multiple, before that step is
    saved. What it has gathered for the next one is saved too, so a training that goes on from a
    checkpoint gives the same looks as one that was not interrupted.
    """

    def __init__(self, metrics: Sequence[str], every: int, total: int, seen: int) -> None:
        """``seen`` are the images at the last look of an earlier process, which is not repeated."""
        self._metrics, self._every, self._total = tuple(metrics), every, total
        self._seen = seen
        self.load_state_dict({})

    def state_dict(self) -> dict[str, Any]:
        """Return the window's state, as values that JSON can hold."""
        return {
            "last": self._last,
            "now": self._now,
            "points": {name: list(points) for name, points in self._points.items()},
            "have": sorted(self._have),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; an empty mapping means the start of a run.

        Results that were reported after that are not reported again.
        """
        if state.get("last", -1) < self._seen:
            state = {"last": self._seen, "now": self._seen, "points": {}, "have": ()}
        self._last, self._now = int(state["last"]), int(state["now"])
        self._points: dict[str, list[float]] = {n: list(p) for n, p in state["points"].items()}
        self._have = set(state["have"])
        """Metrics that have a point of this moment."""

    def add(self, images_seen: int, points: Mapping[str, float]) -> list[Seen]:
        """Take the points of a moment; the looks that are complete with them, mostly none."""
        if images_seen <= self._last:
            return []
        found = []
        if images_seen > self._now:
            if self._is_due():  # a metric had no point at that very step
                found.append(self._look())
            self._now, self._have = images_seen, set()
        for name in self._metrics:
            if name in points:
                self._points.setdefault(name, []).append(points[name])
                self._have.add(name)
        if self._is_due() and len(self._have) == len(set(self._metrics)):
            found.append(self._look())
        return found

    def _is_due(self) -> bool:
        if self._now <= self._last:
            return False
        return self._now >= self._total or self._now // self._every > self._last // self._every

    def _look(self) -> Seen:
        means = (_mean(self._points.get(name, ())) for name in self._metrics)
        found = Seen(self._now, tuple(means))
        self._last, self._points = self._now, {}
        self._seen = self._now  # also where the training goes back to an earlier checkpoint
        return found


def _mean(points: Sequence[float]) -> float:
    return math.fsum(points) / len(points) if points else math.nan
