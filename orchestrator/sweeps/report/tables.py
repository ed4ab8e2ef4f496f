"""What the page says in words and tables."""

from collections import Counter
from typing import get_args

from orchestrator.sweeps.records import Standing, Status, Sweep, Trial, pareto_front, standings
from orchestrator.sweeps.report.facts import NONE, compact, ranked
from orchestrator.sweeps.report.lineage import leg_ends
from orchestrator.sweeps.report.markup import cell, paragraph, table, text
from orchestrator.sweeps.report.scales import short_names

Head = tuple[str, str]
FEW = 20
"""Below so many configurations the best one is best by chance more often than people think."""


def facts(sweep: Sweep) -> str:
    """What was searched, how, and what it took."""
    section = sweep.section
    counts = Counter(trial.status for trial in sweep.trials)
    spent = sum(trial.images_seen for trial in sweep.trials)
    goals = " and ".join(
        f"{name} ({mode})" for name, mode in zip(section.metrics, section.modes, strict=True)
    )
    statuses = [f"{counts[s]} {s}" for s in get_args(Status) if counts[s]]
    repeats = (
        f", {section.seeds_per_config} trainings of each" if section.seeds_per_config > 1 else ""
    )
    found = {
        "Job": sweep.job,
        "State": sweep.state,
        "Metric": goals,
        "Searcher": section.searcher + repeats,
        "Scheduler": section.scheduler,
        "Trials": f"{len(sweep.trials)}: {', '.join(statuses)}" if sweep.trials else "none",
        "Images of a whole training": f"{sweep.total_images:,}",
        "Images spent": f"{spent:,}, as many as {spent / sweep.total_images:.1f} whole trainings",
        "Time of all trainings": _hours(sum(trial.seconds for trial in sweep.trials)),
    }
    if sweep.mlflow_run_id:
        found["MLflow run"] = sweep.mlflow_run_id
    rows = "\n".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in found.items())
    return f"<dl>\n{rows}\n</dl>"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def best(sweep: Sweep) -> str:
    """The best configuration, or the Pareto front, and how far it can be trusted."""
    found = standings(sweep)
    if not found:
        return paragraph("No configuration is done yet, so there is no best one.")
    front = pareto_front(sweep) if len(sweep.section.metrics) > 1 else found[:1]
    paths = [path for path in sweep.section.space if any(path in s.values for s in front)]
    heads = [*parameter_heads(sweep, paths), *metric_heads(sweep), _head("images seen")]
    heads += [_head("trials"), _head("runs")]
    rows = [[*_values(s, paths), *_means(s), *_origin(sweep, s)] for s in front]
    return "\n".join([table(heads, rows), paragraph(*_caution(sweep, found), mark="caution")])


def _values(standing: Standing, paths: list[str]) -> list[str]:
    return [cell(standing.values.get(path), mark="value") for path in paths]


def _means(standing: Standing) -> list[str]:
    several = len(standing.trials) > 1
    return [
        cell(mean, f"{compact(mean)} ± {spread:.2g}" if several else None)
        for mean, spread in zip(standing.means, standing.spreads, strict=True)
    ]


def _origin(sweep: Sweep, standing: Standing) -> list[str]:
    numbers = ", ".join(map(str, standing.trials))
    runs = ", ".join(t.legs[-1].run for t in sweep.trials if t.number in standing.trials)
    seen = cell(standing.images_seen, f"{standing.images_seen:,}")
    return [seen, cell(numbers), cell(runs, mark="long")]


def _caution(sweep: Sweep, found: list[Standing]) -> list[str]:
    """What a reader should know before believing it."""
    equal = [s for s in found if s.images_seen == found[0].images_seen]
    said = []
    if sweep.section.seeds_per_config > 1:
        said.append(
            f"Means of {sweep.section.seeds_per_config} trainings, ± their standard deviation: a "
            "lead smaller than that says little."
        )
    else:
        said.append(
            "Each configuration was trained once: a small lead may be the luck of its seed, which "
            "repeats would tell."
        )
    if len(equal) == 1:
        said.append("No other configuration has seen as many images, so this one has no equal.")
    elif len(equal) < FEW:
        said.append(
            f"Only {len(equal)} configurations saw as many images: another search may well find a "
            "better one."
        )
    if found[0].images_seen < sweep.total_images:
        said.append("None was trained to the end.")
    return said


def trials(sweep: Sweep) -> str:
    """All trials, the best first."""
    if not sweep.trials:
        return paragraph("There are no trials yet.")
    paths = list(sweep.section.space)
    several = sweep.section.seeds_per_config > 1
    heads = [_head("trial")]
    heads += [("conf.", "configuration"), _head("seed")] if several else []
    heads += [*parameter_heads(sweep, paths), *metric_heads(sweep)]
    heads += [("images", "images seen"), *map(_head, ("status", "why", "seconds", "run"))]
    rows = [_trial(sweep, trial, paths) for trial in ranked(sweep)]
    return table(heads, rows, name="all")


def _trial(sweep: Sweep, trial: Trial, paths: list[str]) -> list[str]:
    several = sweep.section.seeds_per_config > 1
    return [
        cell(trial.number),
        *([cell(trial.configuration), cell(trial.repeat)] if several else []),
        *(cell(trial.values.get(path), mark="value") for path in paths),
        *(cell(trial.last(k)) for k in range(len(sweep.section.metrics))),
        cell(trial.images_seen, f"{trial.images_seen:,}"),
        cell(trial.status, mark=trial.status),
        cell(trial.why, mark="long"),
        cell(trial.seconds),
        cell(trial.legs[-1].run, mark="long"),
    ]


def legs(sweep: Sweep) -> str:
    """All stretches of all trainings, with who was copied."""
    paths = list(sweep.section.space)
    heads = [
        *map(_head, ("trial", "leg", "from images", "to images")),
        ("copy of", "copy of trial"),
    ]
    heads += [*parameter_heads(sweep, paths), _head("run")]
    rows = []
    for trial in sweep.trials:
        for number, (leg, end) in enumerate(zip(trial.legs, leg_ends(trial), strict=True)):
            rows.append(
                [
                    cell(trial.number),
                    cell(number),
                    cell(leg.from_images, f"{leg.from_images:,}"),
                    cell(end, f"{end:,}"),
                    cell(leg.parent, NONE if leg.parent is None else None),
                    *(cell(leg.values.get(path), mark="value") for path in paths),
                    cell(leg.run, mark="long"),
                ]
            )
    return table(heads, rows, name="legs-of-all")


def parameter_heads(sweep: Sweep, paths: list[str]) -> list[Head]:
    """Short and full names of parameters."""
    names = short_names(sweep.section.space)
    return [(names[path], path) for path in paths]


def metric_heads(sweep: Sweep) -> list[Head]:
    """Names of the metrics, with what is good."""
    both = zip(sweep.section.metrics, sweep.section.modes, strict=True)
    return [(name, f"{name}, {mode}: at the last look") for name, mode in both]


def _head(name: str) -> Head:
    return name, name
