"""``orchestrator doctor``: whether this machine, or every node of a cluster, can do the work."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import give, suggest, table
from orchestrator.console import say
from orchestrator.errors import EnvironmentProblem

if TYPE_CHECKING:
    from orchestrator.config.job import Job
    from orchestrator.diagnostics.doctor import Check, Needs
    from orchestrator.diagnostics.node_report import Checkup, NodeReport, Wanted


def doctor(
    job: Annotated[
        Path | None, typer.Argument(metavar="[JOB]", help="Check what this job needs.")
    ] = None,
    cluster: Annotated[
        bool,
        typer.Option(
            "--cluster",
            help="Check every node of the Ray cluster that RAY_ADDRESS names, and the network "
            "between them. Where only the Jobs API can be reached, submit it: ray job submit "
            "--working-dir . -- orchestrator doctor JOB --cluster",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Check this machine, its cluster, tracking server and storage; exit code 3 if one fails.

    With --cluster: versions, clocks, disks, shared memory, GPUs, MLflow and storage from every
    node, and the bandwidth and latency of sums over all of them. Without a JOB, the storage and
    the MLflow are those of ORCHESTRATOR_STORAGE and MLFLOW_TRACKING_URI.
    """
    from orchestrator.diagnostics.doctor import Needs, diagnose

    if cluster:
        _examine_cluster(job, as_json=as_json)
        return
    checks = diagnose(Needs() if job is None else _load(job)[1])
    if as_json:
        give(json.dumps([asdict(check) for check in checks], indent=2))
    _conclude(checks, silent=as_json)
    suggest(f"orchestrator run {job or 'jobs/quickstart.yaml'}")


def _examine_cluster(path: Path | None, *, as_json: bool) -> None:
    from orchestrator.cluster.node_probe import examine
    from orchestrator.diagnostics.checks import judge

    needs, wanted = _cluster_needs(path)
    _refuse_unreachable(os.environ)
    shown = (needs.shown_tracking_uri or "", needs.shown_storage or "")
    checkup = examine(needs.tracking_uri, needs.storage, shown)
    checks = judge(checkup, wanted)
    if as_json:
        plain = {**checkup.to_json(), "checks": [asdict(check) for check in checks]}
        give(json.dumps(plain, indent=2))
    else:
        give(f"{nodes_table(checkup)}\n")
    _conclude(checks, silent=as_json)
    suggest(f"orchestrator scaling {path or 'jobs/quickstart.yaml'} --workers 1,2")


def _refuse_unreachable(environ: Mapping[str, str]) -> None:
    """Raise EnvironmentProblem unless RAY_ADDRESS names a cluster that can be asked from here."""
    address = environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        raise EnvironmentProblem(
            "RAY_ADDRESS names no cluster: set it to HOST:6379, or to `auto` on a machine of the "
            "cluster; `orchestrator doctor` without --cluster checks this machine"
        )
    if address.startswith(("http://", "https://")):
        raise EnvironmentProblem(
            "this RAY_ADDRESS is that of the Jobs API, through which nodes cannot be asked from "
            "here; let the cluster do it: ray job submit --working-dir . -- orchestrator doctor "
            "--cluster"
        )


def nodes_table(checkup: "Checkup") -> str:
    """A line for each node."""
    head = (
        "node", "address", "CPUs", "GPUs", "python", "ray", "torch", "source", "clock ms",
        "disk GB", "shm GB", "put MB/s", "get MB/s",
    )  # fmt: skip
    return table([head, *(_node_row(node) for node in checkup.nodes)])


def _node_row(node: "NodeReport") -> tuple[str, ...]:
    facts, clock = node.facts, node.clock
    counted = [f"{node.resources.get(kind, 0):g}" for kind in ("CPU", "GPU")]
    row = [node.name, node.address, *counted]
    if facts is None:
        row += ["-"] * 4
    else:
        row += [facts.versions[name] for name in ("python", "ray", "torch", "source")]
    row.append("-" if clock is None else f"{1000 * clock.offset_s:+.1f}")
    row.append("-" if facts is None else f"{min(facts.disks.values()) / 1e9:.1f}")
    memory = None if facts is None else facts.shared_memory
    row.append("-" if memory is None else f"{memory / 1e9:.1f}")
    stored = node.services.storage if node.services else None
    if stored is None or not stored.num_bytes:
        return (*row, "-", "-")
    rates = [stored.num_bytes / seconds / 1e6 for seconds in (stored.put_s, stored.get_s)]
    return (*row, *(f"{rate:.0f}" for rate in rates))


def _conclude(checks: Sequence["Check"], *, silent: bool) -> None:
    """Print the checks and what to do, unless ``silent``; raise EnvironmentProblem if one fails."""
    if not silent:
        give(table([(check.status, check.name, check.found) for check in checks]))
        for check in checks:
            if check.remedy:
                say(f"{check.name}: {check.remedy}")
    failed = [check.name for check in checks if check.status == "fail"]
    if failed:
        raise EnvironmentProblem(f"not ready: {', '.join(failed)}; do what is said above")


def _load(path: Path) -> "tuple[Job, Needs]":
    """The job with absolute places, and what it asks of a machine."""
    from orchestrator.config.load import load_job
    from orchestrator.config.paths import resolve_places
    from orchestrator.diagnostics.doctor import Needs

    loaded = load_job(path)
    job = resolve_places(loaded.job)
    gpus, shown_uri = job.cluster.gpus_per_worker, loaded.shown("tracking", "uri")
    return job, Needs(job.tracking.uri, job.storage, gpus, shown_uri, loaded.shown("storage"))


def _cluster_needs(path: Path | None) -> "tuple[Needs, Wanted]":
    """What a job asks of the cluster; without one, its MLflow and storage by the environment."""
    from orchestrator.config.paths import absolute, absolute_tracking_uri, base_folder
    from orchestrator.diagnostics.doctor import Needs
    from orchestrator.diagnostics.node_report import Wanted
    from orchestrator.redaction import mask

    if path is None:
        default, base = Needs(), base_folder()
        uri = os.environ.get("MLFLOW_TRACKING_URI") or default.tracking_uri
        uri = absolute_tracking_uri(uri, base)
        storage = absolute(os.environ.get("ORCHESTRATOR_STORAGE") or default.storage, base)
        needs, resources, num_bytes = Needs(uri, storage, 0, mask(uri), mask(storage)), {}, 0
    else:
        job, needs = _load(path)
        resources, num_bytes = _resources(job), _gradient_bytes(job)
    local = needs.tracking_uri.startswith(("sqlite", "file:"))
    return needs, Wanted(resources, num_bytes, local_tracking=local)


def _resources(job: "Job") -> dict[str, float]:
    """What all workers of the job take together; the fewest, where it has a range."""
    cluster = job.cluster
    needed = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}
    return {kind: float(cluster.min_workers * each) for kind, each in needed.items()}


def _gradient_bytes(job: "Job") -> int:
    """Of all parameters that are trained."""
    import torch

    from orchestrator.models.base import build_model

    with torch.device("meta"):
        model = build_model(job.model)
    return sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
