"""Sweeps that are made up: their metric is a function of the values and the images seen."""

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from orchestrator.config.sweep import SweepSection, Value
from orchestrator.sweeps.records import Leg, Look, Status, Sweep, Trial

TOTAL = 900
STEP = 100
SPACE = {
    "model.lambda_k": {"loguniform": [1e-4, 1e-1]},
    "model.gamma": {"uniform": [0.3, 0.9]},
    "train.learning_rate": {"loguniform": [1e-5, 1e-2]},
}
Function = Callable[[Mapping[str, Value], int], float | tuple[float, ...]]


def bowl(values: Mapping[str, Value], images: int) -> float:
    """Best at a learning rate of 1e-4 and a gamma of 0.5; lambda_k does nothing."""
    rate, gamma = float(str(values["train.learning_rate"])), float(str(values["model.gamma"]))
    return 0.1 + (math.log10(rate) + 4) ** 2 + (gamma - 0.5) ** 2 + math.exp(-images / 200)


def drawn(space: Mapping[str, Mapping[str, list[Any]]], source: random.Random) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for path, given in space.items():
        [(kind, among)] = given.items()
        match kind:
            case "loguniform":
                values[path] = 10 ** source.uniform(*map(math.log10, among))
            case "uniform":
                values[path] = source.uniform(*among)
            case _:
                values[path] = source.choice(among)
    return values


def made_up(
    count: int,
    function: Function = bowl,
    *,
    space: Mapping[str, Any] = SPACE,
    ends: Mapping[int, tuple[Status, int]] | None = None,
    **section: Any,
) -> Sweep:
    """A sweep whose metric is ``function``; ``ends`` says which trials did not finish, and when."""
    source = random.Random(1)
    given = {"metric": "validation/l1", "trials": max(count, 1), **section, "space": space}
    trials = []
    for number in range(count):
        values = drawn(space, source)
        status, end = (ends or {}).get(number, ("finished", TOTAL))
        looks = []
        for images in range(STEP, end + 1, STEP):
            found = function(values, images)
            looks.append(Look(images, found if isinstance(found, tuple) else (found,), 0))
        trials.append(Trial(number, number, 0, [Leg(f"run-{number}", values)], status, looks=looks))
    return Sweep(
        "faces-search", "faces", SweepSection.model_validate(given), TOTAL, trials, "finished"
    )


def lines(figure: Figure | str, axes: int = 0) -> dict[Any, tuple[list[float], list[float]]]:
    """What each line of a figure is drawn from, by its name."""
    assert isinstance(figure, Figure)
    return {
        line.get_gid(): (list(line.get_xdata()), list(line.get_ydata()))  # type: ignore[arg-type]
        for line in figure.axes[axes].lines
    }
