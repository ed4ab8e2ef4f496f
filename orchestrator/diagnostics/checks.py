"""Evaluate the report of a cluster: one check per line over all nodes, each with its remedy."""

from collections.abc import Iterable, Mapping

from orchestrator.diagnostics.doctor import Check, Status
from orchestrator.diagnostics.node_facts import NodeFacts
from orchestrator.diagnostics.node_report import (
    ClusterReport,
    ClusterRequirements,
    describe_by_value,
    names_by_value,
)

CLOCK_WARN_S = 1.0
"""NTP keeps a clock within milliseconds; a larger offset means that nothing synchronizes it."""
CLOCK_FAIL_S = 10.0
"""S3 rejects signatures that are 15 minutes off, and an unsynchronized clock keeps drifting; the
timestamps of logs and of MLflow's metrics are out of order long before that."""
MIN_DISK = 10_000_000_000
"""Ray spills objects to this disk and schedules no tasks once it is 95 % full; torch and MLflow
write there too."""
MIN_SHARED_MEMORY = 1_000_000_000
"""NCCL and Ray's object store use /dev/shm; without it Ray falls back to a disk, slowly."""
NCCL_SHARED_MEMORY = 64 << 20
"""Default of containers; with it NCCL fails on a machine with several GPUs."""
MIN_BANDWIDTH = 100e6 / 8
"""Bytes/s. At 100 Mbit/s averaging the gradients of 10 million weights takes 3 s per step."""
MIN_STORAGE = 5e6
"""Bytes/s, at which a checkpoint of 1 GB takes more than 3 minutes."""


def check_cluster(report: ClusterReport, requirements: ClusterRequirements) -> list[Check]:
    """Run all checks, in the order in which problems should be fixed."""
    return [
        _check_nodes(report),
        _check_versions(report),
        _check_source(report),
        _check_authentication(report),
        _check_resources(report, requirements),
        _check_clocks(report),
        _check_disks(report),
        _check_shared_memory(report),
        _check_gpus(report),
        _check_mlflow(report, requirements),
        _check_storage(report),
        _check_all_reduce(report, requirements),
    ]


def _check_nodes(report: ClusterReport) -> Check:
    """Every node answers."""
    failed = [f"{node.name}: {node.problem}" for node in report.nodes if node.problem]
    if failed:
        remedy = (
            "check the load and Ray's logs (`ray logs`) on that machine; if Ray hangs, restart it "
            "there (`ray stop`, `ray start`)"
        )
        return Check("nodes", "fail", "; ".join(failed), remedy)
    num_nodes = len(report.nodes)
    found = f"{num_nodes} {'answers' if num_nodes == 1 else 'answer'}"
    if report.lost:
        remedy = "start Ray there again if these machines belong to the cluster"
        return Check("nodes", "warn", f"{found}; lost: {', '.join(report.lost)}", remedy)
    return Check("nodes", "ok", found)


def _check_versions(report: ClusterReport) -> Check:
    """Python and the packages have the same versions on all nodes and on the driver."""
    packages = [package for package in report.driver_versions if package != "source"]
    found = {package: _by_version(report, package) for package in packages}
    shown = {package: f"{package} {describe_by_value(found[package])}" for package in packages}
    if differing := [shown[package] for package in packages if len(found[package]) > 1]:
        remedy = "install the versions in requirements.lock on all machines"
        return Check("versions", "fail", "; ".join(differing), remedy)
    return Check("versions", "ok", ", ".join(shown.values()))


def _check_source(report: ClusterReport) -> Check:
    """All nodes and the driver have the same version of this project's source."""
    by_version = _by_version(report, "source")
    if len(by_version) > 1:
        remedy = (
            "check out the same commit on all machines, or upload this one with each job "
            "(ray job submit --working-dir .)"
        )
        return Check("source", "fail", describe_by_value(by_version), remedy)
    return Check("source", "ok", report.driver_versions["source"])


def _check_authentication(report: ClusterReport) -> Check:
    """RAY_AUTH_MODE is the same on all nodes."""
    known = _facts(report)
    modes = names_by_value({name: facts.auth_mode or "not set" for name, facts in known.items()})
    name = "ray authentication"
    remedy = "set RAY_AUTH_MODE=token on every machine before starting Ray there"
    if len(modes) > 1:
        return Check(name, "fail", describe_by_value(modes), remedy)
    mode = next(iter(modes), "")
    if mode == "disabled":
        found = "disabled: anyone who reaches the cluster can run code on it"
        return Check(name, "warn", found, remedy)
    return Check(name, "ok", mode)


