"""``orchestrator manifest``: a job as what a Kubernetes cluster with KubeRay takes."""

from importlib import metadata
from typing import Annotated

import typer

from orchestrator.cli.output import print_next_steps, print_result
from orchestrator.cli.run import JobPath, Overrides
from orchestrator.console import log_info


def manifest(  # noqa: PLR0913, PLR0917 - one for each option
    job: JobPath,
    overrides: Overrides = None,
    image: Annotated[
        str | None,
        typer.Option(
            help="With this project and the same Ray as here; by default orchestrator:VERSION."
        ),
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(help="By default the one of the kubectl that applies it.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Run on this RayCluster; by default the job gets its own."
        ),
    ] = None,
    queue: Annotated[
        str | None, typer.Option(metavar="NAME", help="Wait in this LocalQueue of Kueue.")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(metavar="CRON", help='Print a RayCronJob: "0 3 * * 1" is Mondays at three.'),
    ] = None,
    time_zone: Annotated[
        str | None, typer.Option(help="Of the schedule: Europe/Berlin; by default the operator's.")
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Times to run a failed job again, on a new cluster each; 2 by default, and none "
            "with --cluster.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--no-resume",
            help="As `orchestrator run` has it; by default a run whose driver was lost goes on.",
            show_default=False,
        ),
    ] = None,
    deadline: Annotated[
        int | None,
        typer.Option(min=1, metavar="SECONDS", help="End the job after so long, retries and all."),
    ] = None,
    start_deadline: Annotated[
        int | None,
        typer.Option(min=1, metavar="SECONDS", help="End it if it does not run by then."),
    ] = None,
    keep: Annotated[
        int,
        typer.Option(min=0, metavar="SECONDS", help="Leave the cluster so long after the job."),
    ] = 300,
    places: Annotated[
        str, typer.Option(help="ConfigMap of the job's environment.")
    ] = "orchestrator-places",
    secret: Annotated[
        str, typer.Option(help="Secret of the job's environment.")
    ] = "orchestrator-credentials",
    tls: Annotated[
        bool, typer.Option("--tls/--no-tls", help="TLS between the pods of the job's cluster.")
    ] = True,
    worker_memory: Annotated[str, typer.Option(help="Of each worker's pod.")] = "8Gi",
    head_cpus: Annotated[int, typer.Option(min=1, help="For the driver and Ray's head.")] = 2,
    head_memory: Annotated[str, typer.Option(help="For the driver and Ray's head.")] = "8Gi",
) -> None:
    """Print a job as a RayJob for KubeRay, with its file, for `kubectl apply -f -`.

    A pod for each worker, with the cores and GPUs that `cluster:` gives it. Prints no secret:
    what the job reads from its environment comes from a ConfigMap and a Secret in the cluster.
    """
    from orchestrator.config.dump import dump_yaml
    from orchestrator.config.load import load_job
    from orchestrator.kubernetes import Options, manifests

    loaded = load_job(job, overrides or ())
    options = Options(
        image=f"orchestrator:{metadata.version('orchestrator')}" if image is None else image,
        namespace=namespace,
        cluster=cluster,
        queue=queue,
        schedule=schedule,
        time_zone=time_zone,
        retries=retries,
        resume=resume,
        deadline_s=deadline,
        start_deadline_s=start_deadline,
        keep_s=keep,
        places=places,
        secret=secret,
        tls=tls,
        worker_memory=worker_memory,
        head_cpus=head_cpus,
        head_memory=head_memory,
    )
    print_result(dump_yaml(manifests(loaded, options)).rstrip())
    variables = loaded.references.variables()
    if variables:
        log_info(
            f"the job reads {', '.join(variables)}: from ConfigMap {places} or Secret {secret}"
        )
    sweep = loaded.job.sweep
    if sweep is not None and sweep.max_concurrent is None and cluster is None:
        log_info(
            "room for one training at a time; --set sweep.max_concurrent=4 makes room for four"
        )
    print_next_steps(f"orchestrator manifest {job} ... | kubectl apply -f -", "kubectl get rayjobs")
