"""``orchestrator sweep``: searches that were started with `orchestrator run` on a sweep block."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import give, suggest, table
from orchestrator.console import say
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
    from orchestrator.sweeps.live_table import told
    from orchestrator.sweeps.records import standings
    from orchestrator.sweeps.store import sweeps

    place = open_storage(_place(storage))
    found = [store.sweep() for store in sweeps(place)]
    if as_json:
        rows = [{"name": s.name, "state": s.state, "trials": len(s.trials)} for s in found]
        give(json.dumps(rows, indent=2))
        return
    if not found:
        say(f"no sweeps in {mask(place.uri)}; `orchestrator run` on a job with `sweep:` makes one")
        return
    lines = [("name", "state", "trainings over", "best")]
    for sweep in found:
        best = standings(sweep)[:1]
        over = sum(trial.is_over for trial in sweep.trials)
        lines.append(
            (
                sweep.name,
                sweep.state,
                f"{over} of {sweep.num_trials}",
                told(sweep, best[0]) if best else "-",
            )
        )
    give(table(lines))
    suggest(f"orchestrator sweep show {found[-1].name}")


@app.command()
def show(name: Name, storage: Place = None, as_json: AsJson = False) -> None:
    """Show the trainings of a sweep, the best first."""
    from orchestrator.sweeps.live_table import short
    from orchestrator.sweeps.records import standings

    sweep = _sweep_at(name, storage).sweep()
    if as_json:
        about = {"name": sweep.name, "state": sweep.state, "metric": sweep.section.metrics}
        best = [asdict(standing) for standing in standings(sweep)]
        trials = [trial.to_json() for trial in sweep.trials]
        give(json.dumps({**about, "standings": best, "trials": trials}, indent=2))
        return
    rank = {n: i for i, s in enumerate(standings(sweep)) for n in s.trials}
    names = list(sweep.section.space)
    lines = [("no.", "status", "images", *sweep.section.metrics, *names, "why")]
    for trial in sorted(sweep.trials, key=lambda t: (rank.get(t.number, len(rank)), t.number)):
        values = trial.looks[-1].values if trial.looks else ()
        shown = [f"{value:.4g}" for value in values] or ["-"] * len(sweep.section.metrics)
        own = [short(trial.values.get(field)) for field in names]
        why = trial.why.partition("\n")[0]
        lines.append((str(trial.number), trial.status, f"{trial.images_seen:,}", *shown, *own, why))
    give(table(lines))
    say(f"{sweep.state}: {len(sweep.trials)} of {sweep.num_trials} trainings begun")
    following = "report" if sweep.state in ("finished", "running") else "resume"
    suggest(f"orchestrator sweep {following} {name}")


@app.command()
def resume(name: Name, storage: Place = None) -> None:
    """Go on with a sweep that was stopped, or whose driver was lost."""
    from orchestrator.cluster.tune_runner import search
    from orchestrator.sweeps.driver import resume_sweep

    resume_sweep(_sweep_at(name, storage), search)


@app.command()
def stop(name: Name, storage: Place = None) -> None:
    """Ask a running sweep to save all its trainings and end; `sweep resume` goes on with it."""
    store = _sweep_at(name, storage)
    state = store.sweep().state
    if state != "running":
        raise UsageError(f"sweep {store.name} is not running but {state}")
    store.ask_to_stop()
    say(f"sweep {store.name} will save and end within a few seconds")
    suggest(f"orchestrator sweep resume {name}")


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
    from orchestrator.sweeps.report_builder import explain

    store = _sweep_at(name, storage)
    page = explain(store, output or Path(f"{store.name}-report"), grids=grids)
    give(str(page))


@app.command()
def best(name: Name, storage: Place = None) -> None:
    """Print a job file with the best values, ready to run: > jobs/best.yaml."""
    from orchestrator.config.as_overrides import settings
    from orchestrator.config.edit import rewritten
    from orchestrator.sweeps.live_table import told
    from orchestrator.sweeps.records import standings

    store = _sweep_at(name, storage)
    sweep, record = store.sweep(), store.record()
    found = standings(sweep)
    if not found:
        raise UsageError(f"no training of sweep {store.name} has ended with a number yet")
    numbers = ", ".join(map(str, found[0].trials))
    about = (
        f"Best of sweep {store.name} (training {numbers} of {len(sweep.trials)}, "
        f"{found[0].images_seen:,} images each): {told(sweep, found[0])}"
    )
    own = tuple(o for o in record.overrides if o.partition("=")[0].partition(".")[0] != "sweep")
    overrides = (*own, *settings(found[0].values))
    give(rewritten(record.text, overrides, ("sweep",), about).rstrip())


def _place(storage: str | None) -> str:
    return storage or os.environ.get("ORCHESTRATOR_STORAGE", "runs")


def _sweep_at(name: str, storage: str | None) -> "SweepStore":
    from orchestrator.sweeps.store import sweep_at

    return sweep_at(name, _place(storage))
