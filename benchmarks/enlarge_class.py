"""Whether a small class helps a classifier more when its own generator enlarges it.

    orchestrator data fetch mnist data/mnist-32 --size 32
    orchestrator data cp data/mnist-32 data/mnist-16 --size 16
    python -m benchmarks.enlarge_class data/mnist-16

For each seed, 50 images of one digit and 200 of each other one are drawn from the training set and
packed. jobs/age_cgan.yaml trains on them and draws 150 images of the small class. A small
convolutional classifier then sees equally many images of three sets: the cut one, the cut one with
the real images of the small class repeated as often as images were generated, and the cut and the
generated set mixed by their sizes. Packing, training, drawing and mixing are the product's; the
classifier is plain PyTorch. Prints accuracies on the held-out images: of the small class, and of
all classes.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from orchestrator.config.job import Job
from orchestrator.data.format.images import to_png
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.loading.stream import ShardStream
from orchestrator.image_grid import to_pixels
from orchestrator.model_evaluation.reference_set import ReferenceSet

ROOT = Path(__file__).parents[1]
SIZE, CLASSES = 16, 10
READ = 12_000
"""Training images that the seeds choose from: the first of a fixed random order."""
BATCH = 64
ARMS = ("cut", "repeated", "generated")
# With l1 and 1e-3, one of two generators drew only black, the median of nearly every pixel.
MODEL: dict[str, object] = {
    "image_size": SIZE, "channels": 1, "classes": CLASSES, "filters": 16,
    "discriminator_filters": 8, "learning_rate": 5e-4, "reconstruction": "l2",
}  # fmt: skip


class Images(NamedTuple):
    """Images with their classes."""

    pixels: Tensor
    """Float32 (N, 1, H, W) in [-1, 1]."""
    labels: Tensor
    """Int64 (N,)."""


class Scores(NamedTuple):
    """Shares of the held-out images that are called what they are."""

    small_class: float
    all_classes: float


def read(uri: str, most: int) -> Images:
    """Read images of a packed set, the same in each call."""
    packed = open_set(uri)
    batches = list(ReferenceSet(packed, min(most, packed.num_samples)).batches())
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return Images(torch.cat([batch.images for batch in batches]), torch.cat(labels))


def command(folder: Path, *words: object) -> None:
    """Run an orchestrator command in ``folder``; its output goes to a log there."""
    with (folder / "log.txt").open("a") as log:
        subprocess.run(
            [sys.executable, "-m", "orchestrator", *map(str, words)],
            cwd=folder, check=True, stdout=log, stderr=log,
        )  # fmt: skip


def choose(images: Images, small: int, few: int, others: int, seed: int) -> Iterator[int]:
    """Yield numbers of images: ``few`` of the class ``small``, ``others`` of each other one."""
    order = torch.randperm(len(images.labels), generator=Generator().manual_seed(seed))
    for label in range(CLASSES):
        of_class = order[images.labels[order] == label]
        yield from of_class[: few if label == small else others].tolist()


def write_folders(images: Images, chosen: list[int], small: int, copies: int, root: Path) -> None:
    """Write ``cut``, and ``repeated`` with ``copies`` more of ``small``; a folder per class."""
    for number in chosen:
        label = int(images.labels[number])
        png = to_png(Image.fromarray(to_pixels(images.pixels[number])).convert("L"))
        for arm in ("cut", "repeated"):
            again = copies if (arm, label) == ("repeated", small) else 0
            place = root / arm / str(label)
            place.mkdir(parents=True, exist_ok=True)
            for copy in range(1 + again):
                (place / f"{number:05d}-{copy}.png").write_bytes(png)


def train_generator(folder: Path, images: int, seed: int) -> None:
    """Train jobs/age_cgan.yaml on the cut set and register it."""
    settings = {
        **{f"model.{key}": value for key, value in MODEL.items()},
        "data.source": "null", "data.train": "packed/cut/train", "data.validation": "null",
        "train.epochs": "null", "train.images": images, "train.batch_size": BATCH,
        "train.seed": seed, "train.validate_every": "null", "train.sample_every": images,
        "train.checkpoint_every": images, "cluster.workers": 1, "storage": "runs",
        "tracking.uri": "sqlite:///mlflow.db",
    }  # fmt: skip
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command(folder, "run", ROOT / "jobs/age_cgan.yaml", "--local", *options)


def classifier() -> nn.Module:
    """Two convolutions and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * (SIZE // 4) ** 2, 64), nn.ReLU(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def train_classifier(train: object, images: int, seed: int) -> nn.Module:
    """Train on ``data.train`` of a job, with Adam at 1e-3."""
    job = Job.model_validate(
        {
            "name": "classifier",
            "model": {"name": "age_cgan", **MODEL},  # for its images and labels alone
            "data": {"train": train},
            "train": {"images": images, "batch_size": BATCH, "seed": seed},
        }
    )
    torch.manual_seed(seed)
    model = classifier()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    batches = ShardStream(job, 0, 1).training(0)
    for batch in islice(batches, images // BATCH):
        optimizer.zero_grad()
        assert batch.labels is not None
        F.cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()
    batches.close()
    return model.eval()


@torch.no_grad()
def score(model: nn.Module, held_out: Images, small: int) -> Scores:
    """Compare what the classifier says of the held-out images with their classes."""
    said = torch.cat([model(part).argmax(1) for part in held_out.pixels.split(500)])
    right = (said == held_out.labels).double()
    return Scores(float(right[held_out.labels == small].mean()), float(right.mean()))


def run_seed(options: argparse.Namespace, training: Images, held_out: Images, seed: int) -> dict[
    str, Scores
]:  # fmt: skip
    """Cut, generate and classify with one seed; return the scores by arm."""
    small, few, added = options.small_class, options.few, options.few * options.copies
    with tempfile.TemporaryDirectory(prefix="enlarge-") as name:
        folder = Path(name)
        chosen = list(choose(training, small, few, options.others, seed))
        write_folders(training, chosen, small, options.copies, folder)
        for arm in ("cut", "repeated"):
            command(
                folder, "data", "pack", arm, f"packed/{arm}", "--labels", "--grey",
                "--validation-share", 0,
            )  # fmt: skip
        train_generator(folder, options.generator_images, seed)
        command(
            folder, "sample", "age_cgan@candidate", "--labels", f"{small}:{added}", "--output",
            "generated", "--pack", "--tracking-uri", "sqlite:///mlflow.db",
        )  # fmt: skip
        if options.keep:
            shown = options.keep.absolute() / str(seed)
            command(folder, "data", "export", "generated", shown, "--field", "image")
        cut = f"{folder}/packed/cut/train"
        mixed = [
            {"path": cut, "weight": float(len(chosen))},
            {"path": f"{folder}/generated", "weight": float(added)},
        ]
        sets = {"cut": cut, "repeated": f"{folder}/packed/repeated/train", "generated": mixed}
        return {
            arm: score(train_classifier(train, options.classifier_images, seed), held_out, small)
            for arm, train in sets.items()
        }


def row(arm: str, found: list[Scores]) -> str:
    """Return a line of the table: mean, smallest and largest value over the seeds."""
    cells = []
    for values in zip(*found, strict=True):
        mean, low, high = (100 * f(values) for f in (statistics.mean, min, max))
        cells.append(f"{mean:.1f} ({low:.1f} to {high:.1f})")
    return f"| {arm} | {' | '.join(cells)} |"


def difference(found: list[dict[str, Scores]], first: str, second: str, name: str) -> str:
    """Return the mean difference of two arms over the seeds, +- its standard error."""
    each = [100 * (getattr(by[first], name) - getattr(by[second], name)) for by in found]
    error = statistics.stdev(each) / len(each) ** 0.5
    return f"{name}, {first} - {second}: {statistics.mean(each):+.2f} points, +- {error:.2f}"


def main() -> None:
    """Measure with each seed and print Markdown; see the module docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="folder with the sets train and validation, at 16 px")
    parser.add_argument("--small-class", type=int, default=8)
    parser.add_argument("--few", type=int, default=50, help="real images of the small class")
    parser.add_argument("--others", type=int, default=200, help="images of each other class")
    parser.add_argument("--copies", type=int, default=3, help="images added for each of the few")
    parser.add_argument("--generator-images", type=int, default=30_016)
    parser.add_argument("--classifier-images", type=int, default=32_000)
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--keep", type=Path, help="folder for the generated images")
    options = parser.parse_args()
    start = time.monotonic()
    training = read(f"{options.data}/train", READ)
    held_out = read(f"{options.data}/validation", 10_000)
    found = []
    for seed in range(options.seeds):
        found.append(run_seed(options, training, held_out, seed))
        print(f"seed {seed}, {time.monotonic() - start:.0f} s: {found[-1]}", file=sys.stderr)
    print("| training set | small class, % | all classes, % |\n|---|---|---|")
    for arm in ARMS:
        print(row(arm, [by[arm] for by in found]))
    for name in Scores._fields:
        print(difference(found, "generated", "cut", name))
        print(difference(found, "generated", "repeated", name))


if __name__ == "__main__":
    main()
