"""Measure sets of images by all metrics: each value with its interval and floor."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, replace

import torch
from torch import Generator, Tensor

from orchestrator.errors import DataError
from orchestrator.evaluation.feature_set import (
    FeatureSet,
    check_comparable,
    check_features,
    check_shapes,
    classes,
)
from orchestrator.evaluation.frechet import frechet_distance
from orchestrator.evaluation.image_metrics import l1_distance, psnr
from orchestrator.evaluation.intervals import Floor, halves_intervals, mean_interval, real_floors
from orchestrator.evaluation.kid import kid, kid_interval
from orchestrator.evaluation.memorisation import memorisation, nearest_distances
from orchestrator.evaluation.neighbours import NAMES, Distances, K, neighbourhoods
from orchestrator.evaluation.report import Measurement
from orchestrator.evaluation.similarity import WINDOW, ms_ssim_scales, pair_similarities, ssim

FEWEST = 50
"""Images of each set below which a distance between sets says nothing."""
FEWEST_NEAR = 100
"""Generated and held-out images below which the memorisation alarm cannot ring."""
MOST_NEIGHBOURS = 10_000
"""Images of each set above which the matrices of distances do not fit in memory."""


def measure_kid(real: FeatureSet, generated: FeatureSet, *, seed: int = 0) -> list[Measurement]:
    """Measure the KID, which does not depend on the number of images: read it first.

    Raises:
        DataError: the sets cannot be compared, or one has fewer than 50 images.
    """
    check_comparable(real, generated, FEWEST)
    x, y = generated.features, real.features
    (floor,) = real_floors(lambda i, j: [kid(y[i], y[j])], len(y), len(x), seed=seed)
    return [
        Measurement(
            metric=f"kid.{real.extractor}",
            value=kid(x, y),
            n=len(x),
            interval=kid_interval(x, y, seed=seed),
            floor=floor,
            extractor=real.extractor,
            reference_n=len(y),
        )
    ]


def measure_frechet(real: FeatureSet, generated: FeatureSet, *, seed: int = 0) -> list[Measurement]:
    """Measure the Frechet distance, whose value holds for these numbers of images alone.

    Raises:
        DataError: the sets cannot be compared, or one has fewer than 50 images.
    """
    check_comparable(real, generated, FEWEST)
    x, y = generated.features, real.features
    (interval,) = halves_intervals(
        lambda of: [frechet_distance(x[of[0]], y[of[1]])], (len(x), len(y)), seed=seed
    )
    (floor,) = real_floors(lambda i, j: [frechet_distance(y[i], y[j])], len(y), len(x), seed=seed)
    return [
        Measurement(
            metric=f"{real.frechet_name}.{real.extractor}.n{len(x)}",
            value=frechet_distance(x, y),
            n=len(x),
            interval=interval,
            floor=floor,
            extractor=real.extractor,
            reference_n=len(y),
        )
    ]


def measure_neighbourhoods(
    real: FeatureSet, generated: FeatureSet, *, seed: int = 0
) -> list[Measurement]:
    """Measure precision, recall, density and coverage with 5 neighbours.

    Raises:
        DataError: the sets cannot be compared, or one has fewer than 50 or over 10,000 images.
    """
    check_comparable(real, generated, FEWEST)
    for features in (real, generated):
        if len(features) > MOST_NEIGHBOURS:
            raise DataError(
                f"{features.what}: {len(features)} images are too many for metrics of nearest "
                f"neighbours, which compare all pairs; take at most {MOST_NEIGHBOURS}"
            )
    distances = Distances.of(real.features, generated.features)
    intervals = halves_intervals(
        lambda of: astuple(neighbourhoods(distances.subset(of[0], of[1]), K)),
        (len(real), len(generated)),
        seed=seed,
    )

    def among_real(i: Tensor, j: Tensor) -> Sequence[float]:
        every = distances.real
        return astuple(neighbourhoods(Distances(every[i][:, i], every[j][:, j], every[i][:, j])))

    floors = real_floors(among_real, len(real), len(generated), seed=seed)
    values = astuple(neighbourhoods(distances, K))
    return [
        Measurement(
            metric=f"{name}.{real.extractor}.n{len(generated)}",
            value=value,
            n=len(generated),
            interval=interval,
            floor=floor,
            extractor=real.extractor,
            reference_n=len(real),
        )
        for name, value, interval, floor in zip(NAMES, values, intervals, floors, strict=True)
    ]


def measure_nearest(
    training: FeatureSet, held_out: FeatureSet, generated: FeatureSet, *, seed: int = 0
) -> list[Measurement]:
    """Measure the share of generated images that are suspiciously near to a training image.

    Details: the share of held-out images, the probability of the null and the alarm, 0 or 1.

    Raises:
        DataError: the sets cannot be compared, or there are fewer than 100 generated or held-out
            images.
    """
    for features in (held_out, generated):
        check_comparable(training, features, 1)
        check_features(features, FEWEST_NEAR)
    near, usual = (
        nearest_distances(each.features, training.features) for each in (generated, held_out)
    )
    found = memorisation(near, usual, seed=seed)
    return [
        Measurement(
            metric=f"nearest.{training.extractor}",
            value=found.share,
            n=len(generated),
            interval=found.interval,
            extractor=training.extractor,
            reference_n=len(held_out),
            details={
                "held_out": found.held_out,
                "probability": found.probability,
                "alarm": float(found.alarm),
            },
        )
    ]


def measure_classes(
    metric: Callable[[FeatureSet, FeatureSet], Iterable[Measurement]],
    real: FeatureSet,
    generated: FeatureSet,
) -> list[Measurement]:
    """Measure each class by itself, as ``kid.lite0.class_3``.

    Raises:
        DataError: a set has no labels or lacks a class, or ``metric`` raises it for a class.
    """
    return [
        replace(measured, metric=f"{measured.metric}.class_{label}")
        for label, real_ones, generated_ones in classes(real, generated)
        for measured in metric(real_ones, generated_ones)
    ]


def pair_values(images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Compare images (B, C, H, W) in [-1, 1] with the images that they should be.

    l1 (0 to 2), psnr (dB) and, from 11 x 11 pixels, ssim: (B,) each.

    Raises:
        DataError: the images differ in kind, size or number, or there is none.
    """
    check_shapes(tuple(targets.shape[1:]), tuple(images.shape[1:]))
    if len(images) != len(targets) or not len(images):
        raise DataError(
            f"generated images: {len(images)}, but {len(targets)} targets; each needs its own"
        )
    metrics = {"l1": l1_distance, "psnr": psnr}
    if min(images.shape[-2:]) >= WINDOW:
        metrics["ssim"] = ssim
    return {name: metric(images, targets) for name, metric in metrics.items()}


