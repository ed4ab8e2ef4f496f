"""Draw the images of a model that are compared with a reference."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from orchestrator.evaluation.measure import pair_values
from orchestrator.model_evaluation.reference_set import BATCH, ReferenceSet
from orchestrator.models.base import Batch, GenerativeModel
from orchestrator.models.parts.abilities import HasLikelihood
from orchestrator.seeding import seed_of


class Drawn(NamedTuple):
    """A batch of generated images, on the CPU."""

    images: Tensor
    """Float32 (B, C, H, W) in [-1, 1]."""
    labels: Tensor | None
    """Classes that they were drawn for, int64 (B,), if there are any."""
    pairs: Mapping[str, Tensor]
    """l1, psnr and ssim against the targets, (B,) each; empty if the model does not translate."""


def num_drawn(model: GenerativeModel, reference: ReferenceSet, num_images: int) -> int:
    """Return how many images are drawn: a model that translates draws one for each input."""
    return min(num_images, reference.count) if model.config.translates else num_images


def draw_images(
    model: GenerativeModel, reference: ReferenceSet, num_images: int, *, seed: int
) -> Iterator[Drawn]:
    """Draw ``num_images``, on the device of the model's weights.

    A model that translates gets the inputs of the reference, with ``seed`` + the number in the set
    as seeds, so that seed 0 gives the images of the validation during training. Any other gets the
    seeds ``seed``, ``seed`` + 1, ..., and the classes or captions of the reference, again and again
    in its order: so the classes have the shares that they have there.
    """
    device = device_of(model)
    if model.config.translates:
        for batch in reference.batches():
            yield _translate(model, batch.to(device), seed)
        return
    done = 0
    for count, condition in _conditions(model, reference, num_images):
        seeds = torch.arange(seed + done, seed + done + count, device=device)
        given = None if condition is None else condition.to(device)
        images = model.sample(seeds, given).cpu()
        yield Drawn(images, condition if model.config.num_classes else None, {})
        done += count


def condition_of(model: GenerativeModel, batch: Batch) -> Tensor | None:
    """Return what ``sample`` is conditioned on: inputs, captions, classes or nothing."""
    if model.config.translates:
        return batch.images if batch.condition is None else batch.condition
    if "captions" in model.config.takes:
        return batch.captions
    return batch.labels if model.config.num_classes else None


def _translate(model: GenerativeModel, batch: Batch, seed: int) -> Drawn:
    images = model.sample(seed + batch.positions, condition_of(model, batch))
    found = {name: value.cpu() for name, value in pair_values(images, batch.images).items()}
    return Drawn(images.cpu(), None if batch.labels is None else batch.labels.cpu(), found)


def _conditions(
    model: GenerativeModel, reference: ReferenceSet, num_images: int
) -> Iterator[tuple[int, Tensor | None]]:
    """Yield numbers of images, at most BATCH each, and what ``sample`` is conditioned on."""
    takes_captions = "captions" in model.config.takes
    if not (takes_captions or model.config.num_classes):
        for start in range(0, num_images, BATCH):
            yield min(BATCH, num_images - start), None
        return
    left = num_images
    while left:
        for batch in reference.batches():
            given = condition_of(model, batch)
            assert given is not None, "check_set has asked for them"
            count = min(left, len(given))
            yield count, given[:count]
            left -= count
            if not left:
                return


@torch.no_grad()
def likelihoods(
    model: HasLikelihood,
    reference: ReferenceSet,
    device: torch.device,
    *,
    seed: int,
    on_images: Callable[[int], None] = lambda count: None,
) -> dict[str, Tensor]:
    """Return nats per image and bits per dimension of the reference, (N,) each, by name.

    The names are those of ``negative_log_likelihood``, and ``bits_per_dim`` for ``nats``; on
    binarized images with a suffix, as these are other data.
    """
    found: dict[str, list[Tensor]] = {}
    suffix = "_binarized" if reference.reading.binarize else ""
    for batch in reference.batches():
        keyed = replace(batch.to(device), seed=seed_of("evaluation", seed))
        scale = 1 / (batch.images[0].numel() * math.log(2))
        for name, nats in model.negative_log_likelihood(keyed).items():
            values = nats.double().cpu()
            bits = name.removeprefix("nll_").replace("nats", "bits_per_dim")
            found.setdefault(f"{name}{suffix}", []).append(values)
            found.setdefault(f"{bits}{suffix}", []).append(values * scale)
        on_images(len(batch))
    return {name: torch.cat(values) for name, values in found.items()}


def device_of(model: GenerativeModel) -> torch.device:
    """Return the device of the model's weights."""
    return next(iter(model.inference_module().parameters())).device
