"""What becomes of the trainings that wait for others: asha's and hyperband's rungs, pbt's rounds.

A rung or round is settled from its looks alone, whatever has been done about it. So where a driver
was lost after it had told some of the trainings, the others are told what they would have been.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.config.search_space import clip, draw
from orchestrator.config.sweep import Distribution, Value
from orchestrator.sweeps.intermediate import first_at, grace, score
from orchestrator.sweeps.records import Sweep, Trial

ANEW = 0.25
"""pbt: how likely a value of a copy is drawn anew."""
FACTORS = (0.8, 1.2)
"""pbt: one of them changes a number of a copy that is not drawn anew."""


@dataclass(frozen=True)
class Settlement:
    """What becomes of a training that waited."""

    number: int
    """Of the training."""
    action: Literal["go on", "stop", "copy"]
    """copy: go on from the checkpoint of ``parent``, with ``values``."""
    why: str
    parent: int | None = None
    values: Mapping[str, Value] | None = None


def settle(sweep: Sweep) -> list[Settlement]:
    """What becomes of those paused trainings of which that is certain by now, by their number."""
    match sweep.section.scheduler:
        case "asha":
            said = _settle_asha(sweep)
        case "hyperband":
            said = _settle_hyperband(sweep)
        case "pbt":
            said = _settle_pbt(sweep)
        case _:
            return []
    paused = {trial.number for trial in sweep.trials if trial.status == "paused"}
    return sorted((s for s in said if s.number in paused), key=lambda s: s.number)


def boundary_before(sweep: Sweep, trial: Trial) -> int:
    """Images of the last rung or round that a training has reached; 0 before the first."""
    if sweep.section.scheduler == "pbt":
        return trial.images_seen // grace(sweep) * grace(sweep)
    if sweep.section.scheduler == "asha":
        bracket = _most_rungs(sweep)
    else:
        bracket, _ = _place(sweep, trial.number)
    return max((r for r in _rungs(sweep, bracket) if r <= trial.images_seen), default=0)


def bracket_sizes(sweep: Sweep) -> dict[int, int]:
    """How many trainings each of hyperband's brackets takes (Li et al. 2017), the largest first.

    Those of bracket s wait at s rungs.
    """
    factor, most = sweep.section.reduction_factor, _most_rungs(sweep)
    return {s: -(-(most + 1) * factor**s // (s + 1)) for s in range(most, -1, -1)}


def _most_rungs(sweep: Sweep) -> int:
    """How many rungs there are from ``grace`` on, in whole numbers: logarithms would round."""
    most = 0
    while grace(sweep) * sweep.section.reduction_factor ** (most + 1) <= sweep.total_images:
        most += 1
    return most


def _place(sweep: Sweep, number: int) -> tuple[int, range]:
    """The bracket of a training, and the numbers that are in it together.

    The first numbers fill one bracket of each kind, the largest first, the next ones another.
    """
    sizes = bracket_sizes(sweep)
    bracket, first = len(sizes) - 1, number - number % sum(sizes.values())
    while number >= first + sizes[bracket]:
        first, bracket = first + sizes[bracket], bracket - 1
    return bracket, range(first, first + sizes[bracket])


def _rungs(sweep: Sweep, bracket: int) -> list[int]:
    """Images at which trainings wait that do so ``bracket`` times, rounded up."""
    factor = sweep.section.reduction_factor
    return [-(-sweep.total_images // factor**i) for i in range(bracket, 0, -1)]


def _settle_asha(sweep: Sweep) -> list[Settlement]:
    """Asynchronous successive halving (Li et al. 2020), where one training at a time goes on.

    As in the paper's algorithm 2 it is one of the best ``1 / reduction_factor`` of those that came
    to a rung, of the highest rung that has such a one. But new trainings come first: the more are
    compared, the fewer go on by mistake. Where the time is limited they do not, so that some
    trainings are whole when it is over. Who is certain not to go on is stopped.
    """
    if not sweep.has_all_trials and sweep.section.max_hours is None:
        return []
    ends: list[Settlement] = []
    goes: Settlement | None = None
    coming = [trial for trial in sweep.trials if not trial.is_over]
    for images in _rungs(sweep, _most_rungs(sweep)):
        is_whole = sweep.has_all_trials and all(first_at(trial, images) for trial in coming)
        here = _ranked(sweep, [t for t in sweep.trials if first_at(t, images)], images)
        here = [trial for trial in here if not _was_lost_at(trial, images)]
        keep = max(int(is_whole), len(here) // sweep.section.reduction_factor)
        waiting = [
            (place, trial)
            for place, trial in enumerate(here, 1)
            if trial.status == "paused" and boundary_before(sweep, trial) == images
        ]
        for place, trial in waiting:
            why = f"{_position(place, here)} after {images:,} images"
            if place <= keep and (place, trial) == waiting[0]:
                goes = Settlement(trial.number, "go on", why)
            elif place > keep and is_whole:
                ends.append(Settlement(trial.number, "stop", f"{why}; {_go_on(keep)}"))
                coming.remove(trial)
    # Who was told to go on, and has not begun to, is the one that goes on now.
    is_told = any(trial.status == "waiting" for trial in sweep.trials)
    return ends if goes is None or is_told else [*ends, goes]


def _settle_hyperband(sweep: Sweep) -> list[Settlement]:
    grouped: dict[tuple[int, range], list[Trial]] = {}
    for trial in sweep.trials:
        grouped.setdefault(_place(sweep, trial.number), []).append(trial)
    said: list[Settlement] = []
    for (bracket, numbers), members in grouped.items():
        if sweep.has_all_trials or len(members) == len(numbers):
            said += _settle_bracket(sweep, _rungs(sweep, bracket), members)
    return said


def _settle_bracket(sweep: Sweep, rungs: Sequence[int], members: list[Trial]) -> list[Settlement]:
    """Go through the rungs that are complete, and say of each member how it did at its last one."""
    said: dict[int, Settlement] = {}
    race = members
    for images in rungs:
        here = _ranked(sweep, [t for t in race if first_at(t, images)], images)
        if any(not t.is_over and not first_at(t, images) for t in race):
            for trial in here:  # They wait at this rung now.
                said.pop(trial.number, None)
            break
        here = [trial for trial in here if not _was_lost_at(trial, images)]
        keep = max(1, len(here) // sweep.section.reduction_factor)
        for place, trial in enumerate(here, 1):
            why = f"{_position(place, here)} after {images:,} images; {_go_on(keep)}"
            said[trial.number] = Settlement(trial.number, "go on" if place <= keep else "stop", why)
        race = here[:keep]
    return list(said.values())


def _was_lost_at(trial: Trial, images: int) -> bool:
    """Whether a training ended badly before it could go on from there: it takes no one's place."""
    lost = trial.status in ("diverged", "failed")
    return lost and first_at(trial, images) is trial.looks[-1]


