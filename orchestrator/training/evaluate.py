"""What is looked at while training: validation metrics, the grid of samples and other pictures."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch import Generator, Tensor

from orchestrator.config.job import Job
from orchestrator.evaluation.image_metrics import l1_distance, psnr
from orchestrator.evaluation.kid import mmd2, random_features
from orchestrator.models.base import (
    Batch,
    GenerativeModel,
    HasLikelihood,
    Reconstructs,
    Rows,
    Translates,
)
from orchestrator.seeding import seed_of
from orchestrator.training.interfaces import Worker

COLUMNS = 8
MOST_COMPARED = 1024
"""Images at the beginning of the validation set that random_kid compares: its cost grows with
their square, and all ranks hold their features."""


@torch.no_grad()
def validate(
    model: GenerativeModel, batches: Iterator[Batch], job: Job, worker: Worker
) -> dict[str, float]:
    """Means over the whole validation set; every rank calls it with its own share.

    Sums and counts are added up over ranks, so that uneven shares weigh what they hold.

    A model that translates gets validation/l1 and validation/psnr, and for comparison the L1
    distance of two answers that need no model: the input itself (l1_of_input) and white
    (l1_of_white). It also gets validation/random_kid, which is no mean over images but a distance
    between its outputs and the targets as sets: evaluation/kid.py. A model that reconstructs gets
    l1 and psnr of its reconstructions. A model with a likelihood gets nats per image and bits per
    dimension; on images that the stream made binary the names say so: nats_binarized_dynamic.
    """
    sums: dict[str, Tensor] = {}
    compared = _Compared()
    count = torch.zeros((), dtype=torch.float64, device=worker.device)
    for batch in batches:
        count += len(batch)
        for name, values in _measured(model, batch.to(worker.device), job, compared).items():
            sums[name] = sums.get(name, torch.zeros_like(count)) + values.double().sum()
    if worker.world_size > 1:
        names = _names_on_any_rank(list(sums))
        packed = torch.stack([count, *(sums.get(n, torch.zeros_like(count)) for n in names)])
        dist.all_reduce(packed)
        count, sums = packed[0], dict(zip(names, packed[1:], strict=True))
    metrics = {name: float(total / count) for name, total in sums.items()}
    if isinstance(model, Translates):
        metrics |= compared.metrics(worker.world_size)
    return {f"validation/{name}": value for name, value in metrics.items()}


def _names_on_any_rank(names: list[str]) -> list[str]:
    """The metrics of the first rank that has any: a rank without a sample measured none."""
    everywhere: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everywhere, names)
    return next((found for found in everywhere if found), [])


@dataclass
class _Compared:
    """Features of outputs and targets, of which random_kid is a statistic."""

    positions: list[Tensor] = field(default_factory=list)
    """Place in the validation set: int64 (N,) of each batch."""
    features: list[Tensor] = field(default_factory=list)
    """Of the outputs and of the targets: float32 (N, 2, D) of each batch."""

    def add(self, outputs: Tensor, batch: Batch) -> None:
        """Keep what is among the first images of the set, in whatever order they come."""
        kept = batch.positions < MOST_COMPARED
        if kept.any():
            both = torch.stack([outputs[kept], batch.images[kept]], 1)
            found = random_features(both.flatten(0, 1)).unflatten(0, both.shape[:2])
            self.features.append(found.cpu())
            self.positions.append(batch.positions[kept].cpu())

    def metrics(self, world_size: int) -> dict[str, float]:
        """random_kid over all ranks, the same on each; nothing if there are not two images.

        Sorted by position, the features are those that one worker would have had.
        """
        everywhere = [(self.positions, self.features)] * world_size
        if world_size > 1:
            dist.all_gather_object(everywhere, (self.positions, self.features))
        positions = [part for found, _ in everywhere for part in found]
        features = [part for _, found in everywhere for part in found]
        if sum(map(len, positions)) < 2:
            return {}
        order = torch.cat(positions).argsort()
        outputs, targets = torch.cat(features)[order].unbind(1)
        return {"random_kid": float(mmd2(outputs, targets))}


def _measured(
    model: GenerativeModel, batch: Batch, job: Job, compared: _Compared
) -> dict[str, Tensor]:
    """All metrics of each image of a batch, by name: (B,) each."""
    values: dict[str, Tensor] = {}
    if isinstance(model, Translates):
        values |= _of_translations(model, batch, job, compared)
    if isinstance(model, Reconstructs):
        images = model.reconstruct(batch.images)
        values |= {"l1": l1_distance(images, batch.images), "psnr": psnr(images, batch.images)}
    if isinstance(model, HasLikelihood):
        keyed = replace(batch, seed=seed_of("validation", job.train.seed))
        values |= _of_likelihood(model.negative_log_likelihood(keyed), batch, job)
    return values


def _of_translations(
    model: Translates, batch: Batch, job: Job, compared: _Compared
) -> dict[str, Tensor]:
    noise = Generator(batch.images.device).manual_seed(
        seed_of("validation", job.train.seed, int(batch.positions[0]))
    )
    given = _to_translate(batch)
    images = _translate(model, given, job.images_per_pass, noise)
    compared.add(images, batch)
    return {
        "l1": l1_distance(images, batch.images),
        "psnr": psnr(images, batch.images),
        "l1_of_input": l1_distance(given, batch.images),
        "l1_of_white": l1_distance(torch.ones_like(images), batch.images),
    }


def _to_translate(batch: Batch) -> Tensor:
    """The input images; the images themselves in a set without, which inpainting fills."""
    return batch.images if batch.condition is None else batch.condition


def _of_likelihood(nats: Mapping[str, Tensor], batch: Batch, job: Job) -> dict[str, Tensor]:
    how = f"_binarized_{job.data.binarize}" if job.data.binarize else ""
    scale = 1 / (batch.images[0].numel() * math.log(2))
    bits = {name.replace("nats", "bits_per_dim"): value * scale for name, value in nats.items()}
    return {f"{name}{how}": value for name, value in (*nats.items(), *bits.items())}


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


@dataclass(frozen=True)
class SampleGrids:
    """What there is to look at."""

    pictures: dict[str, Rows]
    """By name: samples, reconstructions, the model's own pictures."""
    samples: Tensor | None
    """The samples alone, (N, C, H, W); None of a model that translates, which follows its input."""


