"""``orchestrator tracking``: what a run has logged, and MLflow lacks."""

from typing import Annotated

import typer

from orchestrator.cli.models import DEFAULT_URI, TrackingUri
from orchestrator.cli.output import print_result
from orchestrator.cli.sweep import DEFAULT_STORAGE
from orchestrator.redaction import mask

app = typer.Typer(no_args_is_help=True, help="Send what MLflow lacks of a run.")


@app.callback()
def commands() -> None:
    """Send what MLflow lacks of a run."""


@app.command()
def replay(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="Name of a run, which is its folder in the storage."),
    ],
    storage: Annotated[
        str, typer.Option(envvar="ORCHESTRATOR_STORAGE", help="Storage of the run's job.")
    ] = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Send the metrics, pictures and texts of a run that did not reach MLflow.

    They are in the run's storage and, if it trained here, on this machine. Each is sent once,
    however often this is called, and deleted once MLflow has it. If MLflow is out of reach, the
    exit code is 3, and nothing is lost.
    """
    from orchestrator.config.paths import base_folder, to_absolute_tracking_uri
    from orchestrator.runs.replay import replay_run
    from orchestrator.storage.open import open_storage

    opened = open_storage(storage)
    name = run.rstrip("/").removeprefix(f"{storage.rstrip('/')}/")
    uri = to_absolute_tracking_uri(tracking_uri, base_folder())
    done = replay_run(name, opened, uri)
    if not done.num_records:
        print_result(f"MLflow at {mask(uri)} lacks nothing of {name}")
        return
    origin = f", {done.num_from_storage} of them from the storage" if done.num_from_storage else ""
    print_result(f"{done.num_records} records of {name} sent to MLflow at {mask(uri)}{origin}")
