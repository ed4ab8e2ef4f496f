"""Checks of what the nodes of a cluster reach: MLflow, the storage and each other."""

from collections.abc import Iterable

from orchestrator.diagnostics.doctor import Check, Status
from orchestrator.diagnostics.node_report import Checkup, Wanted, by_value

MIN_BANDWIDTH = 100e6 / 8
"""Bytes a second. At 100 Mbit/s the gradients of a model of 10 million weights take 3 s a step."""
MIN_STORAGE = 5e6
"""Bytes a second, at which a checkpoint of 1 GB takes more than 3 minutes."""


def check_mlflow_from_nodes(checkup: Checkup, wanted: Wanted) -> Check:
    """Every node reaches MLflow: rank 0 can be on any of them."""
    answers = {node.name: node.services.mlflow for node in checkup.nodes if node.services}
    if not answers:
        return Check("mlflow", "fail", "no node has answered in time", "see `nodes`")
    if wanted.local_tracking and len(checkup.nodes) > 1:
        remedy = "start a server (`mlflow server`) and set MLFLOW_TRACKING_URI or tracking.uri"
        return Check("mlflow", "warn", "a file on one machine, and any may have to write", remedy)
    worst: tuple[Status, ...] = ("fail", "warn")
    for status in worst:
        wrong = {name: check for name, check in answers.items() if check.status == status}
        if wrong:
            first = next(iter(wrong.values()))
            return Check("mlflow", status, f"{first.found} (from {', '.join(wrong)})", first.remedy)
    first = next(iter(answers.values()))
    return Check("mlflow", "ok", f"{first.found}, from every node")


def check_storage_from_nodes(checkup: Checkup) -> Check:
    """Every node writes and reads the job's storage, and it is the same storage."""
    answers = {node.name: node.services.storage for node in checkup.nodes if node.services}
    if not answers:
        return Check("storage", "fail", "no node has answered in time", "see `nodes`")
    broken = by_value({name: facts.problem for name, facts in answers.items() if facts.problem})
    if broken:
        remedy = "give every machine the same AWS_* variables and network, or change `storage`"
        found = "; ".join(f"{why} (from {', '.join(names)})" for why, names in broken.items())
        return Check("storage", "fail", found, remedy)
    apart = [name for name, facts in answers.items() if not facts.shared]
    if apart:
        found = f"{', '.join(apart)} did not see what the driver wrote: it is another folder there"
        remedy = "use s3://bucket/prefix, or a folder that all machines mount at the same place"
        return Check("storage", "fail", found, remedy)
    put = {name: facts.num_bytes / facts.put_s for name, facts in answers.items()}
    get = {name: facts.num_bytes / facts.get_s for name, facts in answers.items()}
    found = f"put {_range(put.values())}, get {_range(get.values())} MB/s a node, all at once"
    slow = [name for name in answers if min(put[name], get[name]) < MIN_STORAGE]
    if slow:
        remedy = "look at the network between these nodes and the storage; checkpoints will wait"
        return Check("storage", "warn", f"{found}; slow: {', '.join(slow)}", remedy)
    return Check("storage", "ok", found)


def check_all_reduce(checkup: Checkup, wanted: Wanted) -> Check:
    """Nodes sum gradients over the network, fast enough."""
    measured = checkup.all_reduce
    if measured is None:
        return Check("all-reduce", "ok", "one node: there is no network to measure")
    if measured.problem:
        remedy = (
            "let the nodes reach each other on all TCP ports, and name the network interface on "
            "each before `ray start`: GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, such as eth0"
        )
        return Check("all-reduce", "fail", f"{measured.backend}: {measured.problem}", remedy)
    found = (
        f"{measured.backend} over {len(measured.nodes)} nodes: {1000 * measured.latency_s:.2f} ms "
        f"for 4 KiB, {8e-6 * measured.bandwidth:,.0f} Mbit/s for 16 MiB"
    )
    if wanted.gradient_bytes:
        ms = 1000 * measured.estimate_s(wanted.gradient_bytes)
        found += f"; this job's {wanted.gradient_bytes / 1e6:.1f} MB of gradients about {ms:.0f} ms"
    if measured.bandwidth < MIN_BANDWIDTH:
        remedy = (
            "use machines with a faster network, or fewer of them: `orchestrator scaling JOB` "
            "shows what each further worker brings"
        )
        return Check("all-reduce", "warn", found, remedy)
    return Check("all-reduce", "ok", found)


def _range(values: Iterable[float]) -> str:
    """The smallest and the largest, in millions."""
    found = [f"{value / 1e6:.0f}" for value in sorted(values)]
    return found[0] if found[0] == found[-1] else f"{found[0]} to {found[-1]}"
