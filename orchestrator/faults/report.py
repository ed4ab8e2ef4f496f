"""Compare a run with faults with an undisturbed one, fault by fault."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from orchestrator.diagnostics.compare_runs import EqualityCheck, RunArtifacts, compare
from orchestrator.faults.injection import Recovery

JOB_FILE = "job.yaml"
"""File of a checkpoint that differs from run to run: it names the run's storage."""

Points = Mapping[tuple[str, int], Sequence[float]]
"""All values of each metric at each number of images seen, as the tracking server has them."""


@dataclass(frozen=True)
class RunResult:
    """What a run left behind."""

    artifacts: RunArtifacts
    sums: Mapping[int, Mapping[str, str]]
    """By images seen: sha256 of the files of each checkpoint, as injection.py sums them."""
    points: Points
    pictures: Sequence[str]
    """Names of all pictures that the tracking server has."""


@dataclass(frozen=True)
class FaultResult:
    """One fault, and what was compared of the time until the next one."""

    recovery: Recovery
    num_checkpoints: int
    """Checkpoints that both runs wrote and that were compared."""
    difference: str | None
    """First difference of a checkpoint or a metric; None if there is none."""
    points_once: bool


@dataclass(frozen=True)
class FaultReport:
    """Result of ``verify-resume --faults``."""

    job: str
    model: str
    workers: int
    images: int
    """Images seen by each run."""
    faults: tuple[FaultResult, ...]
    checks: tuple[EqualityCheck, ...]
    """Comparison of the last checkpoints, metrics and pictures of both runs."""

    @property
    def equal(self) -> bool:
        """Whether the run with faults left behind what the undisturbed one did."""
        return all(check.difference is None for check in self.checks) and all(
            result.difference is None and result.points_once for result in self.faults
        )

    def json(self) -> str:
        """Format the report for a script."""
        return json.dumps({**asdict(self), "equal": self.equal}, indent=2)

    def tables(self) -> list[list[tuple[str, ...]]]:
        """Table with a header and one line for each kind of fault, and one of both runs' ends."""
        ends = [
            ("at the end", f"{check.count:,} {check.compared}", check.difference or "equal")
            for check in self.checks
        ]
        return [self._kinds(), [*ends]]

    def _kinds(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [
            ("fault", "tried", "equal", "points once", "s to checkpoint (max)")
        ]
        for name in sorted({result.recovery.fault for result in self.faults}):
            results = [result for result in self.faults if result.recovery.fault == name]
            seconds = [result.recovery.seconds for result in results]
            equal = sum(result.difference is None for result in results)
            once = sum(result.points_once for result in results)
            took = f"{statistics.median(seconds):.1f} ({max(seconds):.1f})"
            rows.append((name, str(len(results)), str(equal), str(once), took))
        return rows


def compare_with_faults(
    baseline: RunResult, faulty: RunResult, recoveries: Sequence[Recovery], interval: int
) -> tuple[tuple[FaultResult, ...], tuple[EqualityCheck, ...]]:
    """Compare both runs: at the end, and for each fault from shortly before it to the next one.

    ``interval`` is the number of images between two checkpoints: a corrupt checkpoint makes a run
    resume from the one before, whose steps are trained again. Where the next fault came within two
    intervals, the span ends with the checkpoint before that one, and both faults count a difference
    in it.
    """
    starts = [max(0, recovery.images_seen - 2 * interval) for recovery in recoveries]
    ends = [
        start if start > one.images_seen else two.images_seen + 1
        for one, two, start in zip(recoveries, recoveries[1:], starts[1:], strict=False)
    ]
    ends.append(faulty.artifacts.state.images_seen + 1)
    results = tuple(
        _compare_span(baseline, faulty, recovery, range(start, end))
        for recovery, start, end in zip(recoveries, starts, ends, strict=True)
    )
    doubled = next((f"{m} at {s}" for (m, s), v in faulty.points.items() if len(v) > 1), None)
    checks = (
        *compare(baseline.artifacts, faulty.artifacts),
        EqualityCheck(
            "points of metrics", len(baseline.points), _first(baseline.points, faulty.points)
        ),
        EqualityCheck(
            "points once", len(faulty.points), doubled and f"{doubled} images is there twice"
        ),
        EqualityCheck(
            "pictures",
            len(baseline.pictures),
            None if baseline.pictures == faulty.pictures else _missing(baseline, faulty),
        ),
    )
    return results, checks


def _compare_span(
    baseline: RunResult, faulty: RunResult, recovery: Recovery, span: range
) -> FaultResult:
    common = [n for n in sorted(baseline.sums.keys() & faulty.sums.keys()) if n in span]
    difference = None
    for images in common:
        for file, theirs in baseline.sums[images].items():
            if file != JOB_FILE and faulty.sums[images].get(file) != theirs and difference is None:
                difference = f"{file} at {images:,} images"
    ours = {key: values for key, values in faulty.points.items() if key[1] in span}
    once = all(len(values) == 1 for values in ours.values())
    expected = {key: values for key, values in baseline.points.items() if key[1] in span}
    if difference is None:
        difference = _first(expected, ours)
    if not common and not expected:
        difference = "nothing was compared; give it more --steps"
    return FaultResult(recovery, len(common), difference, once and expected.keys() == ours.keys())


def _first(one: Points, two: Points) -> str | None:
    """Describe the first point that only one run has, or whose value differs."""
    for key in sorted(one.keys() | two.keys(), key=lambda key: (key[1], key[0])):
        metric, images = key
        if key not in one or key not in two:
            which = "undisturbed run" if key in one else "run with faults"
            return f"{metric} at {images:,} images is in the {which} only"
        if {str(value) for value in two[key]} != {str(value) for value in one[key]}:
            return f"{metric} at {images:,} images: {one[key][0]} and {two[key][0]}"
    return None


def _missing(baseline: RunResult, faulty: RunResult) -> str:
    ours, theirs = sorted(baseline.pictures), sorted(faulty.pictures)
    only = sorted(set(ours) ^ set(theirs))
    return f"{only[0]} is in one run only" if only else "one picture is there twice"
