"""Promotion of paused trials: the rungs of asha and hyperband, the perturbations of pbt.

A milestone is a number of images at which trials pause: a rung, or a multiple of pbt's interval.
Each one is decided from its intermediate results alone, whatever has been carried out since. If a
driver dies after it has applied some of the decisions, the next driver makes the others as before.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.config.search_space import clip, draw
from orchestrator.config.sweep import Distribution, Value
from orchestrator.sweeps.intermediate import first_result_at, grace_images, score
from orchestrator.sweeps.records import Sweep, Trial

RESAMPLE_PROBABILITY = 0.25
"""pbt: probability that a copy resamples a value instead of perturbing it."""
PERTURBATION_FACTORS = (0.8, 1.2)
"""pbt: factors of a perturbed number, equally likely."""


@dataclass(frozen=True)
class Promotion:
    """Decision about one paused trial."""

    number: int
    """Of the trial."""
    action: Literal["continue", "stop", "copy"]
    """copy: continue from the checkpoint of ``parent`` with ``values``."""
    reason: str
    parent: int | None = None
    values: Mapping[str, Value] | None = None


def decide_promotions(sweep: Sweep) -> list[Promotion]:
    """Decide about the paused trials whose outcome is certain by now, by trial number."""
    match sweep.section.scheduler:
        case "asha":
            decided = _decide_asha(sweep)
        case "hyperband":
            decided = _decide_hyperband(sweep)
        case "pbt":
            decided = _decide_pbt(sweep)
        case _:
            return []
    paused = {trial.number for trial in sweep.trials if trial.status == "paused"}
    return sorted((p for p in decided if p.number in paused), key=lambda p: p.number)


def last_milestone(sweep: Sweep, trial: Trial) -> int:
    """Images of the last milestone that a trial has reached; 0 before the first."""
    if sweep.section.scheduler == "pbt":
        return trial.images_seen // grace_images(sweep) * grace_images(sweep)
    if sweep.section.scheduler == "asha":
        bracket = _max_bracket(sweep)
    else:
        bracket, _ = _find_bracket(sweep, trial.number)
    return max((r for r in _rungs(sweep, bracket) if r <= trial.images_seen), default=0)


def bracket_sizes(sweep: Sweep) -> dict[int, int]:
    """Number of trials in each bracket of hyperband (Li et al. 2017), the largest bracket first.

    The trials of bracket s pause at s rungs.
    """
    factor, largest = sweep.section.reduction_factor, _max_bracket(sweep)
    return {s: -(-(largest + 1) * factor**s // (s + 1)) for s in range(largest, -1, -1)}


def _max_bracket(sweep: Sweep) -> int:
    """Number of rungs from the grace period on (s_max); integers, since a logarithm would round."""
    grace, factor, largest = grace_images(sweep), sweep.section.reduction_factor, 0
    while grace * factor ** (largest + 1) <= sweep.total_images:
        largest += 1
    return largest


def _find_bracket(sweep: Sweep, number: int) -> tuple[int, range]:
    """Find the bracket of a trial and the numbers of the trials in it.

    Trials fill one bracket of each size in order, the largest first, and then start again.
    """
    sizes = bracket_sizes(sweep)
    bracket, first = len(sizes) - 1, number - number % sum(sizes.values())
    while number >= first + sizes[bracket]:
        first, bracket = first + sizes[bracket], bracket - 1
    return bracket, range(first, first + sizes[bracket])


def _rungs(sweep: Sweep, bracket: int) -> list[int]:
    """Images of the rungs of a bracket, in increasing order, rounded up."""
    factor = sweep.section.reduction_factor
    return [-(-sweep.total_images // factor**i) for i in range(bracket, 0, -1)]


def _decide_asha(sweep: Sweep) -> list[Promotion]:
    """Asynchronous successive halving (Li et al. 2020, algorithm 2), one promotion at a time.

    The promoted trial is among the best ``1 / reduction_factor`` of those that reached a rung, on
    the highest rung that has one. Unlike in the paper new trials start first: the more trials are
    compared, the fewer are promoted by mistake. With ``max_hours`` the paper's order holds, so that
    some trials are complete when the time is up. Trials that can no longer be promoted stop.
    """
    if not sweep.has_all_trials and sweep.section.max_hours is None:
        return []
    stops: list[Promotion] = []
    promoted: Promotion | None = None
    active = [trial for trial in sweep.trials if not trial.is_over]
    for images in _rungs(sweep, _max_bracket(sweep)):
        is_complete = sweep.has_all_trials and all(first_result_at(t, images) for t in active)
        ranked = _rank_at_rung(sweep, sweep.trials, images)
        num_promoted = max(int(is_complete), len(ranked) // sweep.section.reduction_factor)
        waiting = [
            (position, trial)
            for position, trial in enumerate(ranked, 1)
            if trial.status == "paused" and last_milestone(sweep, trial) == images
        ]
        for position, trial in waiting:
            reason = _place(position, ranked, images)
            if position <= num_promoted and (position, trial) == waiting[0]:
                promoted = Promotion(trial.number, "continue", reason)
            elif position > num_promoted and is_complete:
                stops.append(Promotion(trial.number, "stop", f"{reason}; {num_promoted} promoted"))
                active.remove(trial)
    # A trial that was promoted and has not started yet is the one promotion of the moment.
    is_pending = any(trial.status == "waiting" for trial in sweep.trials)
    return stops if promoted is None or is_pending else [*stops, promoted]


def _decide_hyperband(sweep: Sweep) -> list[Promotion]:
    brackets: dict[tuple[int, range], list[Trial]] = {}
    for trial in sweep.trials:
        brackets.setdefault(_find_bracket(sweep, trial.number), []).append(trial)
    decided: list[Promotion] = []
    for (bracket, numbers), members in brackets.items():
        if sweep.has_all_trials or len(members) == len(numbers):
            decided += _decide_bracket(sweep, _rungs(sweep, bracket), members)
    return decided


def _decide_bracket(sweep: Sweep, rungs: Sequence[int], members: list[Trial]) -> list[Promotion]:
    """Decide about the members of a bracket at the last complete rung of each."""
    decided: dict[int, Promotion] = {}
    survivors = members
    for images in rungs:
        if any(not t.is_over and not first_result_at(t, images) for t in survivors):
            for trial in survivors:  # Those that have got here wait at this rung now.
                if first_result_at(trial, images):
                    decided.pop(trial.number, None)
            break
        ranked = _rank_at_rung(sweep, survivors, images)
        num_promoted = max(1, len(ranked) // sweep.section.reduction_factor)
        for position, trial in enumerate(ranked, 1):
            action: Literal["continue", "stop"] = "continue" if position <= num_promoted else "stop"
            reason = f"{_place(position, ranked, images)}; {num_promoted} promoted"
            decided[trial.number] = Promotion(trial.number, action, reason)
        survivors = ranked[:num_promoted]
    return list(decided.values())


def _rank_at_rung(sweep: Sweep, trials: Sequence[Trial], images: int) -> list[Trial]:
    """Rank the trials that reached a rung, without those that diverged or failed right there.

    Such a trial cannot be promoted, so it must not take a place among the promoted.
    """
    reached = []
    for trial in trials:
        result, failed = first_result_at(trial, images), trial.status in ("diverged", "failed")
        if result is not None and not (failed and result is trial.results[-1]):
            reached.append(trial)
    return _rank(sweep, reached, images)


def _decide_pbt(sweep: Sweep) -> list[Promotion]:
    """Population based training (Jaderberg et al. 2017), synchronous: no copy of an old state."""
    if not sweep.has_all_trials:
        return []
    paused = [trial for trial in sweep.trials if trial.status == "paused"]
    decided: list[Promotion] = []
    for images in sorted({last_milestone(sweep, trial) for trial in paused}):
        if not any(_is_awaited(trial, images) for trial in sweep.trials):
            decided += _exploit_and_explore(sweep, images)
    return decided


def _is_awaited(trial: Trial, images: int) -> bool:
    """Whether a trial has yet to reach a milestone, or has reached it and has yet to save."""
    result = first_result_at(trial, images)
    is_pausing = (trial.status, trial.last_decision) == ("waiting", "pause")
    is_unsaved = trial.status == "running" or is_pausing
    must_save = is_unsaved and result is not None and result is trial.results[-1]
    return not trial.is_over and (result is None or must_save)


def _exploit_and_explore(sweep: Sweep, images: int) -> list[Promotion]:
    """Replace the worst trials by perturbed copies of the best; the others continue unchanged."""
    section, end = sweep.section, min(images + grace_images(sweep), sweep.total_images)
    results = [(t, first_result_at(t, images)) for t in sweep.trials if not t.is_over]
    ranked = _rank(sweep, [t for t, r in results if r and r.images_seen < end], images)
    # The epsilon corrects products such as 0.29 * 100, which round below the whole number.
    num_copies = math.floor(section.quantile * len(ranked) + 1e-9)
    num_copies = max(1, num_copies) if len(ranked) > 1 else 0
    decided = []
    for position, trial in enumerate(ranked, 1):
        reason = _place(position, ranked, images)
        if position <= len(ranked) - num_copies:
            decided.append(Promotion(trial.number, "continue", reason))
            continue
        rng = random.Random(f"{section.seed}/pbt/{images // grace_images(sweep)}/{trial.number}")
        parent = rng.choice(ranked[:num_copies])
        values = dict(parent.values) | {
            name: _explore(distribution, parent.values[name], rng)
            for name, distribution in section.space.items()
        }
        reason += f"; continues as a copy of trial {parent.number}"
        decided.append(Promotion(trial.number, "copy", reason, parent.number, values))
    return decided


def _explore(distribution: Distribution, value: Value, rng: random.Random) -> Value:
    """Perturb or resample a value of the parent for its copy."""
    if rng.random() < RESAMPLE_PROBABILITY:
        return draw(distribution, rng)
    if distribution.kind in ("choice", "grid") or isinstance(value, str | None):
        return value
    return clip(distribution, value * rng.choice(PERTURBATION_FACTORS))


def _rank(sweep: Sweep, trials: Sequence[Trial], images: int) -> list[Trial]:
    """Rank trials by their first result at ``images`` or later, best first; ties by number."""
    found = [(r, t) for t in trials if (r := first_result_at(t, images))]
    ordered = sorted(found, key=lambda pair: (-score(sweep, pair[0]), pair[1].number))
    return [trial for _, trial in ordered]


def _place(position: int, ranked: Sequence[Trial], images: int) -> str:
    """Format the place of a trial, as in "3rd of 9 after 1,000 images"."""
    is_teen = position % 100 in (11, 12, 13)
    suffix = "th" if is_teen else {1: "st", 2: "nd", 3: "rd"}.get(position % 10, "th")
    return f"{position}{suffix} of {len(ranked)} after {images:,} images"