def _settle_pbt(sweep: Sweep) -> list[Settlement]:
    """Population based training (Jaderberg et al. 2017), in rounds: nobody copies an old state."""
    if not sweep.has_all_trials:
        return []
    paused = [trial for trial in sweep.trials if trial.status == "paused"]
    said: list[Settlement] = []
    for images in sorted({boundary_before(sweep, trial) for trial in paused}):
        if not any(_is_awaited(trial, images) for trial in sweep.trials):
            said += _settle_round(sweep, images)
    return said


def _is_awaited(trial: Trial, images: int) -> bool:
    """Whether a training has yet to come to a round, or is there and has yet to save."""
    look = first_at(trial, images)
    is_unsaved = trial.status == "running" or (trial.status, trial.told) == ("waiting", "pause")
    saves = is_unsaved and look is not None and look is trial.looks[-1]
    return not trial.is_over and (look is None or saves)


def _settle_round(sweep: Sweep, images: int) -> list[Settlement]:
    """The worst go on from copies of the best, the others as they are."""
    section, end = sweep.section, min(images + grace(sweep), sweep.total_images)
    looks = [(t, first_at(t, images)) for t in sweep.trials if not t.is_over]
    here = _ranked(sweep, [t for t, look in looks if look and look.images_seen < end], images)
    # A little more, for a product such as 0.29 * 100 that is rounded below the whole number.
    count = math.floor(section.quantile * len(here) + 1e-9)
    count = max(1, count) if len(here) > 1 else 0
    said = []
    for place, trial in enumerate(here, 1):
        why = f"{_position(place, here)} after {images:,} images"
        if place <= len(here) - count:
            said.append(Settlement(trial.number, "go on", why))
            continue
        rng = random.Random(f"{section.seed}/pbt/{images // grace(sweep)}/{trial.number}")
        parent = rng.choice(here[:count])
        values = dict(parent.values) | {
            name: _explored(distribution, parent.values[name], rng)
            for name, distribution in section.space.items()
        }
        why += f"; goes on as a copy of {parent.number}"
        said.append(Settlement(trial.number, "copy", why, parent.number, values))
    return said


def _explored(distribution: Distribution, value: Value, rng: random.Random) -> Value:
    """The value of a copy, near that of its parent or drawn anew."""
    if rng.random() < ANEW:
        return draw(distribution, rng)
    if distribution.kind in ("choice", "grid") or isinstance(value, str | None):
        return value
    return clip(distribution, value * rng.choice(FACTORS))


def _ranked(sweep: Sweep, trials: Sequence[Trial], images: int) -> list[Trial]:
    """The best first, by their first look with so many images; of equals, the lowest number."""

    def key(trial: Trial) -> tuple[float, int]:
        look = first_at(trial, images)
        return (-score(sweep, look) if look else math.inf), trial.number

    return sorted(trials, key=key)


def _go_on(count: int) -> str:
    return f"{count} {'goes' if count == 1 else 'go'} on"


def _position(place: int, ranked: Sequence[Trial]) -> str:
    """Such as "3rd of 9"."""
    teen = place % 100 in (11, 12, 13)
    ending = "th" if teen else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending} of {len(ranked)}"