@torch.no_grad()
def look(model: GenerativeModel, examples: Batch, job: Job) -> SampleGrids:
    """Draw everything there is to look at.

    The same noise each time, so that two grids differ by the training between them alone.
    """
    seed = seed_of("examples", job.train.seed)
    noise = [Generator(examples.images.device).manual_seed(seed) for _ in range(2)]
    rows, samples = _samples(model, examples, job, noise[0])
    drawn: dict[str, Rows] = {"samples": rows}
    if isinstance(model, Reconstructs):
        drawn["reconstructions"] = [list(examples.images), list(model.reconstruct(examples.images))]
    return SampleGrids({**drawn, **model.pictures(examples, noise[1])}, samples)


def _samples(
    model: GenerativeModel, examples: Batch, job: Job, noise: Generator
) -> tuple[Rows, Tensor | None]:
    """Rows of the grid of samples, and the samples that depend on noise alone.

    Input, output and target of a model that translates; an image and samples for its caption; a
    row for each class; else samples alone.
    """
    if isinstance(model, Translates):
        given = _to_translate(examples)
        outputs = _translate(model, given, job.images_per_pass, noise)
        return [list(row) for row in zip(given, outputs, examples.images, strict=True)], None
    if "captions" in model.config.takes and examples.captions is not None:
        each = COLUMNS - 1
        captions = examples.captions.repeat_interleave(each, 0)
        drawn = model.sample(len(captions), noise, captions)
        rows = zip(examples.images, drawn.split(each), strict=True)
        return [[real, *row] for real, row in rows], drawn
    if model.config.num_classes:
        classes = torch.arange(model.config.num_classes, device=examples.images.device)
        labels = classes.repeat_interleave(COLUMNS)
        drawn = model.sample(len(labels), noise, labels)
    else:
        drawn = model.sample(64, noise)
    return [list(row) for row in drawn.split(COLUMNS)], drawn
