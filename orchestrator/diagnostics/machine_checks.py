"""Check the nodes of a cluster: versions, resources, clocks, disks, memory and GPUs."""

from collections import defaultdict
from collections.abc import Callable, Mapping

from orchestrator.diagnostics.doctor import Check, Status
from orchestrator.diagnostics.node_report import (
    ClusterReport,
    ClusterRequirements,
    NodeReport,
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


def check_nodes(report: ClusterReport) -> Check:
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


def check_versions(report: ClusterReport) -> Check:
    """Python and the packages have the same versions on all nodes and on the driver."""
    differing = []
    for package in report.driver_versions:
        if package != "source":
            by_version = _by_version(report, package)
            if len(by_version) > 1:
                differing.append(f"{package} {describe_by_value(by_version)}")
    if differing:
        remedy = "install the versions in requirements.lock on all machines"
        return Check("versions", "fail", "; ".join(differing), remedy)
    shown = [
        f"{name} {version}" for name, version in report.driver_versions.items() if name != "source"
    ]
    return Check("versions", "ok", ", ".join(shown))


def check_source(report: ClusterReport) -> Check:
    """All nodes and the driver have the same version of this project's source."""
    by_version = _by_version(report, "source")
    if len(by_version) > 1:
        remedy = (
            "check out the same commit on all machines, or upload this one with each job "
            "(ray job submit --working-dir .)"
        )
        return Check("source", "fail", describe_by_value(by_version), remedy)
    return Check("source", "ok", report.driver_versions["source"])


def check_authentication(report: ClusterReport) -> Check:
    """RAY_AUTH_MODE is the same on all nodes."""
    modes = _grouped(report, lambda node: node.facts.auth_mode or "not set" if node.facts else "")
    name = "ray authentication"
    remedy = "set RAY_AUTH_MODE=token on every machine before starting Ray there"
    if len(modes) > 1:
        return Check(name, "fail", describe_by_value(modes), remedy)
    mode = next(iter(modes), "")
    if mode == "disabled":
        return Check(
            name, "warn", "disabled: anyone who reaches the cluster can run code on it", remedy
        )
    return Check(name, "ok", mode)


def check_resources(report: ClusterReport, requirements: ClusterRequirements) -> Check:
    """The cluster has enough CPUs and GPUs for the job's workers."""
    available: dict[str, float] = defaultdict(float)
    for node in report.nodes:
        for kind in ("CPU", "GPU"):
            available[kind] += node.resources.get(kind, 0)
    found = f"{available['CPU']:g} CPUs, {available['GPU']:g} GPUs"
    for kind, needed in requirements.resources.items():
        if available[kind] < needed:
            remedy = f"add machines, or lower cluster.workers or cluster.{kind.lower()}s_per_worker"
            return Check("resources", "fail", f"{found}; the job needs {needed:g} {kind}s", remedy)
    return Check("resources", "ok", found)


def check_clocks(report: ClusterReport) -> Check:
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


def check_disks(report: ClusterReport) -> Check:
    """There is free space in Ray's folder and in the folder for temporary files."""
    free = {
        f"{node.name}:{folder}": num_bytes
        for node in report.nodes
        for folder, num_bytes in (node.facts.disks if node.facts else {}).items()
    }
    return _check_free(
        "disk", free, MIN_DISK, "free up 10 GB, or start Ray with --temp-dir on a larger disk"
    )


def check_shared_memory(report: ClusterReport) -> Check:
    """There is free space in /dev/shm."""
    known = [node for node in report.nodes if node.facts and node.facts.shared_memory is not None]
    free = {node.name: node.facts.shared_memory or 0 for node in known if node.facts}
    remedy = "enlarge /dev/shm of the machine, or of the container that runs Ray"
    check = _check_free("shared memory", free, MIN_SHARED_MEMORY, remedy)
    small = [
        node.name
        for node in known
        if node.facts and len(node.facts.gpus) > 1 and free[node.name] <= NCCL_SHARED_MEMORY
    ]
    if small:
        return Check("shared memory", "fail", f"{check.found}: too little for NCCL", remedy)
    return check


def check_gpus(report: ClusterReport) -> Check:
    """torch can use the GPUs that Ray counts, and they are all of one kind."""
    known = {node.name: node.facts for node in report.nodes if node.facts is not None}
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


def _check_free(name: str, free: Mapping[str, int], minimum: int, remedy: str) -> Check:
    if not free:
        return Check(name, "ok", "not measured")
    where, fewest = min(free.items(), key=lambda item: item[1])
    small = [at for at, num_bytes in free.items() if num_bytes < minimum]
    found = f"{fewest / 1e9:.1f} GB free on {where}, the least"
    if small:
        return Check(name, "warn", f"{found}; too little: {', '.join(small)}", remedy)
    return Check(name, "ok", found)


def _by_version(report: ClusterReport, package: str) -> dict[str, list[str]]:
    known = {node.name: node.facts.versions for node in report.nodes if node.facts is not None}
    found = {"the driver": report.driver_versions[package]}
    return names_by_value(found | {name: v.get(package, "-") for name, v in known.items()})


def _grouped(report: ClusterReport, key: Callable[[NodeReport], str]) -> dict[str, list[str]]:
    return names_by_value({node.name: key(node) for node in report.nodes if node.facts is not None})
