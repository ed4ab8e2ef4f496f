"""Does a generator copy its training images? An alarm that real images raise 1 time in 1,000.

The distance of an image to its nearest training image is small for a copy, but also for any image
of a dense part of the data. Real images that the training never saw, from the same source, say
which distances are usual: they are the null. If the generator draws from the data's distribution
and knows no training image, generated and held-out images are exchangeable.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.evaluation.intervals import (
    Interval,
    bootstrap_weights,
    percentile_interval,
)
from orchestrator.evaluation.neighbours import pairwise_distances

NEAR = 0.01
"""Share of held-out images that count as near, which fixes the distance."""
TAILS = (0.01, 0.05)
"""Shares of all images, nearest first, among which generated ones may not dominate: the first
finds a few copies among many images, the second copies that are not exact."""
ALARM = 0.001
"""Probability below which a dominance is no chance."""
ROWS = 1024
"""Images that are compared with all training images at a time."""


@dataclass(frozen=True)
class Memorisation:
    """How near generated images are to training images, compared with held-out images."""

    share: float
    """Share of generated images that are as near as the nearest 1 % of held-out images."""
    interval: Interval
    """Bootstrap interval of ``share``; generated and held-out images are resampled."""
    held_out: float
    """The same share of held-out images: 0.01, or more if images are equally near."""
    probability: float
    """Probability of so many generated images among the nearest ones without memorisation."""

    @property
    def alarm(self) -> bool:
        """Whether the generator copies training images, with an error of 1 in 1,000."""
        return self.probability < ALARM


def nearest_distances(x_ND: Tensor, training_TD: Tensor) -> Tensor:
    """Return the distance of each image to its nearest training image, float64 (N,)."""
    nearest = [pairwise_distances(x, training_TD).min(1).values for x in x_ND.split(ROWS)]
    return torch.cat(nearest).cpu()


def memorisation(generated_N: Tensor, held_out_M: Tensor, *, seed: int = 0) -> Memorisation:
    """Compare distances to the nearest training image, from ``nearest_distances``.

    The probability is that of a one-sided Fisher exact test, which assumes no distribution: of the
    generated and held-out images together, take the nearest 1 % (and 5 %), with all that are
    equally near; if labels were exchanged at random, the number of generated ones among them has a
    hypergeometric distribution. The smaller of the two probabilities is doubled (Bonferroni). That
    images are far from the training set, as a bad generator's are, raises no alarm.

    Fewer than 100 of either cannot raise an alarm reliably.
    """
    near = _order_statistic(held_out_M, NEAR)
    both = torch.cat([generated_N, held_out_M])
    smallest = min(
        _dominance(generated_N, held_out_M, float(_order_statistic(both, tail))) for tail in TAILS
    )
    return Memorisation(
        share=float((generated_N <= near).double().mean()),
        interval=_share_interval(generated_N, held_out_M, seed),
        held_out=float((held_out_M <= near).double().mean()),
        probability=min(1.0, len(TAILS) * smallest),
    )


def _order_statistic(distances: Tensor, share: float) -> Tensor:
    """Return the smallest distance within which at least ``share`` of them lie."""
    return distances.kthvalue(max(1, math.ceil(share * len(distances)))).values


def _dominance(generated_N: Tensor, held_out_M: Tensor, within: float) -> float:
    """Return the probability of at least so many generated images within a distance."""
    generated, held_out = int((generated_N <= within).sum()), int((held_out_M <= within).sum())
    return hypergeometric_tail(generated, len(generated_N), len(held_out_M), generated + held_out)


def hypergeometric_tail(hits: int, marked: int, others: int, drawn: int) -> float:
    """Return P(at least ``hits`` marked) if ``drawn`` of ``marked + others`` are drawn."""
    most = min(marked, drawn)
    total = _log_choose(marked + others, drawn)
    terms = (
        _log_choose(marked, k) + _log_choose(others, drawn - k) - total
        for k in range(max(hits, drawn - others), most + 1)
    )
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def _log_choose(count: int, chosen: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)


def _share_interval(generated_N: Tensor, held_out_M: Tensor, seed: int) -> Interval:
    """Bootstrap the share; the distance that counts as near is that of the resample."""
    ordered = held_out_M.sort().values
    weights = bootstrap_weights(len(ordered), seed=seed + 1).cumsum(1)
    first = (weights < math.ceil(NEAR * len(ordered))).sum(1)
    inside = (generated_N <= ordered[first][:, None]).double()
    drawn = bootstrap_weights(len(generated_N), seed=seed)
    return percentile_interval((drawn * inside).sum(1) / len(generated_N))
