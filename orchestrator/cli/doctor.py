"""``orchestrator doctor``: check that this machine, or every node of a cluster, can run jobs."""

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.job_file import load
from orchestrator.cli.output import (
    AsJson,
    format_table,
    print_command_note,
    print_json,
    print_next_steps,
    print_result,
    quote,
)
from orchestrator.cli.run import count_gpus
from orchestrator.console import log_info
from orchestrator.errors import EnvironmentProblem

if TYPE_CHECKING:
    from orchestrator.config.job import Job
    from orchestrator.config.load import LoadedJob
    from orchestrator.diagnostics.doctor import Check, MachineRequirements
    from orchestrator.diagnostics.node_report import ClusterReport, ClusterRequirements, NodeReport


def doctor(
    job: Annotated[
        Path | None, typer.Argument(metavar="JOB", help="Check the requirements of this job.")
    ] = None,
    cluster: Annotated[
        bool,
        typer.Option(
            "--cluster",
            help="Check every node of the Ray cluster at RAY_ADDRESS, and the network between "
            "them. If you reach only its Jobs API, submit the command: ray job submit "
            "--working-dir . -- orchestrator doctor JOB --cluster",
        ),
    ] = False,
    serve_port: Annotated[
        int,
        typer.Option(min=1, max=65535, help="Where `orchestrator serve` may run without a token."),
    ] = 8300,
    as_json: AsJson = False,
) -> None:
    """Check this machine, its cluster, tracking server, storage and the job's data.

    With --cluster: check versions, clocks, disks, shared memory, GPUs, MLflow and
    storage on every node, and measure latency and bandwidth of all-reduce between
    them. Without a JOB, storage and tracking server are those of
    ORCHESTRATOR_STORAGE and MLFLOW_TRACKING_URI. Exit code 3 if a check fails.
    """
    from orchestrator.diagnostics.doctor import MachineRequirements, run_checks

    if cluster:
        _doctor_cluster(job, as_json=as_json)
        return
    if job is None:
        checks = run_checks(MachineRequirements(serve_port=serve_port))
    else:
        from orchestrator.diagnostics.job_checks import check_data, check_gpu_use

        loaded, _, requirements = _load(job)
        checks = run_checks(replace(requirements, serve_port=serve_port))
        if (num_gpus := count_gpus(loaded.job)) is not None:
            checks.append(check_gpu_use(loaded, num_gpus))
        checks.append(check_data(loaded))
    if as_json:
        print_json([asdict(check) for check in checks])
    if job is not None:
        print_command_note(job)
    _report(checks, quiet=as_json)
    print_next_steps(f"orchestrator run {quote(job or 'jobs/quickstart.yaml')}")


def _doctor_cluster(path: Path | None, *, as_json: bool) -> None:
    from orchestrator.cluster.node_probe import probe_nodes
    from orchestrator.diagnostics.checks import check_cluster
    from orchestrator.diagnostics.doctor import check_encryption

    machine, requirements = _cluster_requirements(path)
    _require_address()
    shown = (machine.shown_tracking_uri or "", machine.shown_storage or "")
    report = probe_nodes(machine.tracking_uri, machine.storage, shown)
    checks = check_cluster(report, requirements)
    checks.append(check_encryption(machine.tracking_uri, machine.storage))
    if path is not None:
        from orchestrator.diagnostics.job_checks import check_gpu_use

        num_gpus = sum(int(node.resources.get("GPU", 0)) for node in report.nodes)
        checks.append(check_gpu_use(_load(path)[0], num_gpus))
    if as_json:
        print_json({**report.to_json(), "checks": [asdict(check) for check in checks]})
    else:
        print_result(f"{format_nodes(report)}\n")
    _report(checks, quiet=as_json)
    print_next_steps(f"orchestrator scaling {quote(path or 'jobs/quickstart.yaml')} --workers 1,2")


