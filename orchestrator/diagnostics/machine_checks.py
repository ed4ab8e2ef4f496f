"""Checks of the machines of a cluster: that they answer, are alike, and have room."""

from collections import defaultdict
from collections.abc import Callable, Mapping

from orchestrator.diagnostics.doctor import Check, Status
from orchestrator.diagnostics.node_report import Checkup, NodeReport, Wanted, by_value, who

CLOCK_WARN_S = 1.0
"""A machine whose clock is kept by NTP is off by milliseconds: more, and it is not kept at all."""
CLOCK_FAIL_S = 10.0
"""S3 refuses signatures that are 15 minutes off, and a clock that nobody keeps drifts further; the
times of logs and of MLflow's points are out of order long before."""
MIN_DISK = 10_000_000_000
"""Ray spills objects and stops giving out work when its disk is 95 % full; torch and MLflow write
there too."""
MIN_SHARED_MEMORY = 1_000_000_000
"""NCCL and Ray's object store share memory through /dev/shm; Ray uses a disk instead, slowly."""
NCCL_SHARED_MEMORY = 64 << 20
"""What containers have by default, with which NCCL fails for two GPUs of a machine."""


def check_nodes(checkup: Checkup) -> Check:
    """Every node answers."""
    silent = [f"{node.name}: {node.problem}" for node in checkup.nodes if node.problem]
    if silent:
        remedy = (
            "look at that machine's load and at Ray's logs there (`ray logs`); if it is stuck, "
            "end Ray on it (`ray stop`) and start it again"
        )
        return Check("nodes", "fail", "; ".join(silent), remedy)
    number = len(checkup.nodes)
    found = f"{number} {'answers' if number == 1 else 'answer'}"
    if checkup.gone:
        remedy = "start Ray there again, if these machines should be part of the cluster"
        return Check("nodes", "warn", f"{found}; gone: {', '.join(checkup.gone)}", remedy)
    return Check("nodes", "ok", found)


def check_versions(checkup: Checkup) -> Check:
    """Python and the packages are the same on all nodes and here."""
    unlike = []
    for package in checkup.here:
        if package != "source":
            by_version = _by_version(checkup, package)
            if len(by_version) > 1:
                unlike.append(f"{package} {who(by_version)}")
    if unlike:
        remedy = "install the same versions on all machines: requirements.lock names them"
        return Check("versions", "fail", "; ".join(unlike), remedy)
    shown = [f"{name} {version}" for name, version in checkup.here.items() if name != "source"]
    return Check("versions", "ok", ", ".join(shown))


def check_source(checkup: Checkup) -> Check:
    """All nodes have this project's files, and the same."""
    by_version = _by_version(checkup, "source")
    if len(by_version) > 1:
        remedy = (
            "bring all clones to the same commit, or upload this one with each job "
            "(ray job submit --working-dir .)"
        )
        return Check("source", "fail", who(by_version), remedy)
    return Check("source", "ok", checkup.here["source"])


def check_authentication(checkup: Checkup) -> Check:
    """RAY_AUTH_MODE is the same on all nodes."""
    modes = _grouped(checkup, lambda node: node.facts.auth_mode or "not set" if node.facts else "")
    name = "ray authentication"
    remedy = "set RAY_AUTH_MODE=token on every machine before Ray is started there"
    if len(modes) > 1:
        return Check(name, "fail", who(modes), remedy)
    mode = next(iter(modes), "")
    if mode == "disabled":
        return Check(name, "warn", "disabled: whoever reaches the cluster can run code", remedy)
    return Check(name, "ok", mode)


def check_room(checkup: Checkup, wanted: Wanted) -> Check:
    """The job's workers fit into the cluster."""
    have: dict[str, float] = defaultdict(float)
    for node in checkup.nodes:
        for kind in ("CPU", "GPU"):
            have[kind] += node.resources.get(kind, 0)
    found = f"{have['CPU']:g} CPUs, {have['GPU']:g} GPUs"
    for kind, needed in wanted.resources.items():
        if have[kind] < needed:
            remedy = f"add machines, or lower cluster.workers or cluster.{kind.lower()}s_per_worker"
            return Check("room", "fail", f"{found}; the job needs {needed:g} {kind}s", remedy)
    return Check("room", "ok", found)


