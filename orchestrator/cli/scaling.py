"""``orchestrator scaling``: measure how throughput grows with the number of workers."""

import os
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.output import format_table, print_result
from orchestrator.cli.run import JobPath, Overrides
from orchestrator.console import log_info


def scaling(
    job: JobPath,
    workers: Annotated[
        str, typer.Option(metavar="N,N,...", help="Numbers of workers, timed one after the other.")
    ] = "1,2",
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Images per run; by default 40 batches.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for scaling.json and scaling.png; by default NAME-scaling.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Time short runs of a job with different numbers of workers, on the same cluster as `run`.

    The batch size is the job's for any number of workers, as in training (strong
    scaling): each of two workers gets half of the images. Nothing is written to
    MLflow or to the storage. A step consists of computation, communication
    (waiting for averaged gradients with nothing left to compute) and waiting for
    data.
    """
    from orchestrator.cluster.ray_session import cluster_gpus
    from orchestrator.cluster.scaling_runs import train_each
    from orchestrator.config.gpus import describe_gpus, resolve_gpus
    from orchestrator.diagnostics.scaling import (
        load_jobs,
        measure_scaling,
        parse_workers,
        write_results,
    )
    from orchestrator.diagnostics.scaling_results import rows

    loaded = load_jobs(job, overrides or (), parse_workers(workers))
    os.environ.update(loaded[0].job.variables())
    folder = output or Path(f"{loaded[0].job.name}-scaling")
    with cluster_gpus(loaded[0].job) as num_gpus:
        loaded = [resolve_gpus(each, num_gpus) for each in loaded]
        log_info(describe_gpus(loaded[-1].job, num_gpus))
        results = measure_scaling(loaded, images, train_each)
    print_result(format_table(rows(results)))
    write_results(folder, loaded[0], results)
    log_info(f"times of each step: {folder}/scaling.json; plot: {folder}/scaling.png")