def _require_address() -> None:
    """Raise EnvironmentProblem unless RAY_ADDRESS is that of a cluster's GCS."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        raise EnvironmentProblem(
            "RAY_ADDRESS names no cluster; set it to HOST:6379, or to `auto` on a node of the "
            "cluster; without --cluster `orchestrator doctor` checks this machine"
        )
    if address.startswith(("http://", "https://")):
        raise EnvironmentProblem(
            "RAY_ADDRESS is that of the Jobs API, through which nodes cannot be checked from here; "
            "submit the command: ray job submit --working-dir . -- orchestrator doctor --cluster"
        )


def format_nodes(report: "ClusterReport") -> str:
    """Format a table with a row per node."""
    header = (
        "node", "address", "CPUs", "GPUs", "python", "ray", "torch", "source", "clock ms",
        "disk GB", "shm GB", "put MB/s", "get MB/s",
    )  # fmt: skip
    return format_table([header, *(_node_row(node) for node in report.nodes)])


def _node_row(node: "NodeReport") -> tuple[str, ...]:
    facts, clock = node.facts, node.clock
    counts = [f"{node.resources.get(kind, 0):g}" for kind in ("CPU", "GPU")]
    row = [node.name, node.address, *counts]
    versions = ("python", "ray", "torch", "source")
    row += ["-" if facts is None else facts.versions[name] for name in versions]
    row.append("-" if clock is None else f"{1000 * clock.offset_s:+.1f}")
    row.append("-" if facts is None else f"{min(facts.disks.values()) / 1e9:.1f}")
    memory = None if facts is None else facts.shared_memory
    row.append("-" if memory is None else f"{memory / 1e9:.1f}")
    stored = node.services.storage if node.services else None
    if stored is None or not stored.num_bytes:
        return (*row, "-", "-")
    rates = [stored.num_bytes / seconds / 1e6 for seconds in (stored.put_s, stored.get_s)]
    return (*row, *(f"{rate:.0f}" for rate in rates))


def _report(checks: Sequence["Check"], *, quiet: bool) -> None:
    """Print checks and remedies, unless ``quiet``; raise EnvironmentProblem if a check failed."""
    if not quiet:
        print_result(format_table([(check.status, check.name, check.found) for check in checks]))
        for check in checks:
            if check.remedy:
                log_info(f"{check.name}: {check.remedy}")
    failed = [check.name for check in checks if check.status == "fail"]
    if failed:
        raise EnvironmentProblem(f"not ready: {', '.join(failed)}; follow the remedies above")


def _load(path: Path) -> "tuple[LoadedJob, Job, MachineRequirements]":
    """Load the job, as it is and with absolute paths, and its requirements."""
    from orchestrator.diagnostics.doctor import MachineRequirements
    from orchestrator.runs.resolved_job import resolve_job

    loaded = load(path)
    job = resolve_job(loaded).job
    requirements = MachineRequirements(
        job.tracking.uri,
        job.storage,
        job.cluster.gpus,
        loaded.display_place(job.tracking.uri, "tracking", "uri"),
        loaded.display_place(job.storage, "storage"),
        job.tracking.experiment or job.name,
    )
    return loaded, job, requirements


def _cluster_requirements(path: Path | None) -> "tuple[MachineRequirements, ClusterRequirements]":
    """Requirements of a job; without one, MLflow and storage as the environment sets them."""
    from orchestrator.config.paths import base_folder, to_absolute, to_absolute_tracking_uri
    from orchestrator.diagnostics.doctor import MachineRequirements
    from orchestrator.diagnostics.model_sizes import gradient_bytes
    from orchestrator.diagnostics.node_report import ClusterRequirements
    from orchestrator.redaction import mask

    if path is None:
        default, base = MachineRequirements(), base_folder()
        uri = to_absolute_tracking_uri(default.tracking_uri, base)
        storage = to_absolute(default.storage, base)
        machine = MachineRequirements(uri, storage, 0, mask(uri), mask(storage))
        resources, num_bytes = {}, 0
    else:
        _, job, machine = _load(path)
        cluster, num_bytes = job.cluster, gradient_bytes(job.model)
        needed = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus}
        resources = {kind: float(cluster.min_workers * each) for kind, each in needed.items()}
    local = machine.tracking_uri.startswith(("sqlite", "file:"))
    return machine, ClusterRequirements(resources, num_bytes, local_tracking=local)
