"""``orchestrator sweep``: searches that were started with `orchestrator run` on a sweep block."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import print_next_steps, print_result, table
from orchestrator.console import log_info
from orchestrator.errors import UsageError
from orchestrator.redaction import mask

if TYPE_CHECKING:
    from orchestrator.sweeps.store import SweepStore

app = typer.Typer(
    no_args_is_help=True, help="List, show, resume, stop and explain searches (job files: sweep)."
)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A sweep's name, or STORAGE/sweeps/NAME.")
]
Place = Annotated[
    str | None,
    typer.Option(
        "--storage",
        help="Where its job keeps checkpoints; by default ORCHESTRATOR_STORAGE, or runs.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]


@app.command()
def ls(storage: Place = None, as_json: AsJson = False) -> None:
    """List the sweeps in a storage, oldest first."""
    from orchestrator.storage.open import open_storage
    from orchestrator.sweeps.live_table import format_config
    from orchestrator.sweeps.records import rank_configs
    from orchestrator.sweeps.store import list_sweeps

    place = open_storage(_place(storage))
    found = [store.load() for store in list_sweeps(place)]
    if as_json:
        rows = [{"name": s.name, "state": s.state, "trials": len(s.trials)} for s in found]
        print_result(json.dumps(rows, indent=2))
        return
    if not found:
        log_info(
            f"no sweeps in {mask(place.uri)}; `orchestrator run` on a job with `sweep:` makes one"
        )
        return
    lines = [("name", "state", "trainings over", "best")]
    for sweep in found:
        best = rank_configs(sweep)[:1]
        over = sum(trial.is_over for trial in sweep.trials)
        lines.append(
            (
                sweep.name,
                sweep.state,
                f"{over} of {sweep.num_trials}",
                format_config(sweep, best[0]) if best else "-",
            )
        )
    print_result(table(lines))
    print_next_steps(f"orchestrator sweep show {found[-1].name}")


@app.command()
def show(name: Name, storage: Place = None, as_json: AsJson = False) -> None:
    """Show the trainings of a sweep, the best first."""
    from orchestrator.sweeps.live_table import format_value
    from orchestrator.sweeps.records import rank_configs

    sweep = _sweep_at(name, storage).load()
    if as_json:
        about = {"name": sweep.name, "state": sweep.state, "metric": sweep.section.metrics}
        best = [asdict(ranked) for ranked in rank_configs(sweep)]
        trials = [trial.to_json() for trial in sweep.trials]
        print_result(json.dumps({**about, "ranking": best, "trials": trials}, indent=2))
        return
    rank = {n: i for i, s in enumerate(rank_configs(sweep)) for n in s.trials}
    names = list(sweep.section.space)
    lines = [("no.", "status", "images", *sweep.section.metrics, *names, "why")]
    for trial in sorted(sweep.trials, key=lambda t: (rank.get(t.number, len(rank)), t.number)):
        values = trial.results[-1].values if trial.results else ()
        shown = [f"{value:.4g}" for value in values] or ["-"] * len(sweep.section.metrics)
        own = [format_value(trial.values.get(field)) for field in names]
        reason = trial.reason.partition("\n")[0]
        lines.append(
            (str(trial.number), trial.status, f"{trial.images_seen:,}", *shown, *own, reason)
        )
    print_result(table(lines))
    log_info(f"{sweep.state}: {len(sweep.trials)} of {sweep.num_trials} trainings begun")
    following = "report" if sweep.state in ("finished", "running") else "resume"
    print_next_steps(f"orchestrator sweep {following} {name}")


@app.command()
def resume(name: Name, storage: Place = None) -> None:
    """Go on with a sweep that was stopped, or whose driver was lost."""
    from orchestrator.cluster.tune_runner import run_trials
    from orchestrator.sweeps.driver import resume_sweep

    resume_sweep(_sweep_at(name, storage), run_trials)


@app.command()
def stop(name: Name, storage: Place = None) -> None:
    """Ask a running sweep to save all its trainings and end; `sweep resume` goes on with it."""
    store = _sweep_at(name, storage)
    state = store.load().state
    if state != "running":
        raise UsageError(f"sweep {store.name} is not running but {state}")
    store.request_stop()
    log_info(f"sweep {store.name} will save and end within a few seconds")
    print_next_steps(f"orchestrator sweep resume {name}")


@app.command()
def report(
    name: Name,
    storage: Place = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder to write to; by default NAME-report.")
    ] = None,
    grids: Annotated[
        bool, typer.Option("--grids/--no-grids", help="Fetch the sample grids from MLflow.")
    ] = True,
) -> None:
    """Write what a sweep found as one HTML page, and its pictures as PNG files."""
    from orchestrator.sweeps.report_builder import build_report

    store = _sweep_at(name, storage)
    page = build_report(store, output or Path(f"{store.name}-report"), grids=grids)
    print_result(str(page))


@app.command()
def best(name: Name, storage: Place = None) -> None:
    """Print a job file with the best values, ready to run: > jobs/best.yaml."""
    from orchestrator.config.as_overrides import to_overrides
    from orchestrator.config.edit import edit_values
    from orchestrator.sweeps.live_table import format_config
    from orchestrator.sweeps.records import rank_configs

    store = _sweep_at(name, storage)
    sweep, record = store.load(), store.read_record()
    found = rank_configs(sweep)
    if not found:
        raise UsageError(f"no training of sweep {store.name} has ended with a number yet")
    numbers = ", ".join(map(str, found[0].trials))
    about = (
        f"Best of sweep {store.name} (training {numbers} of {len(sweep.trials)}, "
        f"{found[0].images_seen:,} images each): {format_config(sweep, found[0])}"
    )
    own = tuple(o for o in record.overrides if o.partition("=")[0].partition(".")[0] != "sweep")
    overrides = (*own, *to_overrides(found[0].values))
    print_result(edit_values(record.text, overrides, ("sweep",), about).rstrip())


def _place(storage: str | None) -> str:
    return storage or os.environ.get("ORCHESTRATOR_STORAGE", "runs")


def _sweep_at(name: str, storage: str | None) -> "SweepStore":
    from orchestrator.sweeps.store import open_sweep

    return open_sweep(name, _place(storage))
