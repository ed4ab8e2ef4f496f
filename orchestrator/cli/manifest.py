"""``orchestrator manifest``: print a job as a RayJob for a Kubernetes cluster with KubeRay."""

import inspect
import typing
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

from orchestrator.cli.output import print_next_steps, print_result, quote
from orchestrator.cli.run import JobPath, Overrides
from orchestrator.console import log_info
from orchestrator.kubernetes.options import ManifestOptions


def _add_options(
    command: Callable[[Path, list[str] | None, ManifestOptions], None],
) -> Callable[..., None]:
    """Return ``command`` for typer, with one option for each field of ManifestOptions."""

    def with_options(job: JobPath, overrides: Overrides = None, **options: Any) -> None:
        command(job, overrides, ManifestOptions(**options))

    types = typing.get_type_hints(ManifestOptions)
    parameters = list(inspect.signature(with_options).parameters.values())[:-1]
    parameters += [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=typer.Option(field.default, **field.metadata),
            annotation=types[field.name],
        )
        for field in fields(ManifestOptions)
    ]
    with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
    vars(with_options)["__signature__"] = inspect.Signature(parameters)
    return with_options


@_add_options
def manifest(job: Path, overrides: list[str] | None, options: ManifestOptions) -> None:
    """Print a job as a RayJob for KubeRay, for `kubectl apply -f -`.

    Each worker gets a pod with the cores and GPUs of the `cluster` section. No
    secrets are printed: the job reads its environment from a ConfigMap and a
    Secret in the cluster.
    """
    from orchestrator.config.dump import dump_yaml
    from orchestrator.config.load import load_job
    from orchestrator.kubernetes.ray_job import build_manifests

    loaded = load_job(job, overrides or ())
    print_result(dump_yaml(build_manifests(loaded, options)).rstrip())
    variables = loaded.references.variables()
    if variables:
        log_info(
            f"the job reads {', '.join(variables)} from ConfigMap {options.config_map} "
            f"or Secret {options.secret}"
        )
    if options.cluster is None and "@sha256:" not in options.image_name:
        log_info(
            f"{options.image_name} is a tag, which may lead to another image at each start; "
            "--image NAME@sha256:DIGEST, as `docker push` prints it, always leads to the same"
        )
    if loaded.job.cluster.gpus_per_worker == "auto" and options.cluster is None:
        log_info("the pods get no GPU; --set cluster.gpus_per_worker=1 gives each worker one")
    sweep = loaded.job.sweep
    if sweep is not None and sweep.max_concurrent is None and options.cluster is None:
        log_info(
            "the cluster has room for one trial at a time; --set sweep.max_concurrent=4 makes "
            "room for four"
        )
    print_next_steps(
        f"orchestrator manifest {quote(job)} ... | kubectl apply -f -", "kubectl get rayjobs"
    )
