"""``orchestrator scaling``: how much faster a job trains with more workers."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.output import give, table
from orchestrator.cli.run import JobPath, Overrides
from orchestrator.console import say


def scaling(
    job: JobPath,
    workers: Annotated[
        str, typer.Option(metavar="N,N,...", help="How many workers to train with, in turn.")
    ] = "1,2",
    images: Annotated[
        int | None,
        typer.Option(
            min=1, help="Images to train on with each of them; by default 40 batches.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for scaling.json and scaling.png; by default NAME-scaling.",
            show_default=False,
        ),
    ] = None,
) -> None:  # fmt: skip
    """Time short runs of a job with several numbers of workers, on the same cluster as `run`.

    The batch is that of the job for any number of workers (strong scaling), for so it is when it
    is trained: each of two workers has half of its images. Nothing goes to MLflow or to the
    storage. Computation, communication and data are the parts of a step: communication is waiting
    for averaged gradients with nothing left to compute, data waiting for images.
    """
    from orchestrator.cluster.scaling_runs import train_each
    from orchestrator.diagnostics.scaling import load_jobs, measure_scaling, parse_workers, write
    from orchestrator.diagnostics.scaling_results import rows

    loaded = load_jobs(job, overrides or (), parse_workers(workers))
    folder = output or Path(f"{loaded[0].job.name}-scaling")
    results = measure_scaling(loaded, images, train_each)
    give(table(rows(results)))
    write(folder, loaded[0], results)
    say(f"each step of each worker: {folder}/scaling.json; a picture: {folder}/scaling.png")
