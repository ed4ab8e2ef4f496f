"""Measurements of whole sets: names, floors, intervals, and what is refused."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from orchestrator.errors import DataError
from orchestrator.evaluation import measure
from orchestrator.evaluation.feature_set import FeatureSet, check_shapes, to_pixels_batch
from orchestrator.evaluation.frechet import frechet_distance
from orchestrator.evaluation.kid import kid
from orchestrator.evaluation.measure import (
    measure_classes,
    measure_diversity,
    measure_frechet,
    measure_kid,
    measure_nearest,
    measure_neighbourhoods,
    measure_pairs,
)
from orchestrator.evaluation.report import EvaluationReport, Measurement
from support.drawn_features import correlated, features

REAL = features(correlated(160, 32, 1), "real images")
GENERATED = features(correlated(80, 32, 2, shift=0.5))

SetMetric = Callable[[FeatureSet, FeatureSet], list[Measurement]]
OF_SETS = [measure_kid, measure_frechet, measure_neighbourhoods]


def test_a_report_of_two_sets() -> None:
    found = EvaluationReport(tuple(each for metric in OF_SETS for each in metric(REAL, GENERATED)))
    assert list(found.values()) == [
        "kid.lite0", "frechet.lite0.n80", "precision.lite0.n80", "recall.lite0.n80",
        "density.lite0.n80", "coverage.lite0.n80",
    ]  # fmt: skip
    assert found["kid.lite0"].value == kid(GENERATED.features, REAL.features)
    assert found["frechet.lite0.n80"].value == frechet_distance(GENERATED.features, REAL.features)
    for each in found.measurements:
        assert each.interval is not None
        assert each.floor is not None
        assert each.value in each.interval
        assert (each.n, each.reference_n, each.floor.n, each.extractor) == (80, 160, 80, "lite0")
    for metric in ("kid.lite0", "frechet.lite0.n80"):
        interval, floor = found[metric].interval, found[metric].floor
        assert interval is not None
        assert floor is not None
        assert floor.high < interval.low
    assert EvaluationReport.from_json(found.to_json()) == found


def test_features_of_inception_alone_give_a_fid() -> None:
    sets = [FeatureSet("images", each.features, "inception", "fid") for each in (REAL, GENERATED)]
    assert measure_frechet(*sets)[0].metric == "fid.inception.n80"


def test_precision_is_of_the_generated_images_and_recall_of_the_real_ones() -> None:
    narrow = features(REAL.features.mean(0) + 0.3 * correlated(80, 32, 2))
    precision, recall, *_ = (each.value for each in measure_neighbourhoods(REAL, narrow))
    assert precision > 0.9
    assert recall < 0.5


@pytest.mark.parametrize("metric", OF_SETS)
def test_too_few_images_are_refused(metric: SetMetric) -> None:
    for real, generated, what in (
        (REAL, features(GENERATED.features[:49]), "generated images: 49"),
        (features(REAL.features[:49], "real images"), GENERATED, "real images: 49"),
    ):
        with pytest.raises(DataError, match=f"^{what} images are too few.*at least 50") as caught:
            metric(real, generated)
        assert caught.value.exit_code == 4


@pytest.mark.parametrize("metric", OF_SETS)
def test_features_of_two_extractors_are_not_compared(metric: SetMetric) -> None:
    other = FeatureSet("generated images", GENERATED.features, "dinov2-01234567")
    with pytest.raises(DataError, match=r"features of dinov2-01234567 .* those of lite0"):
        metric(REAL, other)
    with pytest.raises(DataError, match=r"lite0 \(31 values\) .* lite0 \(32 values\)"):
        metric(REAL, features(GENERATED.features[:, :31]))


@pytest.mark.parametrize("metric", OF_SETS)
def test_features_that_are_not_finite_are_refused_with_their_number(metric: SetMetric) -> None:
    broken = GENERATED.features.clone()
    broken[3, 5] = torch.nan
    broken[7, :] = torch.inf
    with pytest.raises(DataError, match="the features of 2 of 80 images are not finite"):
        metric(REAL, features(broken))


def test_more_images_than_fit_in_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MOST_NEIGHBOURS", 100)
    with pytest.raises(DataError, match=r"^real images: 160 images are too many.*at most 100"):
        measure_neighbourhoods(REAL, GENERATED)


def labelled(seed: int, counts: list[int], what: str, shift: float = 0) -> FeatureSet:
    labels = torch.cat([torch.full((n,), label) for label, n in enumerate(counts)])
    values = correlated(len(labels), 32, seed) + shift * (labels == 1)[:, None]
    return features(values, what, labels=labels)


def test_each_class_is_measured_by_itself() -> None:
    real = labelled(1, [60, 70, 80], "real images")
    generated = labelled(2, [50, 51, 52], "generated images", shift=1)
    found = {each.metric: each for each in measure_classes(measure_kid, real, generated)}
    assert list(found) == [f"kid.lite0.class_{label}" for label in range(3)]
    assert [each.n for each in found.values()] == [50, 51, 52]
    values = [each.value for each in found.values()]
    assert values[1] > 10 * max(values[0], values[2])


def test_a_missing_class_is_named() -> None:
    real = labelled(1, [60, 70, 80], "real images")
    with pytest.raises(DataError, match=r"^generated images: no image of class 2, so") as caught:
        measure_classes(measure_kid, real, labelled(2, [50, 51], "generated images"))
    assert caught.value.exit_code == 4
    with pytest.raises(DataError, match=r"^real images: no image of classes 3, 4, so"):
        measure_classes(measure_kid, real, labelled(2, [50] * 5, "generated images"))
    with pytest.raises(DataError, match="generated images of class 1: 9 images are too few"):
        measure_classes(measure_kid, real, labelled(2, [50, 9, 50], "generated images"))
    with pytest.raises(DataError, match="generated images: no labels"):
        measure_classes(measure_kid, real, GENERATED)


def test_copies_are_measured_as_near() -> None:
    training, held_out = features(correlated(400, 32, 3), "training images"), REAL
    honest = features(correlated(120, 32, 5))
    copies = features(torch.cat([training.features[:12], honest.features[12:]]))
    (found,) = measure_nearest(training, held_out, copies)
    assert found.metric == "nearest.lite0"
    assert found.value >= 0.1
    assert found.details["alarm"] == 1
    assert found.details["probability"] < 0.001
    assert measure_nearest(training, held_out, honest)[0].details["alarm"] == 0
    with pytest.raises(DataError, match=r"generated images: 80 images are too few.*at least 100"):
        measure_nearest(training, held_out, GENERATED)
    with pytest.raises(DataError, match="held-out images: 99 images are too few"):
        measure_nearest(training, features(REAL.features[:99], "held-out images"), honest)


def pictures(count: int, channels: int = 3, size: int = 32, seed: int = 1) -> Tensor:
    noise = Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 6, 6, generator=noise) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")


def test_pairs_are_measured_by_means_over_images() -> None:
    targets = pictures(30)
    images = targets + 0.1 * torch.randn(targets.shape, generator=Generator().manual_seed(2))
    found = EvaluationReport(tuple(measure_pairs(images, targets)))
    assert list(found.values()) == ["l1", "psnr", "ssim"]
    assert found["l1"].value == pytest.approx(0.1 * (2 / torch.pi) ** 0.5, rel=0.05)
    assert found["psnr"].value == pytest.approx(26.02, abs=0.3)  # 10 log10(4 / 0.01)
    assert all(each.interval and each.value in each.interval for each in found.measurements)
    assert [each.metric for each in measure_pairs(images[..., :8], targets[..., :8])] == [
        "l1",
        "psnr",
    ]


def test_diversity_has_the_real_images_as_its_floor() -> None:
    real, collapsed = pictures(120), pictures(3, seed=2).repeat_interleave(30, 0)
    noise = 0.1 * torch.randn(collapsed.shape, generator=Generator().manual_seed(3))
    (found,) = measure_diversity(collapsed + noise, real)
    assert found.metric == "ms_ssim_pairs.scales2"
    assert found.floor is not None
    assert found.interval is not None
    assert found.floor.n == 90
    assert found.interval.low > found.floor.high
    with pytest.raises(DataError, match="real images: 49 images are too few for MS-SSIM"):
        measure_diversity(collapsed, real[:49])
    with pytest.raises(DataError, match="8 x 32 pixels are too few for MS-SSIM"):
        measure_diversity(collapsed[..., :8], real[..., :8])


@pytest.mark.parametrize(
    ("generated", "problem"),
    [
        (pictures(60, 1), "^generated images: grey images of 32 x 32 pixels, but the reference has "
         "colour images of 32 x 32 pixels; compare"),
        (pictures(60, 3, 16), "^generated images: colour images of 16 x 16 pixels, but"),
        (pictures(60, 4), "^generated images: 4-channel images"),
    ],
    ids=["grey for colour", "another size", "four channels"],
)  # fmt: skip
def test_images_of_another_kind_or_size_are_refused(generated: Tensor, problem: str) -> None:
    real = pictures(60)
    with pytest.raises(DataError, match=problem) as caught:
        check_shapes(tuple(real.shape[1:]), tuple(generated.shape[1:]))
    assert caught.value.exit_code == 4
    with pytest.raises(DataError, match=problem):
        measure_diversity(generated, real)
    with pytest.raises(DataError, match=problem):
        measure_pairs(generated, real)
    sets = [
        replace(features, image_shape=tuple(images.shape[1:]))
        for features, images in ((REAL, real), (GENERATED, generated))
    ]
    for metric in OF_SETS:
        with pytest.raises(DataError, match=problem):
            metric(*sets)


def test_pairs_of_unequal_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="generated images: 2, but 3 targets"):
        measure_pairs(pictures(2), pictures(3))
    with pytest.raises(DataError, match="generated images: 0, but 0 targets"):
        measure_pairs(pictures(2)[:0], pictures(3)[:0])


def test_pixels_are_rounded_and_not_cut_off() -> None:
    """A grey of 254.7 of 255 becomes 255; casting alone would make it 254."""
    values = torch.tensor([-1.5, -1, 254.7 / 127.5 - 1, 1, 1.5]).view(1, 1, 1, 5)
    assert to_pixels_batch(values).flatten().tolist() == [0, 0, 255, 255, 255]
