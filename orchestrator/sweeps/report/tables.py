"""Tables and summary texts of the page."""

from collections import Counter
from typing import get_args

from orchestrator.report.axis_scale import short_names
from orchestrator.report.formats import NONE, format_value_short
from orchestrator.report.markup import cell, definitions, paragraph, table
from orchestrator.sweeps.records import (
    RankedConfig,
    Status,
    Sweep,
    Trial,
    pareto_front,
    rank_configs,
)
from orchestrator.sweeps.report.facts import rank_trials
from orchestrator.sweeps.report.lineage import segments_with_ends

Head = tuple[str, str]
FEW_CONFIGURATIONS = 20
"""Below this many configurations chance often decides which one is best."""


def summary_list(sweep: Sweep) -> str:
    """Summarize the sweep: its settings, its trials and what they took."""
    section = sweep.section
    counts = Counter(trial.status for trial in sweep.trials)
    seen = sum(trial.images_seen for trial in sweep.trials)
    pairs = zip(section.metrics, section.modes, strict=True)
    goals = " and ".join(f"{name} ({mode})" for name, mode in pairs)
    statuses = [f"{counts[s]} {s}" for s in get_args(Status) if counts[s]]
    seconds = sum(trial.runtime_s for trial in sweep.trials)
    duration = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
    several_seeds = section.seeds_per_config > 1
    seeds = f", {section.seeds_per_config} seeds per configuration" if several_seeds else ""
    rows = {
        "Job": sweep.job,
        "State": sweep.state,
        "Metric": goals,
        "Searcher": section.searcher + seeds,
        "Scheduler": section.scheduler,
        "Trials": f"{len(sweep.trials)}: {', '.join(statuses)}" if sweep.trials else "none",
        "Images of a complete trial": f"{sweep.total_images:,}",
        "Images seen": f"{seen:,}, as many as {seen / sweep.total_images:.1f} complete trials",
        "Time of all trials": duration,
    }
    if sweep.mlflow_run_id:
        rows["MLflow run"] = sweep.mlflow_run_id
    return definitions(rows)


def best_table(sweep: Sweep) -> str:
    """Show the best configuration or the Pareto front, and how reliable it is."""
    ranked = rank_configs(sweep)
    if not ranked:
        return paragraph("No configuration has finished yet, so there is no best one.")
    front = pareto_front(sweep) if len(sweep.section.metrics) > 1 else ranked[:1]
    paths = [path for path in sweep.section.space if any(path in c.values for c in front)]
    heads = [*parameter_heads(sweep, paths), *metric_heads(sweep), _head("images seen")]
    heads += [_head("trials"), _head("runs")]
    rows = [_best(sweep, config, paths) for config in front]
    return "\n".join([table(heads, rows), paragraph(*_cautions(sweep, ranked), mark="caution")])


def _best(sweep: Sweep, config: RankedConfig, paths: list[str]) -> list[str]:
    several = len(config.trials) > 1
    runs = (trial.segments[-1].run for trial in sweep.trials if trial.number in config.trials)
    return [
        *(cell(config.values.get(path), mark="value") for path in paths),
        *(
            cell(mean, f"{format_value_short(mean)} ± {spread:.2g}" if several else None)
            for mean, spread in zip(config.means, config.spreads, strict=True)
        ),
        cell(config.images_seen, f"{config.images_seen:,}"),
        cell(", ".join(map(str, config.trials))),
        cell(", ".join(runs), mark="long"),
    ]


def _cautions(sweep: Sweep, ranked: list[RankedConfig]) -> list[str]:
    """Warn about what limits the comparison."""
    comparable = [c for c in ranked if c.images_seen == ranked[0].images_seen]
    cautions = []
    if sweep.section.seeds_per_config > 1:
        cautions.append(
            f"Means over {sweep.section.seeds_per_config} seeds, ± their standard deviation: a "
            "lead below that means little."
        )
    else:
        cautions.append(
            "Each configuration was trained with one seed: a small lead may be chance, which "
            "seeds_per_config would show."
        )
    if len(comparable) == 1:
        cautions.append("No other configuration has seen as many images to compare with.")
    elif len(comparable) < FEW_CONFIGURATIONS:
        cautions.append(
            f"Only {len(comparable)} configurations saw as many images: another sweep may well "
            "find a better one."
        )
    if ranked[0].images_seen < sweep.total_images:
        cautions.append("No trial was complete.")
    return cautions


def trials_table(sweep: Sweep) -> str:
    """List all trials, best first."""
    if not sweep.trials:
        return paragraph("There are no trials yet.")
    paths = list(sweep.section.space)
    several = sweep.section.seeds_per_config > 1
    heads = [_head("trial")]
    heads += [("conf.", "configuration"), _head("seed")] if several else []
    heads += [*parameter_heads(sweep, paths), *metric_heads(sweep)]
    heads += [("images", "images seen"), *map(_head, ("status", "reason", "seconds", "run"))]
    rows = [_trial(sweep, trial, paths) for trial in rank_trials(sweep)]
    return table(heads, rows, name="all")


def _trial(sweep: Sweep, trial: Trial, paths: list[str]) -> list[str]:
    several = sweep.section.seeds_per_config > 1
    return [
        cell(trial.number),
        *([cell(trial.configuration), cell(trial.seed_index)] if several else []),
        *(cell(trial.values.get(path), mark="value") for path in paths),
        *(cell(trial.last_value(k)) for k in range(len(sweep.section.metrics))),
        cell(trial.images_seen, f"{trial.images_seen:,}"),
        cell(trial.status, mark=trial.status),
        cell(trial.reason, mark="long"),
        cell(trial.runtime_s),
        cell(trial.segments[-1].run, mark="long"),
    ]


def segments_table(sweep: Sweep) -> str:
    """List all segments of all trials with their parents."""
    paths = list(sweep.section.space)
    heads = [*map(_head, ("trial", "segment", "from images", "to images"))]
    heads += [("copy of", "copy of trial"), *parameter_heads(sweep, paths), _head("run")]
    rows = [
        [
            cell(trial.number),
            cell(number),
            cell(segment.start_images, f"{segment.start_images:,}"),
            cell(end, f"{end:,}"),
            cell(segment.parent, NONE if segment.parent is None else None),
            *(cell(segment.values.get(path), mark="value") for path in paths),
            cell(segment.run, mark="long"),
        ]
        for trial in sweep.trials
        for number, (segment, end) in enumerate(segments_with_ends(trial))
    ]
    return table(heads, rows, name="segments-of-all")


def parameter_heads(sweep: Sweep, paths: list[str]) -> list[Head]:
    """Make short and full names of the parameters."""
    names = short_names(sweep.section.space)
    return [(names[path], path) for path in paths]


def metric_heads(sweep: Sweep) -> list[Head]:
    """Make names of the metrics, with their modes."""
    both = zip(sweep.section.metrics, sweep.section.modes, strict=True)
    return [(name, f"{name}, {mode}: at the last result") for name, mode in both]


def _head(name: str) -> Head:
    return name, name
