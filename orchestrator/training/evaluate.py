"""What is looked at while training: validation metrics and the grid of samples."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Generator, Tensor

from models.base import Batch, GenerativeModel, Translates
from orchestrator.evaluation.metrics import l1_distance, psnr
from orchestrator.randomness import seed_of
from orchestrator.training.worker import Worker

METRICS = ("l1", "psnr", "l1_of_input", "l1_of_white")


@torch.no_grad()
def validate(
    model: GenerativeModel,
    batches: Iterator[Batch],
    images_per_pass: int,
    seed: int,
    worker: Worker,
) -> dict[str, float]:
    """Means over the whole validation set; every rank calls it with its own share.

    Sums and counts are added up over ranks, so that uneven shares weigh what they hold. A model
    that translates gets validation/l1 and validation/psnr, and for comparison the L1 distance of
    two answers that need no model: the input itself (l1_of_input) and white (l1_of_white).
    """
    if not isinstance(model, Translates):
        return {}
    sums = torch.zeros(len(METRICS) + 1, dtype=torch.float64)
    for batch in batches:
        values = _measure(model, batch.to(worker.device), images_per_pass, seed)
        sums += torch.tensor([len(batch), *(value.double().sum() for value in values)])
    if worker.world_size > 1:
        sums = sums.to(worker.device)
        dist.all_reduce(sums)
    count, *totals = sums.tolist()
    if not count:
        return {}
    return {f"validation/{name}": v / count for name, v in zip(METRICS, totals, strict=True)}


def _measure(model: Translates, batch: Batch, images_per_pass: int, seed: int) -> list[Tensor]:
    """The METRICS of each image of a batch of pairs."""
    assert batch.condition is not None
    noise = Generator(batch.images.device).manual_seed(
        seed_of("validation", seed, int(batch.positions[0]))
    )
    images = _translate(model, batch.condition, images_per_pass, noise)
    return [
        l1_distance(images, batch.images),
        psnr(images, batch.images),
        l1_distance(batch.condition, batch.images),
        l1_distance(torch.ones_like(images), batch.images),
    ]


def _translate(
    model: Translates, condition: Tensor, images_per_pass: int, noise: Generator
) -> Tensor:
    """Translations, ``images_per_pass`` at a time as in training; the last pass is filled up.

    Filled with earlier images: a model that normalises by batch gives another result in a
    smaller one.
    """
    count = len(condition)
    filled = condition[torch.arange(-(-count // images_per_pass) * images_per_pass) % count]
    passes = [model.translate(part, noise) for part in filled.split(images_per_pass)]
    return torch.cat(passes)[:count]


@torch.no_grad()
def sample_rows(
    model: GenerativeModel, examples: Batch, images_per_pass: int, seed: int
) -> list[list[Tensor]]:
    """Rows of the sample grid: input, output and target; or samples of a model without input.

    The same noise each time, so that two grids differ by the training between them alone.
    """
    noise = Generator(examples.images.device).manual_seed(seed_of("examples", seed))
    if isinstance(model, Translates) and examples.condition is not None:
        outputs = _translate(model, examples.condition, images_per_pass, noise)
        return [
            [a, output, y]
            for a, output, y in zip(examples.condition, outputs, examples.images, strict=True)
        ]
    images = model.sample(64, noise)
    return [list(row) for row in images.split(8)]
