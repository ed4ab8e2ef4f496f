"""What each metric says of real images that were spoilt in known ways.

    orchestrator data fetch openmoji data/openmoji-64 --size 64
    orchestrator data export data/openmoji-64/train colour --field b
    python benchmarks/evaluation.py colour

Three random parts of the folder's images, n each, stand for the training set, the reference and a
generator. The generator's part is measured as it is, blurred, without colour, with noise and with
some images replaced by training images. Prints Markdown for docs/evaluation.md, and the CPU time
of the extractor for an image.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from orchestrator.data.format.image_files import open_image
from orchestrator.evaluation.extractors.extractor import Extractor, extract
from orchestrator.evaluation.extractors.lite0 import Lite0
from orchestrator.evaluation.feature_set import FeatureSet
from orchestrator.evaluation.measure import (
    measure_frechet,
    measure_kid,
    measure_nearest,
    measure_neighbourhoods,
)
from orchestrator.evaluation.report import EvaluationReport


def read(folder: Path) -> Tensor:
    """Read all images of a folder as uint8 (N, 3, H, W)."""
    paths = sorted(path for path in folder.iterdir() if path.suffix == ".png")
    arrays = [np.asarray(open_image(path).convert("RGB")) for path in paths]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def blurred(images: Tensor) -> Tensor:
    """Blur with a Gaussian of a deviation of 1 pixel."""
    taps = torch.exp(-(torch.arange(-4.0, 5) ** 2) / 2)
    kernel = (taps[:, None] * taps / taps.sum() ** 2).expand(3, 1, -1, -1)
    padded = F.pad(images.float(), (4, 4, 4, 4), mode="replicate")
    return F.conv2d(padded, kernel, groups=3).round().byte()


def without_colour(images: Tensor) -> Tensor:
    """Replace each pixel by the mean of its channels."""
    return images.float().mean(1, keepdim=True).round().byte().expand(-1, 3, -1, -1)


def noisy(images: Tensor) -> Tensor:
    """Add noise with a deviation of 13 of 255 levels."""
    noise = 13 * torch.randn(images.shape, generator=Generator().manual_seed(1))
    return (images + noise).round().clamp(0, 255).byte()


def spoilt(real: Tensor, training: Tensor) -> dict[str, Tensor]:
    """Return the sets to measure, by what was done to the real images."""
    copies = len(real) // 10
    return {
        "real images": real,
        "blurred": blurred(real),
        "without colour": without_colour(real),
        "with noise": noisy(real),
        "10 % copies": torch.cat([training[:copies], real[copies:]]),
        "only copies": training,
    }


def row(title: str, training: FeatureSet, reference: FeatureSet, generated: FeatureSet) -> str:
    """Return a line of the table."""
    report = EvaluationReport(
        (
            *measure_kid(reference, generated),
            *measure_frechet(reference, generated),
            *measure_neighbourhoods(reference, generated),
            *measure_nearest(training, reference, generated),
        )
    )
    cells = []
    for each in report.measurements:
        scale, digits = (1000, 2) if each.metric.startswith("kid") else (1, 3)
        if each.metric.startswith("frechet"):
            digits = 1
        assert each.interval is not None
        low, high = (f"{scale * end:.{digits}f}" for end in (each.interval.low, each.interval.high))
        cells.append(f"{scale * each.value:.{digits}f} ({low} to {high})")
    alarm = "**yes**" if report.measurements[-1].details["alarm"] else "no"
    return f"| {title} | {' | '.join([*cells, alarm])} |"


def floors(reference: FeatureSet) -> str:
    """Return the line of the floors, which are those of halves of the reference."""
    found = (
        *measure_kid(reference, reference),
        *measure_frechet(reference, reference),
        *measure_neighbourhoods(reference, reference),
    )
    cells = []
    for each in found:
        assert each.floor is not None
        scale = 1000 if each.metric.startswith("kid") else 1
        cells.append(f"{scale * each.floor.mean:.3g}")
        n = each.floor.n
    return f"| floor, n {n} | {' | '.join(cells)} | | |"


def features(extractor: Extractor, images: Tensor, what: str) -> FeatureSet:
    """Extract, and print the CPU time per image."""
    start = time.process_time()
    found = extract(extractor, images.split(64), what)
    milliseconds = 1000 * (time.process_time() - start) / len(images)
    print(f"{what}: {milliseconds:.1f} ms of CPU time per image")
    return found


def main() -> None:
    """Read, extract, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="PNG images of one size")
    parser.add_argument("--n", type=int, default=600, help="images of each part")
    arguments = parser.parse_args()
    images, n = read(arguments.folder), arguments.n
    order = torch.randperm(len(images), generator=Generator().manual_seed(0))
    training, reference, real = (images[order[i * n : (i + 1) * n]] for i in range(3))
    extractor = Lite0()
    known = features(extractor, training, "training images")
    measured = features(extractor, reference, "reference")
    start = time.process_time()
    lines = [
        row(title, known, measured, features(extractor, each, title))
        for title, each in spoilt(real, training).items()
    ]
    print(f"{time.process_time() - start:.0f} s of CPU time for {len(lines)} sets")
    names = "KID x 1000 | Frechet | precision | recall | density | coverage | nearest | alarm"
    print(f"\n| n = {n} | {names} |\n|{'---|' * 9}")
    print("\n".join([*lines, floors(measured)]))


if __name__ == "__main__":
    main()
