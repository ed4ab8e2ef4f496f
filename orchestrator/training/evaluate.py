"""Evaluation during training: validation metrics, grids of samples and other pictures."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.config.job import Job
from orchestrator.evaluation.image_metrics import l1_distance, psnr
from orchestrator.evaluation.kid import mmd2, random_features
from orchestrator.models.base import Batch, GenerativeModel, Rows
from orchestrator.models.parts.abilities import HasLikelihood, Reconstructs
from orchestrator.seeding import seed_of
from orchestrator.training.collectives import gather, gather_vectors
from orchestrator.training.interfaces import Worker

COLUMNS = 8
MAX_CLASSES = 16
"""Rows of a grid with a class each: they are sampled at once, with the memory that this takes."""
MAX_COMPARED = 1024
"""Images at the beginning of the validation set that random_feature_mmd compares: its cost grows
with their square, and all ranks hold their features."""


@torch.no_grad()
def validate(
    model: GenerativeModel, batches: Iterator[Batch], job: Job, worker: Worker
) -> dict[str, float]:
    """Measure means over the whole validation set; every rank calls it with its own share.

    Sums and counts are added up over ranks, so that each image has the same weight. The metrics:

    - a model that translates: validation/l1 and validation/psnr, and as baselines the L1 distances
      of the input itself (l1_baseline_input) and of white images (l1_baseline_white). Also
      validation/random_feature_mmd, which is not a mean over images but a distance between the
      outputs and the targets as sets: see evaluation/kid.py.
    - a model that reconstructs: l1 and psnr of its reconstructions.
    - a model with a likelihood: nats per image (nll_nats) and bits per dimension (bits_per_dim);
      on images that the stream binarized with a suffix, such as nll_nats_binarized_dynamic.
    """
    sums: dict[str, Tensor] = {}
    features = _FeatureSet()
    count = torch.zeros((), dtype=torch.float64, device=worker.device)
    for batch in batches:
        count += len(batch)
        for name, values in _image_metrics(model, batch.to(worker.device), job, features).items():
            sums[name] = sums.get(name, torch.zeros_like(count)) + values.double().sum()
    if worker.world_size > 1:
        # A rank without a sample has no names.
        names = next(filter(None, gather(list(sums), worker.world_size)), [])
        packed = torch.stack([count, *(sums.get(n, torch.zeros_like(count)) for n in names)])
        dist.all_reduce(packed)
        count, sums = packed[0], dict(zip(names, packed[1:], strict=True))
    metrics = {name: float(total / count) for name, total in sums.items()}
    if model.config.translates:
        metrics |= features.metrics(worker.world_size)
    return {f"validation/{name}": value for name, value in metrics.items()}


@dataclass
class _FeatureSet:
    """Features of outputs and targets, from which random_feature_mmd is computed."""

    positions: list[Tensor] = field(default_factory=list)
    """Positions in the validation set: int64 (N,) for each batch."""
    features: list[Tensor] = field(default_factory=list)
    """Features of the outputs and of the targets: float32 (N, 2, D) for each batch."""

    def add(self, outputs: Tensor, batch: Batch) -> None:
        """Add the features of those that are among the first images of the set, in any order."""
        kept = batch.positions < MAX_COMPARED
        if kept.any():
            both = torch.stack([outputs[kept], batch.images[kept]], 1)
            found = random_features(both.flatten(0, 1)).unflatten(0, both.shape[:2])
            self.features.append(found.cpu())
            self.positions.append(batch.positions[kept].cpu())

    def metrics(self, world_size: int) -> dict[str, float]:
        """Compute random_feature_mmd over all ranks; nothing with less than two images.

        Sorted by position, the features are those that a single worker would have.
        """
        own_positions = torch.cat([torch.empty(0, dtype=torch.int64), *self.positions])
        own_features = torch.cat([torch.empty(0), *map(torch.flatten, self.features)])
        positions = torch.cat(gather_vectors(own_positions, world_size))
        features = torch.cat(gather_vectors(own_features, world_size))
        if len(positions) < 2:
            return {}
        by_image = features.reshape(len(positions), 2, -1)
        outputs, targets = by_image[positions.argsort()].unbind(1)
        return {"random_feature_mmd": float(mmd2(outputs, targets))}


def _image_metrics(
    model: GenerativeModel, batch: Batch, job: Job, features: _FeatureSet
) -> dict[str, Tensor]:
    """Compute all metrics of each image of a batch, by name: (B,) each."""
    values: dict[str, Tensor] = {}
    if model.config.translates:
        values |= _translation_metrics(model, batch, job, features)
    if isinstance(model, Reconstructs):
        images = model.reconstruct(batch.images)
        values |= {"l1": l1_distance(images, batch.images), "psnr": psnr(images, batch.images)}
    if isinstance(model, HasLikelihood):
        keyed = replace(batch, seed=seed_of("validation", job.train.seed))
        values |= _likelihood_metrics(model.negative_log_likelihood(keyed), batch, job)
    return values


def _translation_metrics(
    model: GenerativeModel, batch: Batch, job: Job, features: _FeatureSet
) -> dict[str, Tensor]:
    inputs = _input_images(batch)
    images = _translate(model, inputs, batch.positions, job)
    features.add(images, batch)
    return {
        "l1": l1_distance(images, batch.images),
        "psnr": psnr(images, batch.images),
        "l1_baseline_input": l1_distance(inputs, batch.images),
        "l1_baseline_white": l1_distance(torch.ones_like(images), batch.images),
    }


def _input_images(batch: Batch) -> Tensor:
    """Return the input images; without inputs, the images themselves, as inpainting needs."""
    return batch.images if batch.condition is None else batch.condition


def _likelihood_metrics(nats: Mapping[str, Tensor], batch: Batch, job: Job) -> dict[str, Tensor]:
    """Add bits per dimension to negative log-likelihoods in nats."""
    suffix = f"_binarized_{job.data.binarize}" if job.data.binarize else ""
    scale = 1 / (batch.images[0].numel() * math.log(2))
    bits = {
        name.removeprefix("nll_").replace("nats", "bits_per_dim"): value * scale
        for name, value in nats.items()
    }
    return {f"{name}{suffix}": value for name, value in (*nats.items(), *bits.items())}


def _translate(model: GenerativeModel, inputs: Tensor, positions: Tensor, job: Job) -> Tensor:
    """Translate as many images at a time as in training; an image's position is its seed."""
    size = job.images_per_pass
    passes = zip(positions.split(size), inputs.split(size), strict=True)
    return torch.cat([model.sample(seeds, given) for seeds, given in passes])


