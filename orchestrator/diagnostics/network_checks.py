"""Check what the nodes of a cluster reach: MLflow, the storage and each other."""

from collections.abc import Iterable

from orchestrator.diagnostics.doctor import Check, Status
from orchestrator.diagnostics.node_report import ClusterReport, ClusterRequirements, names_by_value

MIN_BANDWIDTH = 100e6 / 8
"""Bytes/s. At 100 Mbit/s averaging the gradients of 10 million weights takes 3 s per step."""
MIN_STORAGE = 5e6
"""Bytes/s, at which a checkpoint of 1 GB takes more than 3 minutes."""


def check_mlflow_from_nodes(report: ClusterReport, requirements: ClusterRequirements) -> Check:
    """Every node reaches MLflow, for rank 0 may run on any of them."""
    answers = {node.name: node.services.mlflow for node in report.nodes if node.services}
    if not answers:
        return Check("mlflow", "fail", "no node answered in time", "fix `nodes` first")
    if requirements.local_tracking and len(report.nodes) > 1:
        remedy = "start a server (`mlflow server`), and set MLFLOW_TRACKING_URI or tracking.uri"
        return Check("mlflow", "warn", "a local file, which the other nodes cannot write", remedy)
    worst: tuple[Status, ...] = ("fail", "warn")
    for status in worst:
        wrong = {name: check for name, check in answers.items() if check.status == status}
        if wrong:
            first = next(iter(wrong.values()))
            return Check("mlflow", status, f"{first.found} (from {', '.join(wrong)})", first.remedy)
    first = next(iter(answers.values()))
    return Check("mlflow", "ok", f"{first.found}, from every node")


def check_storage_from_nodes(report: ClusterReport) -> Check:
    """Every node reads and writes the job's storage, and all of them see the same objects."""
    answers = {node.name: node.services.storage for node in report.nodes if node.services}
    if not answers:
        return Check("storage", "fail", "no node answered in time", "fix `nodes` first")
    broken = names_by_value(
        {name: facts.problem for name, facts in answers.items() if facts.problem}
    )
    if broken:
        remedy = (
            "give every machine the same AWS_* variables and network access, or change `storage`"
        )
        found = "; ".join(f"{why} (from {', '.join(names)})" for why, names in broken.items())
        return Check("storage", "fail", found, remedy)
    separate = [name for name, facts in answers.items() if not facts.shared]
    if separate:
        found = f"{', '.join(separate)} did not see what the driver wrote: not a shared folder"
        remedy = "use s3://bucket/prefix, or a folder that all machines mount at the same path"
        return Check("storage", "fail", found, remedy)
    put = {name: facts.num_bytes / facts.put_s for name, facts in answers.items()}
    get = {name: facts.num_bytes / facts.get_s for name, facts in answers.items()}
    found = f"put {_range(put.values())}, get {_range(get.values())} MB/s per node, all at once"
    slow = [name for name in answers if min(put[name], get[name]) < MIN_STORAGE]
    if slow:
        remedy = "check the network between these nodes and the storage; checkpoints will be slow"
        return Check("storage", "warn", f"{found}; slow: {', '.join(slow)}", remedy)
    return Check("storage", "ok", found)


def check_all_reduce(report: ClusterReport, requirements: ClusterRequirements) -> Check:
    """The network between the nodes is fast enough to average gradients."""
    measured = report.all_reduce
    if measured is None:
        return Check("all-reduce", "ok", "one node, so there is no network to measure")
    if measured.problem:
        remedy = (
            "open all TCP ports between the nodes, and name the network interface on each before "
            "`ray start`: GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, such as eth0"
        )
        return Check("all-reduce", "fail", f"{measured.backend}: {measured.problem}", remedy)
    found = (
        f"{measured.backend} over {len(measured.nodes)} nodes: {1000 * measured.latency_s:.2f} ms "
        f"for 4 KiB, {8e-6 * measured.bandwidth:,.0f} Mbit/s for 16 MiB"
    )
    if requirements.gradient_bytes:
        num_bytes = requirements.gradient_bytes
        ms = 1000 * measured.estimate_s(num_bytes)
        found += f"; this job's {num_bytes / 1e6:.1f} MB of gradients take about {ms:.0f} ms"
    if measured.bandwidth < MIN_BANDWIDTH:
        remedy = (
            "use machines with a faster network, or fewer of them: `orchestrator scaling JOB` "
            "shows the gain of each additional worker"
        )
        return Check("all-reduce", "warn", found, remedy)
    return Check("all-reduce", "ok", found)


def _range(values: Iterable[float]) -> str:
    """Format the smallest and the largest value, in millions."""
    found = [f"{value / 1e6:.0f}" for value in sorted(values)]
    return found[0] if found[0] == found[-1] else f"{found[0]} to {found[-1]}"
