"""How good the intervals of metrics are, on features of known distributions.

    python benchmarks/evaluation_intervals.py

The spread of a metric over many drawings is the truth, which an interval estimates from one of
them. Prints Markdown for docs/evaluation.md. Needs only torch and pydantic.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import astuple

import torch
from torch import Generator, Tensor

from orchestrator.evaluation.frechet import frechet_distance
from orchestrator.evaluation.intervals import Interval, halves_intervals
from orchestrator.evaluation.kid import kid, kid_interval
from orchestrator.evaluation.neighbours import NAMES, Distances, neighbourhoods

Found = list[tuple[float, Interval]]


def drawn(count: int, size: int, seed: int, *, shift: float = 0, scale: float = 1) -> Tensor:
    """Gaussian features (count, size) with most of their variance in 8 directions."""
    noise = Generator().manual_seed(seed)
    directions = torch.randn(8, size, generator=Generator().manual_seed(1)) / 8**0.5
    common = scale * torch.randn(count, 8, generator=noise) @ directions
    return common + 0.3 * torch.randn(count, size, generator=noise) + shift


def measured(x: Tensor, y: Tensor, seed: int) -> Found:
    """Measure all metrics of generated x and real y with their intervals."""
    distances = Distances.of(y, x)

    def metrics(of: Sequence[Tensor]) -> list[float]:
        near = neighbourhoods(distances.subset(of[1], of[0]))
        return [frechet_distance(x[of[0]], y[of[1]]), *astuple(near)]

    values = metrics([torch.arange(len(x)), torch.arange(len(y))])
    intervals = halves_intervals(metrics, (len(x), len(y)), seed=seed)
    of_kid = (kid(x, y), kid_interval(x, y, seed=seed))
    return [of_kid, *zip(values, intervals, strict=True)]


def summary(found: Found) -> str:
    """Compare the mean width of the intervals with the spread of the values."""
    mean = statistics.mean(value for value, _ in found)
    spread = statistics.stdev(value for value, _ in found)
    errors = [(interval.high - interval.low) / (2 * 1.96) for _, interval in found]
    covered = statistics.mean(mean in interval for _, interval in found)
    return f"{statistics.mean(errors) / spread:.2f}, {100 * covered:.0f} %"


def main() -> None:
    """Draw, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--drawings", type=int, default=60)
    parser.add_argument("--images", type=int, default=200)
    arguments = parser.parse_args()
    cases = {
        "64 features": {"size": 64, "shift": 0.3, "scale": 0.8},
        "400 features": {"size": 400, "shift": 0.3, "scale": 0.8},
        "64 features, one distribution": {"size": 64, "shift": 0.0, "scale": 1.0},
    }
    columns = []
    for case in cases.values():
        size, shift, scale = int(case["size"]), case["shift"], case["scale"]
        found = [
            measured(
                drawn(arguments.images, size, 2 * seed, shift=shift, scale=scale),
                drawn(arguments.images, size, 2 * seed + 1),
                seed,
            )
            for seed in range(arguments.drawings)
        ]
        columns.append([summary(list(each)) for each in zip(*found, strict=True)])
    print(f"| metric | {' | '.join(cases)} |\n|{'---|' * (len(cases) + 1)}")
    for name, *cells in zip(("KID", "Frechet distance", *NAMES), *columns, strict=True):
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
