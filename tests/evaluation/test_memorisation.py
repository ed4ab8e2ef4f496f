"""The memorisation alarm: copies raise it, real images and bad generators do not."""

import pytest
import scipy.stats
import torch
from torch import Generator, Tensor

from orchestrator.evaluation.intervals import Interval
from orchestrator.evaluation.memorisation import (
    Memorisation,
    hypergeometric_tail,
    memorisation,
    nearest_distances,
)
from support.drawn_features import correlated

TRAINING = correlated(600, 24, 1)


def measured(generated: Tensor, held_out: Tensor) -> Memorisation:
    return memorisation(*(nearest_distances(each, TRAINING) for each in (generated, held_out)))


def with_copies(images: Tensor, share: float, seed: int, noise: float = 0) -> Tensor:
    """Replace a share of the images by training images."""
    generator = Generator().manual_seed(seed)
    copies = int(share * len(images))
    chosen = torch.randint(len(TRAINING), (copies,), generator=generator)
    near = TRAINING[chosen] + noise * torch.randn(copies, images.shape[1], generator=generator)
    return torch.cat([near, images[copies:]])


def test_the_distance_is_that_to_the_nearest_training_image() -> None:
    images = correlated(7, 24, 2)
    expected = [min(float((image - each).norm()) for each in TRAINING) for image in images]
    assert nearest_distances(images, TRAINING).tolist() == pytest.approx(expected, rel=1e-5)
    assert nearest_distances(TRAINING[:5], TRAINING).tolist() == [0] * 5


@pytest.mark.parametrize("noise", [0, 0.05], ids=["exact copies", "near copies"])
def test_10_percent_copies_raise_the_alarm(noise: float) -> None:
    raised = [
        measured(
            with_copies(correlated(200, 24, 1000 + s), 0.1, s, noise), correlated(200, 24, 2000 + s)
        )
        for s in range(20)
    ]
    assert all(each.alarm for each in raised)
    assert all(each.share >= 0.1 and each.interval.low > each.held_out for each in raised)


def test_held_out_images_raise_it_at_most_once_in_100() -> None:
    found = [
        measured(correlated(200, 24, 3000 + s), correlated(200, 24, 4000 + s)) for s in range(100)
    ]
    assert sum(each.alarm for each in found) <= 1
    assert 0.003 < sum(each.share for each in found) / 100 < 0.03
    # As a probability of the null, at most 5 % lie below 0.05, and it does not only say 1.
    assert sum(each.probability < 0.05 for each in found) <= 11
    assert len({each.probability for each in found}) > 5


def test_the_alarm_rings_below_1_in_1000() -> None:
    found = [Memorisation(0.1, Interval(0, 1), 0.01, p).alarm for p in (0.0009, 0.0011)]
    assert found == [True, False]


def test_images_far_from_the_training_set_raise_no_alarm() -> None:
    found = measured(correlated(200, 24, 2, shift=3), correlated(200, 24, 3))
    assert (found.share, found.alarm, found.probability) == (0, False, 1)


def test_few_copies_among_many_images_are_found() -> None:
    """1 % copies: too few to stand out among the nearest 5 %."""
    found = measured(with_copies(correlated(3000, 24, 5), 0.01, 1), correlated(3000, 24, 6))
    assert found.alarm


def test_copies_are_found_where_some_held_out_images_are_in_the_training_set_too() -> None:
    """3 % of the held-out images are duplicates, which makes the near distance 0."""
    held_out = with_copies(correlated(400, 24, 7), 0.03, 1)
    duplicates = with_copies(correlated(400, 24, 8), 0.03, 2)
    assert not measured(duplicates, held_out).alarm
    found = measured(with_copies(correlated(400, 24, 9), 0.12, 3), held_out)
    assert found.alarm
    assert (found.share, found.held_out) == (0.12, 0.03)


def test_numbers_of_images_may_differ() -> None:
    held_out = correlated(150, 24, 10)
    assert measured(with_copies(correlated(900, 24, 11), 0.1, 1), held_out).alarm
    assert not measured(correlated(900, 24, 11), held_out).alarm


@pytest.mark.parametrize(
    ("hits", "marked", "others", "drawn"),
    [(3, 10, 20, 5), (0, 4, 4, 3), (20, 200, 200, 20), (480, 5000, 5000, 500), (5, 5, 2, 7)],
)
def test_the_tail_is_that_of_scipy(hits: int, marked: int, others: int, drawn: int) -> None:
    expected = scipy.stats.hypergeom.sf(hits - 1, marked + others, marked, drawn)
    assert hypergeometric_tail(hits, marked, others, drawn) == pytest.approx(expected, rel=1e-8)