def measure_means(values: Mapping[str, Tensor]) -> list[Measurement]:
    """Measure the means over images of values (N,) by the names of their metrics.

    Each image of the reference has one value, so the reference has as many images.
    """
    return [
        Measurement(
            metric=name, value=float(found.double().mean()), n=len(found),
            interval=mean_interval(found), reference_n=len(found),
        )
        for name, found in values.items()
    ]  # fmt: skip


def measure_pairs(images: Tensor, targets: Tensor) -> list[Measurement]:
    """Measure images against the images that they should be. Takes and raises as ``pair_values``.

    l1, psnr and ssim: means over images.
    """
    return measure_means(pair_values(images, targets))


def measure_diversity(images: Tensor, real: Tensor, *, seed: int = 0) -> list[Measurement]:
    """Measure the MS-SSIM between random pairs of generated images (N, C, H, W) in [-1, 1].

    The floor is the value of as many real images; higher than that is less diverse.

    Raises:
        DataError: the images differ in kind or size, are smaller than 11 x 11 pixels, or there
            are fewer than 50 generated or real ones.
    """
    check_shapes(tuple(real.shape[1:]), tuple(images.shape[1:]))
    for what, each in (("generated images", images), ("real images", real)):
        if len(each) < FEWEST:
            raise DataError(
                f"{what}: {len(each)} images are too few for MS-SSIM of pairs, which needs at "
                f"least {FEWEST}; use more images"
            )
    if min(images.shape[-2:]) < WINDOW:
        raise DataError(
            f"generated images: {images.shape[-1]} x {images.shape[-2]} pixels are too few for "
            f"MS-SSIM, whose window has {WINDOW} x {WINDOW}"
        )
    values = pair_similarities(images, seed=seed)
    chosen = torch.randperm(len(real), generator=Generator().manual_seed(seed))[: len(images)]
    usual = pair_similarities(real[chosen], seed=seed)
    around = mean_interval(usual)
    floor = Floor(float(usual.double().mean()), around.low, around.high, len(chosen))
    return [
        Measurement(
            metric=f"ms_ssim_pairs.scales{ms_ssim_scales(images)}",
            value=float(values.double().mean()), n=len(images),
            interval=mean_interval(values), floor=floor,
        )
    ]  # fmt: skip
