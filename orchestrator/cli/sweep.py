"""``orchestrator sweep``: sweeps that were started with `orchestrator run` on a sweep block."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import (
    AsJson,
    format_table,
    print_json,
    print_next_steps,
    print_result,
    quote,
)
from orchestrator.console import log_info
from orchestrator.errors import UsageError
from orchestrator.redaction import mask

if TYPE_CHECKING:
    from orchestrator.storage.base import Storage
    from orchestrator.sweeps.records import Sweep
    from orchestrator.sweeps.store import SweepStore

app = typer.Typer(
    no_args_is_help=True,
    help="List, show, resume, stop and report on sweeps (job files with a sweep block).",
)

SweepName = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of a sweep, or STORAGE/sweeps/NAME.")
]
StorageOption = Annotated[
    str, typer.Option(envvar="ORCHESTRATOR_STORAGE", help="Storage of the sweep's job.")
]
DEFAULT_STORAGE = "runs"


@app.command()
def ls(storage: StorageOption = DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """List the sweeps in a storage, oldest first."""
    from orchestrator.storage.open import open_storage
    from orchestrator.sweeps.live_table import format_config
    from orchestrator.sweeps.records import rank_configs

    opened = open_storage(storage)
    sweeps = list(_load_sweeps(opened))
    if as_json:
        print_json([{"name": s.name, "state": s.state, "trials": len(s.trials)} for s in sweeps])
        return
    if not sweeps:
        log_info(
            f"no sweeps in {mask(opened.uri)}; `orchestrator run` on a job with `sweep:` starts one"
        )
        return
    lines = [("name", "state", "trials over", "best")]
    for sweep in sweeps:
        ranked = rank_configs(sweep)
        num_over = sum(trial.is_over for trial in sweep.trials)
        best = format_config(sweep, ranked[0]) if ranked else "-"
        lines.append((sweep.name, sweep.state, f"{num_over} of {sweep.num_trials}", best))
    print_result(format_table(lines))
    print_next_steps(f"orchestrator sweep show {quote(sweeps[-1].name)}")


@app.command()
def show(
    name: SweepName, storage: StorageOption = DEFAULT_STORAGE, as_json: AsJson = False
) -> None:
    """Show the trials of a sweep, best first."""
    from orchestrator.sweeps.live_table import format_value
    from orchestrator.sweeps.records import rank_configs

    sweep = _open_sweep(name, storage).load()
    ranked = rank_configs(sweep)
    if as_json:
        about = {"name": sweep.name, "state": sweep.state, "metric": sweep.section.metrics}
        ranking = [asdict(config) for config in ranked]
        trials = [trial.to_json() for trial in sweep.trials]
        print_json({**about, "ranking": ranking, "trials": trials})
        return
    best_first = [number for config in ranked for number in config.trials]
    rank = {number: position for position, number in enumerate(best_first)}
    fields = list(sweep.section.space)
    lines = [("trial", "status", "images", *sweep.section.metrics, *fields, "reason")]
    for trial in sorted(sweep.trials, key=lambda t: (rank.get(t.number, len(rank)), t.number)):
        results = trial.results[-1].values if trial.results else ()
        metrics = [f"{value:.4g}" for value in results] or ["-"] * len(sweep.section.metrics)
        values = [format_value(trial.values.get(field)) for field in fields]
        seen, reason = f"{trial.images_seen:,}", trial.reason.partition("\n")[0]
        lines.append((str(trial.number), trial.status, seen, *metrics, *values, reason))
    print_result(format_table(lines))
    log_info(f"{sweep.state}: {len(sweep.trials)} of {sweep.num_trials} trials started")
    command = "report" if sweep.state in ("finished", "running") else "resume"
    print_next_steps(f"orchestrator sweep {command} {quote(name)}")


@app.command()
def resume(name: SweepName, storage: StorageOption = DEFAULT_STORAGE) -> None:
    """Resume a sweep that was stopped or whose driver died."""
    from orchestrator.cluster.ray_process import RayProcess
    from orchestrator.sweeps.driver import resume_sweep

    with RayProcess() as ray_process:
        resume_sweep(_open_sweep(name, storage), ray_process.run_trials)


@app.command()
def stop(name: SweepName, storage: StorageOption = DEFAULT_STORAGE) -> None:
    """Ask a running sweep to save its trials and end; `sweep resume` continues it."""
    store = _open_sweep(name, storage)
    state = store.load().state
    if state != "running":
        raise UsageError(f"sweep {store.name} is not running but {state}")
    store.request_stop()
    log_info(f"sweep {store.name} will save its trials and end within a few seconds")
    print_next_steps(f"orchestrator sweep resume {quote(name)}")


@app.command()
def report(
    name: SweepName,
    storage: StorageOption = DEFAULT_STORAGE,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder to write to; by default NAME-report.")
    ] = None,
    grids: Annotated[
        bool, typer.Option("--grids/--no-grids", help="Fetch the sample grids from MLflow.")
    ] = True,
) -> None:
    """Write the results of a sweep as one HTML page, and its figures as PNG files."""
    from orchestrator.sweeps.report_builder import build_report

    store = _open_sweep(name, storage)
    page = build_report(store, output or Path(f"{store.name}-report"), grids=grids)
    print_result(str(page))


@app.command()
def best(name: SweepName, storage: StorageOption = DEFAULT_STORAGE) -> None:
    """Print a job file with the best values, ready to run: > jobs/best.yaml."""
    from orchestrator.config.edit import edit_values
    from orchestrator.config.overrides import to_overrides
    from orchestrator.sweeps.live_table import format_config
    from orchestrator.sweeps.records import rank_configs

    store = _open_sweep(name, storage)
    sweep, record = store.load(), store.read_record()
    ranked = rank_configs(sweep)
    if not ranked:
        raise UsageError(f"no trial of sweep {store.name} has ended with a finite metric yet")
    numbers = ", ".join(map(str, ranked[0].trials))
    comment = (
        f"Best of sweep {store.name} (trial {numbers} of {len(sweep.trials)}, "
        f"{ranked[0].images_seen:,} images each): {format_config(sweep, ranked[0])}"
    )
    kept = (o for o in record.overrides if o.partition("=")[0].partition(".")[0] != "sweep")
    overrides = (*kept, *to_overrides(ranked[0].values))
    print_result(edit_values(record.text, overrides, ("sweep",), comment).rstrip())


def _open_sweep(name: str, storage: str) -> "SweepStore":
    from orchestrator.sweeps.store import open_sweep

    return open_sweep(name, storage)


def _load_sweeps(storage: "Storage") -> "Iterator[Sweep]":
    """Load the sweeps in a storage; those of another version and damaged ones are only logged."""
    from orchestrator.record_reader import DamagedRecord
    from orchestrator.sweeps.store import UnsupportedFormat, list_sweeps

    for store in list_sweeps(storage):
        try:
            yield store.load()
        except (UnsupportedFormat, DamagedRecord) as error:
            log_info(str(error))