def _check_resources(report: ClusterReport, requirements: ClusterRequirements) -> Check:
    """The cluster has enough CPUs and GPUs for the job's workers."""
    available = {
        kind: sum(node.resources.get(kind, 0) for node in report.nodes) for kind in ("CPU", "GPU")
    }
    found = f"{available['CPU']:g} CPUs, {available['GPU']:g} GPUs"
    for kind, needed in requirements.resources.items():
        if available[kind] < needed:
            remedy = f"add machines, or lower cluster.workers or cluster.{kind.lower()}s_per_worker"
            return Check("resources", "fail", f"{found}; the job needs {needed:g} {kind}s", remedy)
    return Check("resources", "ok", found)


def _check_clocks(report: ClusterReport) -> Check:
    """All clocks agree with the driver's."""
    offsets = {node.name: node.clock for node in report.nodes if node.clock is not None}
    if not offsets:
        return Check("clocks", "warn", "not measured", "fix `nodes` first")
    status: Status = "ok"
    wrong = []
    for name, clock in offsets.items():
        certain_s = abs(clock.offset_s) - clock.error_s
        if certain_s > CLOCK_WARN_S:
            ahead = "ahead of" if clock.offset_s > 0 else "behind"
            wrong.append(f"{name} is {abs(clock.offset_s):.1f} s {ahead} the driver")
            status = "fail" if certain_s > CLOCK_FAIL_S or status == "fail" else "warn"
    if wrong:
        remedy = "synchronize the clocks with NTP (chrony, systemd-timesyncd): check `timedatectl`"
        return Check("clocks", status, "; ".join(wrong), remedy)
    most = max(offsets.values(), key=lambda clock: abs(clock.offset_s))
    error_s = max(clock.error_s for clock in offsets.values())
    found = f"within {1000 * abs(most.offset_s):.1f} ms of the driver, +- {1000 * error_s:.1f} ms"
    return Check("clocks", "ok", found)


def _check_disks(report: ClusterReport) -> Check:
    """There is free space in Ray's folder and in the folder for temporary files."""
    free = {
        f"{name}:{folder}": num_bytes
        for name, facts in _facts(report).items()
        for folder, num_bytes in facts.disks.items()
    }
    remedy = "free up 10 GB, or start Ray with --temp-dir on a larger disk"
    return _check_free("disk", free, MIN_DISK, remedy)


def _check_shared_memory(report: ClusterReport) -> Check:
    """There is free space in /dev/shm."""
    known = _facts(report)
    sizes = {name: facts.shared_memory for name, facts in known.items()}
    free = {name: size for name, size in sizes.items() if size is not None}
    remedy = "enlarge /dev/shm of the machine, or of the container that runs Ray"
    check = _check_free("shared memory", free, MIN_SHARED_MEMORY, remedy)
    if any(len(known[n].gpus) > 1 and free[n] <= NCCL_SHARED_MEMORY for n in free):
        return Check("shared memory", "fail", f"{check.found}: too little for NCCL", remedy)
    return check


def _check_gpus(report: ClusterReport) -> Check:
    """torch can use the GPUs that Ray counts, and they are all of one kind."""
    known = _facts(report)
    broken = [f"{name}: {facts.gpu_problem}" for name, facts in known.items() if facts.gpu_problem]
    if broken:
        remedy = (
            "check the driver there with `nvidia-smi`, and that torch is built for its CUDA "
            "version: python -c 'import torch; torch.cuda.init()'"
        )
        return Check("gpus", "fail", "; ".join(broken), remedy)
    with_gpus = {name: facts for name, facts in known.items() if facts.gpus}
    if not with_gpus:
        return Check("gpus", "ok", "none: jobs train on CPUs")
    nccl = names_by_value({n: f.gpu_versions.get("nccl", "-") for n, f in with_gpus.items()})
    if len(nccl) > 1:
        remedy = "install the same torch everywhere: two versions of NCCL do not work together"
        return Check("gpus", "fail", f"NCCL {describe_by_value(nccl)}", remedy)
    models = names_by_value({name: ", ".join(facts.gpus) for name, facts in with_gpus.items()})
    drivers = names_by_value({n: f.gpu_versions.get("driver", "-") for n, f in with_gpus.items()})
    total = sum(len(facts.gpus) for facts in with_gpus.values())
    versions = f"driver {describe_by_value(drivers)}, NCCL {next(iter(nccl))}"
    found = f"{total} on {len(with_gpus)} nodes, {versions}"
    if len({gpu for facts in with_gpus.values() for gpu in facts.gpus}) > 1:
        remedy = "the slowest GPU sets the pace: use nodes of one kind for a job"
        return Check("gpus", "warn", f"{found}: {describe_by_value(models)}", remedy)
    return Check("gpus", "ok", f"{found}: {next(iter(with_gpus.values())).gpus[0]}")