class SampleGrids(NamedTuple):
    """Pictures of what a model generates."""

    grids: dict[str, Rows]
    """By name: samples, reconstructions, the model's own pictures."""
    samples: Tensor | None
    """The samples alone, (N, C, H, W); None for a model that translates: its depend on inputs."""


@torch.no_grad()
def draw_grids(model: GenerativeModel, examples: Batch, job: Job) -> SampleGrids:
    """Draw the grid of samples and the model's other pictures.

    The seeds are the same each time, so that two grids differ only by the training between them:
    0, 1, ... for samples from noise, and for translations the positions in the validation set.
    """
    rows, samples = _samples(model, examples, job)
    drawn: dict[str, Rows] = {"samples": rows}
    if isinstance(model, Reconstructs):
        drawn["reconstructions"] = [list(examples.images), list(model.reconstruct(examples.images))]
    return SampleGrids({**drawn, **model.pictures(examples)}, samples)


def _samples(model: GenerativeModel, examples: Batch, job: Job) -> tuple[Rows, Tensor | None]:
    """Draw the rows of the grid of samples; return them and the samples that have no input image.

    A row is: input, output and target if the model translates; an image and samples for its
    caption if it takes captions; the samples of one class if it has classes, of which at most
    MAX_CLASSES are shown, spread evenly; else any samples.
    """
    device = examples.images.device
    if model.config.translates:
        inputs = _input_images(examples)
        outputs = _translate(model, inputs, examples.positions, job)
        return [list(row) for row in zip(inputs, outputs, examples.images, strict=True)], None
    if "captions" in model.config.takes and examples.captions is not None:
        each = COLUMNS - 1
        captions = examples.captions.repeat_interleave(each, 0)
        drawn = model.sample(torch.arange(len(captions), device=device), captions)
        rows = zip(examples.images, drawn.split(each), strict=True)
        return [[real, *row] for real, row in rows], drawn
    count, labels = 64, None
    if classes := model.config.num_classes:
        num_rows = min(classes, MAX_CLASSES)
        count = num_rows * COLUMNS
        rows_of = torch.arange(count, device=device) // COLUMNS
        labels = rows_of * classes // num_rows
    drawn = model.sample(torch.arange(count, device=device), labels)
    return [list(row) for row in drawn.split(COLUMNS)], drawn
