"""``orchestrator models``: list and pull trained models."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

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

app = typer.Typer(
    no_args_is_help=True, help="List, judge, promote, pull and export registered models."
)
VERSION_HELP = "NAME (its newest version), NAME@ALIAS or NAME/VERSION."

TrackingUri = Annotated[
    str,
    typer.Option(
        "--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow server or sqlite:/// database."
    ),
]
DEFAULT_URI = "sqlite:///mlflow.db"


@app.command()
def ls(tracking_uri: TrackingUri = DEFAULT_URI, as_json: AsJson = False) -> None:
    """List the registered models."""
    from orchestrator.registry.registry import list_models

    versions = list_models(tracking_uri)
    if as_json:
        print_json([asdict(version) for version in versions])
        return
    rows = [("model", "version", "aliases", "registered", "run")]
    rows += [
        (v.name, str(v.version), ", ".join(v.aliases), f"{v.created:%Y-%m-%d %H:%M}", v.run_id)
        for v in versions
    ]
    print_result(format_table(rows))
    if versions:
        print_next_steps(f"orchestrator models pull {quote(versions[0].name)} DEST")


@app.command()
def catalog(as_json: AsJson = False) -> None:
    """List the models that can be trained, with the settings of their jobs in jobs/."""
    from orchestrator.registry.catalog import HEADINGS, build_catalog

    entries = build_catalog(Path("jobs"))
    if as_json:
        print_json([entry.json() for entry in entries])
        return
    print_result(format_table([HEADINGS, *(entry.row() for entry in entries)]))
    jobs = [entry.job for entry in entries if entry.job]
    if jobs:
        print_next_steps(f"orchestrator plan {quote(jobs[0])}")


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help=VERSION_HELP)],
    dest: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Write weights, config and README of a registered model to a folder."""
    from orchestrator.registry import registry

    registry.pull(model, dest, tracking_uri)
    log_info(f"{model}: weights, config and a README that shows how to load them are in {dest}")
    print_next_steps(f"orchestrator sample {quote(dest)} --input FOLDER --output FOLDER")


@app.command()
def upgrade(
    model: Annotated[str, typer.Argument(help=VERSION_HELP)],
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Register the weights of an older version anew: each seed then gives one image."""
    from orchestrator.registry.upgrade import upgrade

    made = upgrade(model, tracking_uri)
    log_info(f"registered {made.name} version {made.version}, with the weights of {model}")
    print_next_steps(f"orchestrator models pull {quote(f'{made.name}/{made.version}')} DEST")