def _check_mlflow(report: ClusterReport, requirements: ClusterRequirements) -> Check:
    """Every node reaches MLflow, for rank 0 may run on any of them."""
    answers = {node.name: node.services.mlflow for node in report.nodes if node.services}
    if not answers:
        return Check("mlflow", "fail", "no node answered in time", "fix `nodes` first")
    if requirements.local_tracking and len(report.nodes) > 1:
        remedy = "start a server (`mlflow server`), and set MLFLOW_TRACKING_URI or tracking.uri"
        return Check("mlflow", "warn", "a local file, which the other nodes cannot write", remedy)
    worst = max(answers.values(), key=lambda check: ("ok", "warn", "fail").index(check.status))
    where = [name for name, check in answers.items() if check.status == worst.status]
    found = ", from every node" if worst.status == "ok" else f" (from {', '.join(where)})"
    return Check("mlflow", worst.status, worst.found + found, worst.remedy)


def _check_storage(report: ClusterReport) -> Check:
    """Every node reads and writes the job's storage, and all of them see the same objects."""
    answers = {node.name: node.services.storage for node in report.nodes if node.services}
    if not answers:
        return Check("storage", "fail", "no node answered in time", "fix `nodes` first")
    problems = {name: facts.problem for name, facts in answers.items() if facts.problem}
    if broken := names_by_value(problems):
        found = "; ".join(f"{why} (from {', '.join(names)})" for why, names in broken.items())
        remedy = (
            "give every machine the same variables (AWS_*, GOOGLE_* or AZURE_*) and network "
            "access, or change `storage`"
        )
        return Check("storage", "fail", found, remedy)
    separate = [name for name, facts in answers.items() if not facts.shared]
    if separate:
        found = f"{', '.join(separate)} did not see what the driver wrote: not a shared folder"
        remedy = (
            "use a bucket such as s3://bucket/prefix, or a folder that all machines mount at the "
            "same path"
        )
        return Check("storage", "fail", found, remedy)
    put = {name: facts.num_bytes / facts.put_s for name, facts in answers.items()}
    get = {name: facts.num_bytes / facts.get_s for name, facts in answers.items()}
    found = f"put {_range(put.values())}, get {_range(get.values())} MB/s per node, all at once"
    slow = [name for name in answers if min(put[name], get[name]) < MIN_STORAGE]
    if slow:
        remedy = "check the network between these nodes and the storage; checkpoints will be slow"
        return Check("storage", "warn", f"{found}; slow: {', '.join(slow)}", remedy)
    return Check("storage", "ok", found)


def _check_all_reduce(report: ClusterReport, requirements: ClusterRequirements) -> Check:
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
    if num_bytes := requirements.gradient_bytes:
        ms = 1000 * measured.estimate_s(num_bytes)
        found += f"; this job's {num_bytes / 1e6:.1f} MB of gradients take about {ms:.0f} ms"
    if measured.bandwidth < MIN_BANDWIDTH:
        remedy = (
            "use machines with a faster network, or fewer of them: `orchestrator scaling JOB` "
            "shows the gain of each additional worker"
        )
        return Check("all-reduce", "warn", found, remedy)
    return Check("all-reduce", "ok", found)


def _check_free(name: str, free: Mapping[str, int], minimum: int, remedy: str) -> Check:
    if not free:
        return Check(name, "ok", "not measured")
    where, fewest = min(free.items(), key=lambda item: item[1])
    small = [at for at, num_bytes in free.items() if num_bytes < minimum]
    found = f"{fewest / 1e9:.1f} GB free on {where}, the least"
    if small:
        return Check(name, "warn", f"{found}; too little: {', '.join(small)}", remedy)
    return Check(name, "ok", found)


def _facts(report: ClusterReport) -> dict[str, NodeFacts]:
    """Facts of the nodes that answered, by name."""
    return {node.name: node.facts for node in report.nodes if node.facts is not None}


def _by_version(report: ClusterReport, package: str) -> dict[str, list[str]]:
    found = {"the driver": report.driver_versions[package]}
    found |= {name: facts.versions.get(package, "-") for name, facts in _facts(report).items()}
    return names_by_value(found)


def _range(values: Iterable[float]) -> str:
    """Format the smallest and the largest value, in millions."""
    found = [f"{value / 1e6:.0f}" for value in sorted(values)]
    return found[0] if found[0] == found[-1] else f"{found[0]} to {found[-1]}"
