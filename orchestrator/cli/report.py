"""``orchestrator report`` and ``orchestrator watch``: the page of training runs."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.output import print_result
from orchestrator.cli.sweep import DEFAULT_STORAGE
from orchestrator.console import log_info
from orchestrator.errors import DataError, UsageError

DEFAULT_PORT = 8770
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="Name of a run, STORAGE/RUN, or an MLflow run id.")
]
Runs = Annotated[
    list[str],
    typer.Argument(metavar="RUN...", help="Names of runs, STORAGE/RUN, or MLflow run ids."),
]
RunStorage = Annotated[
    str,
    typer.Option(envvar="ORCHESTRATOR_STORAGE", help="Storage of runs that are given by name."),
]
JobsTracking = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow server or sqlite:/// database; by default that of the run's job.",
        show_default=False,
    ),
]


def report(
    runs: Runs,
    output: Annotated[
        Path | None,
        typer.Option(help="File to write; by default RUN-report.html, or runs-report.html."),
    ] = None,
    storage: RunStorage = DEFAULT_STORAGE,
    tracking_uri: JobsTracking = None,
) -> None:
    """Write a report of runs, side by side, as one HTML file that needs no network."""
    from orchestrator.report.line_plot import MAX_LINES
    from orchestrator.run_report.run_address import find_run
    from orchestrator.run_report.run_data import read_run
    from orchestrator.run_report.run_page import render_page

    if len(set(runs)) < len(runs) or len(runs) > MAX_LINES:
        raise UsageError(f"give 1 to {MAX_LINES} different runs, not {len(runs)}")
    addresses = [find_run(run, storage, tracking_uri) for run in runs]
    first = addresses[0].name.replace("/", "-")
    path = output or Path(f"{first}-report.html" if len(runs) == 1 else "runs-report.html")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UsageError(f"--output {path}: give a file in an existing folder")
    found = [read_run(address) for address in addresses]
    for run in found:
        if not run.metrics:
            raise DataError(
                f"run {run.name} has logged no points yet; `orchestrator watch` waits for them"
            )
    page = render_page(found)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output {path}: cannot write it: {error.strerror}") from error
    for run in found:
        for note in run.notes:
            log_info(f"{run.name}: {note}")
    print_result(str(path))


def watch(
    run: Run,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on this machine; 0 for any free one.")
    ] = DEFAULT_PORT,
    storage: RunStorage = DEFAULT_STORAGE,
    tracking_uri: JobsTracking = None,
) -> None:
    """Serve the report of a run on this machine while it trains; Ctrl-C ends it.

    It works without MLflow on the machine that trains.
    """
    import threading

    from orchestrator.run_report.live_page import LivePage, PageServer
    from orchestrator.run_report.run_address import find_run

    page = LivePage(find_run(run, storage, tracking_uri))
    with PageServer(page, port) as server:
        print_result(server.url)
        log_info("the page follows the run; Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_until(threading.Event())