def check_clocks(checkup: Checkup) -> Check:
    """All clocks agree, the driver's among them."""
    off = {node.name: node.clock for node in checkup.nodes if node.clock is not None}
    if not off:
        return Check("clocks", "warn", "not measured", "see `nodes`")
    status: Status = "ok"
    wrong = []
    for name, clock in off.items():
        sure_s = abs(clock.offset_s) - clock.error_s
        if sure_s > CLOCK_WARN_S:
            ahead = "ahead of" if clock.offset_s > 0 else "behind"
            wrong.append(f"{name} is {abs(clock.offset_s):.1f} s {ahead} the driver's machine")
            status = "fail" if sure_s > CLOCK_FAIL_S or status == "fail" else "warn"
    if wrong:
        remedy = "let NTP keep the clocks (chrony, systemd-timesyncd): `timedatectl` shows it"
        return Check("clocks", status, "; ".join(wrong), remedy)
    most = max(off.values(), key=lambda clock: abs(clock.offset_s))
    error_s = max(clock.error_s for clock in off.values())
    found = f"within {1000 * abs(most.offset_s):.1f} ms of the driver's, +- {1000 * error_s:.1f}"
    return Check("clocks", "ok", found)


def check_disks(checkup: Checkup) -> Check:
    """There is room where Ray and torch put what they need for a while."""
    free = {
        f"{node.name}:{folder}": num_bytes
        for node in checkup.nodes
        for folder, num_bytes in (node.facts.disks if node.facts else {}).items()
    }
    return _check_least(
        "disk", free, MIN_DISK, "free 10 GB, or start Ray with --temp-dir on a larger disk"
    )


def check_shared_memory(checkup: Checkup) -> Check:
    """/dev/shm has room."""
    seen = [node for node in checkup.nodes if node.facts and node.facts.shared_memory is not None]
    free = {node.name: node.facts.shared_memory or 0 for node in seen if node.facts}
    remedy = "give the machine, or the container that Ray runs in, a larger /dev/shm"
    check = _check_least("shared memory", free, MIN_SHARED_MEMORY, remedy)
    small = [
        node.name
        for node in seen
        if node.facts and len(node.facts.gpus) > 1 and free[node.name] <= NCCL_SHARED_MEMORY
    ]
    if small:
        return Check("shared memory", "fail", f"{check.found}: too little for NCCL", remedy)
    return check


def check_gpus(checkup: Checkup) -> Check:
    """The GPUs that Ray counts can be used, and are alike."""
    told = {node.name: node.facts for node in checkup.nodes if node.facts is not None}
    broken = [f"{name}: {facts.gpu_problem}" for name, facts in told.items() if facts.gpu_problem]
    if broken:
        remedy = (
            "check the driver there with `nvidia-smi`, and that torch is a build for its CUDA "
            "version: python -c 'import torch; torch.cuda.init()'"
        )
        return Check("gpus", "fail", "; ".join(broken), remedy)
    with_gpus = {name: facts for name, facts in told.items() if facts.gpus}
    if not with_gpus:
        return Check("gpus", "ok", "none: training is on the CPU")
    nccl = by_value({n: f.gpu_versions.get("nccl", "-") for n, f in with_gpus.items()})
    if len(nccl) > 1:
        remedy = "install the same torch everywhere; NCCL of two versions does not work together"
        return Check("gpus", "fail", f"NCCL {who(nccl)}", remedy)
    models = by_value({name: ", ".join(facts.gpus) for name, facts in with_gpus.items()})
    drivers = by_value({n: f.gpu_versions.get("driver", "-") for n, f in with_gpus.items()})
    total = sum(len(facts.gpus) for facts in with_gpus.values())
    found = f"{total} on {len(with_gpus)} nodes, driver {who(drivers)}, NCCL {next(iter(nccl))}"
    if len({gpu for facts in with_gpus.values() for gpu in facts.gpus}) > 1:
        remedy = "training goes at the pace of the slowest GPU: use nodes of one kind for a job"
        return Check("gpus", "warn", f"{found}: {who(models)}", remedy)
    return Check("gpus", "ok", f"{found}: {next(iter(with_gpus.values())).gpus[0]}")


def _check_least(name: str, free: Mapping[str, int], least: int, remedy: str) -> Check:
    if not free:
        return Check(name, "ok", "not measured")
    where, fewest = min(free.items(), key=lambda item: item[1])
    small = [at for at, num_bytes in free.items() if num_bytes < least]
    found = f"{fewest / 1e9:.1f} GB free at least, on {where}"
    if small:
        return Check(name, "warn", f"{found}; too little: {', '.join(small)}", remedy)
    return Check(name, "ok", found)


def _by_version(checkup: Checkup, package: str) -> dict[str, list[str]]:
    told = {node.name: node.facts.versions for node in checkup.nodes if node.facts is not None}
    found = {"the driver": checkup.here[package]}
    return by_value(found | {name: v.get(package, "-") for name, v in told.items()})


def _grouped(checkup: Checkup, key: Callable[[NodeReport], str]) -> dict[str, list[str]]:
    return by_value({node.name: key(node) for node in checkup.nodes if node.facts is not None})
