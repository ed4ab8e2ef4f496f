"""Synthetic sweeps whose metric is a function of the values and the images seen."""

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from orchestrator.config.sweep import SweepSection, Value
from orchestrator.sweeps.records import IntermediateResult, Status, Sweep, Trial, TrialSegment

TOTAL = 900
STEP = 100
SPACE = {
    "model.lambda_k": {"loguniform": [1e-4, 1e-1]},
    "model.gamma": {"uniform": [0.3, 0.9]},
    "train.learning_rate": {"loguniform": [1e-5, 1e-2]},
}
Function = Callable[[Mapping[str, Value], int], float | tuple[float, ...]]


def bowl(values: Mapping[str, Value], images: int) -> float:
    """Quadratic bowl: best at a learning rate of 1e-4 and a gamma of 0.5, whatever lambda_k is."""
    rate, gamma = float(str(values["train.learning_rate"])), float(str(values["model.gamma"]))
    return 0.1 + (math.log10(rate) + 4) ** 2 + (gamma - 0.5) ** 2 + math.exp(-images / 200)


def sample_values(
    space: Mapping[str, Mapping[str, list[Any]]], rng: random.Random
) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for path, given in space.items():
        [(kind, args)] = given.items()
        match kind:
            case "loguniform":
                values[path] = 10 ** rng.uniform(*map(math.log10, args))
            case "uniform":
                values[path] = rng.uniform(*args)
            case _:
                values[path] = rng.choice(args)
    return values


def synthetic_sweep(
    count: int,
    function: Function = bowl,
    *,
    space: Mapping[str, Any] = SPACE,
    ends: Mapping[int, tuple[Status, int]] | None = None,
    **section: Any,
) -> Sweep:
    """Make a sweep with the metric ``function``.

    Args:
        ends: status and images of the trials that did not finish, by number.
    """
    rng = random.Random(1)
    given = {"metric": "validation/l1", "trials": max(count, 1), **section, "space": space}
    trials = []
    for number in range(count):
        values = sample_values(space, rng)
        status, end = (ends or {}).get(number, ("finished", TOTAL))
        results = []
        for images in range(STEP, end + 1, STEP):
            found = function(values, images)
            results.append(
                IntermediateResult(images, found if isinstance(found, tuple) else (found,), 0)
            )
        trials.append(
            Trial(
                number, number, 0, [TrialSegment(f"run-{number}", values)], status, results=results
            )
        )
    return Sweep(
        "faces-sweep", "faces", SweepSection.model_validate(given), TOTAL, trials, "finished"
    )


def line_data(figure: Figure | str, axes: int = 0) -> dict[Any, tuple[list[float], list[float]]]:
    """Read the data of each line of a figure, by its id."""
    assert isinstance(figure, Figure)
    return {
        line.get_gid(): (list(line.get_xdata()), list(line.get_ydata()))  # type: ignore[arg-type]
        for line in figure.axes[axes].lines
    }
