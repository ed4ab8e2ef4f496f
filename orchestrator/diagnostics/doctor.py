"""Check that this machine can run jobs: one check per line, each with a remedy if it fails."""

import contextlib
import importlib.metadata
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from orchestrator.addresses import split_address
from orchestrator.config.paths import base_folder, sqlite_path, to_absolute_tracking_uri
from orchestrator.diagnostics import temp_folder
from orchestrator.diagnostics.encryption_check import find_unencrypted
from orchestrator.diagnostics.open_cluster_check import find_open_cluster
from orchestrator.diagnostics.open_service_check import find_open_service
from orchestrator.errors import EnvironmentProblem, OrchestratorError
from orchestrator.redaction import mask
from orchestrator.storage.base import Storage
from orchestrator.storage.local import FolderStorage
from orchestrator.storage.open import open_storage
from orchestrator.storage.probe import probe_storage
from orchestrator.tracking import check_tracking

Status = Literal["ok", "warn", "fail"]

MIN_RAY = (2, 56)
"""In older versions anyone who reaches the dashboard can run code: CVE-2025-62593 and others."""
MIN_FREE_BYTES = 10_000_000_000
TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    name: str
    status: Status
    found: str
    remedy: str = ""
    """What to do; empty if there is nothing to do."""


@dataclass(frozen=True)
class MachineRequirements:
    """Requirements of a job; without a job, MLflow and storage are those of the environment."""

    tracking_uri: str = field(
        default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    )
    storage: str = field(default_factory=lambda: os.environ.get("ORCHESTRATOR_STORAGE") or "runs")
    gpus_per_worker: int = 0
    shown_tracking_uri: str | None = None
    """Printed in place of ``tracking_uri``, which may hold a password."""
    shown_storage: str | None = None
    experiment: str | None = None
    """Name of the job's experiment in MLflow."""
    serve_port: int = 8300
    """Port where `orchestrator serve` may run."""


def run_checks(
    requirements: MachineRequirements, environ: Mapping[str, str] | None = None
) -> list[Check]:
    """Run all checks, in order. A server that does not answer takes ``TIMEOUT_S`` seconds."""
    environ = os.environ if environ is None else environ
    uri, storage = requirements.tracking_uri, requirements.storage
    return [
        check_python(sys.version_info[:3]),
        check_torch(requirements.gpus_per_worker, on_cluster="RAY_ADDRESS" in environ),
        check_ray(importlib.metadata.version("ray")),
        check_ray_authentication(environ),
        check_ray_cluster(environ),
        check_temp_folder(environ),
        check_mlflow(uri, requirements.shown_tracking_uri or mask(uri), requirements.experiment),
        check_storage(storage, requirements.shown_storage or mask(storage)),
        check_encryption(uri, storage),
        check_disk(storage),
        *check_open_service(requirements.serve_port),
    ]


def check_open_service(port: int) -> list[Check]:
    """Describe a model that is served here without a token; [] if none is."""
    if (found := find_open_service(port)) is None:
        return []
    name, served = "served model", f"{found.model} on port {port} requires no token"
    if not found.reachable_at:
        return [Check(name, "ok", f"{served}; no other machine reaches it directly")]
    problem = f"{served}, and other machines reach it at {found.reachable_at}: they can use it"
    remedy = (
        "stop what passes the port on, or serve with --token-file FILE (`openssl rand -hex 32`); "
        "in a deployment of Ray Serve give its `args` the `host` of its `http_options`"
    )
    return [Check(name, "warn", problem, remedy)]


def check_encryption(tracking_uri: str, storage: str) -> Check:
    """Check that no password, data or model crosses a network in clear text."""
    name, found = "encryption", find_unencrypted(tracking_uri, storage)
    if not found:
        return Check(name, "ok", "no server on another machine is reached by http://")
    problem = f"passwords, data and models cross the network in clear text to {', '.join(found)}"
    remedy = "use https:// addresses (deploy/machines makes certificates), or a private network"
    return Check(name, "warn", problem, remedy)


def check_python(version: tuple[int, ...]) -> Check:
    """Check the version of Python."""
    found = ".".join(map(str, version))
    if version < (3, 11):
        return Check("python", "fail", found, "install Python 3.11 or newer")
    return Check("python", "ok", found)


def check_torch(gpus_per_worker: int, *, on_cluster: bool) -> Check:
    """Check that torch can use GPUs, if the job needs them."""
    import torch

    version = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("torch", "ok", f"{version}, {len(names)} GPUs: {', '.join(names)}")
    if not gpus_per_worker:
        return Check("torch", "ok", f"{version}, no GPU")
    found = f"{version}, no GPU here, but cluster.gpus_per_worker is {gpus_per_worker}"
    remedy = (
        "run on a cluster with GPUs, check the driver with `nvidia-smi`, or train on the CPU with "
        "--set cluster.gpus_per_worker=0"
    )
    return Check("torch", "warn" if on_cluster else "fail", found, remedy)


def check_ray(version: str) -> Check:
    """Check that Ray has no known vulnerabilities."""
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < MIN_RAY:
        remedy = "install ray>=2.60; before 2.56 anyone who reaches the dashboard can run code"
        return Check("ray", "fail", version, remedy)
    return Check("ray", "ok", version)


def check_ray_authentication(environ: Mapping[str, str]) -> Check:
    """Check that the cluster requires a token; fails for one that is open to other machines."""
    return _check_open_cluster(environ) or _check_auth_mode(environ)


def _check_auth_mode(environ: Mapping[str, str]) -> Check:
    """Check that there is a token, if RAY_AUTH_MODE requires one."""
    mode, name = environ.get("RAY_AUTH_MODE", ""), "ray authentication"
    if mode == "token":
        token_file = Path(environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        if environ.get("RAY_AUTH_TOKEN") or token_file.is_file():
            return Check(name, "ok", "token")
        remedy = (
            "run `ray get-auth-token --generate; chmod 600 ~/.ray/auth_token`, or set "
            "RAY_AUTH_TOKEN to the cluster's token"
        )
        return Check(name, "fail", "RAY_AUTH_MODE=token, but no token was found", remedy)
    remedy = "set RAY_AUTH_MODE=token here and on every node; use TLS if others share the network"
    if mode == "disabled":
        found = "disabled: anyone who reaches the cluster can run code on it"
        return Check(name, "warn", found, remedy)
    if mode:
        return Check(name, "fail", f"RAY_AUTH_MODE={mode} is not a valid mode", remedy)
    if "RAY_ADDRESS" in environ:
        found = "RAY_AUTH_MODE is not set, so the default of Ray's version applies"
        return Check(name, "warn", found, remedy)
    return Check(name, "ok", "RAY_AUTH_MODE is not set; a local cluster creates its own token")


def _check_open_cluster(environ: Mapping[str, str]) -> Check | None:
    """Describe a cluster that answers without a token; None if no cluster does."""
    addresses = {environ.get(key, "") for key in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")}
    clusters = filter(None, map(find_open_cluster, addresses - {"", "auto", "local"}))
    worst = max(clusters, key=lambda each: (bool(each.reachable_at), each.address), default=None)
    if worst is None:
        return None
    remedy = (
        "restart it with RAY_AUTH_MODE=token and the same token on every node (`ray "
        "get-auth-token --generate`); on a single machine use `orchestrator up`"
    )
    found = f"{worst.address} requires no token"
    if worst.reachable_at:
        found += f", and other machines reach it at {worst.reachable_at}: they can run code on it"
        return Check("ray authentication", "fail", found, remedy)
    return Check("ray authentication", "warn", f"{found}; only this machine reaches it", remedy)


def check_ray_cluster(environ: Mapping[str, str]) -> Check:
    """Check that the cluster at RAY_ADDRESS accepts connections; starts no cluster."""
    address, name = environ.get("RAY_ADDRESS", ""), "ray cluster"
    if address in ("", "auto", "local"):
        return Check(name, "ok", "RAY_ADDRESS is not set: each job starts its own cluster here")
    shown = mask(address)
    try:
        parts = split_address(address, "ray")
    except ValueError as error:
        remedy = "set RAY_ADDRESS to HOST:PORT, or unset it"
        return Check(name, "fail", f"{shown} is not a valid address: {error}", remedy)
    try:
        port = parts.port or {"http": 80, "https": 443, "ray": 10001}.get(parts.scheme, 6379)
        socket.create_connection((parts.hostname or "", port), TIMEOUT_S).close()
    except OSError as error:
        remedy = "start the cluster (`ray start --head`), or correct or unset RAY_ADDRESS"
        return Check(name, "fail", f"{shown} does not answer: {error}", remedy)
    if parts.scheme in ("http", "https"):  # ray.init, and so `run`, refuses these
        remedy = "this RAY_ADDRESS is for `orchestrator submit`; unset it for `orchestrator run`"
        return Check(name, "warn", f"{shown} answers", remedy)
    return Check(name, "ok", f"{shown} answers")


def check_temp_folder(environ: Mapping[str, str]) -> Check:
    """Check that Ray can keep the sockets and logs of a cluster that a job starts for itself."""
    name, folder = "ray files", temp_folder.default_folder(environ)
    problem = temp_folder.find_problem(folder)
    if not problem:
        return Check(name, "ok", str(folder))
    remedy = "set RAY_TMPDIR to a writable folder with a short path"
    try:
        with temp_folder.private_folder():
            found = f"{folder}: {problem}; a private folder is used instead"
            return Check(name, "warn", found, remedy)
    except EnvironmentProblem:
        return Check(name, "fail", f"{folder}: {problem}", remedy)


def require_ray_cluster(environ: Mapping[str, str]) -> None:
    """Raise EnvironmentProblem if nothing answers at RAY_ADDRESS, or if its token is missing.

    Ray would retry for minutes, or abort the process.
    """
    check = check_ray_cluster(environ)
    if check.status == "fail":
        raise EnvironmentProblem(f"the Ray cluster at {check.found}; {check.remedy}")
    token = _check_auth_mode(environ)
    is_local = environ.get("RAY_ADDRESS", "") in ("", "local")
    if token.status == "fail" and not (is_local and environ.get("RAY_AUTH_MODE") == "token"):
        raise EnvironmentProblem(f"{token.found}; {token.remedy}")


def check_mlflow(uri: str, shown: str, experiment: str | None = None) -> Check:
    """Check what a run needs of MLflow; writes nothing.

    Args:
        shown: printed in place of ``uri``.
        experiment: name of the run's experiment, which may be deleted or in another folder.
    """
    found = f"mlflow {importlib.metadata.version('mlflow')}, {shown}"
    try:
        uri = to_absolute_tracking_uri(uri, base_folder())
        check_tracking(uri, experiment, timeout_s=int(TIMEOUT_S))
    except OrchestratorError as error:
        problem, _, remedy = str(error).replace(mask(uri), shown).partition("; ")
        return Check("mlflow", "fail", problem, remedy)
    if (database := sqlite_path(uri)) is None:
        return Check("mlflow", "ok", f"{found} answers")
    place = database if os.path.exists(database) else nearest_existing_folder(database.parent)
    if not os.access(place, os.W_OK):
        remedy = "make it writable, or change tracking.uri"
        return Check("mlflow", "fail", f"{place} is not writable, for {shown}", remedy)
    return Check("mlflow", "ok", found)


def check_storage(uri: str, shown: str) -> Check:
    """Use every operation of the storage on a test object; leaves nothing behind."""
    try:
        storage = open_storage(uri)
        with remove_new_folders(storage):
            wrong = probe_storage(storage)
    except OrchestratorError as error:
        remedy = (
            "grant read, list, write and delete access (for s3:// with AWS_* variables, for gs:// "
            "GOOGLE_*, for az:// AZURE_*), or change `storage`"
        )
        return Check("storage", "fail", str(error).replace(uri, shown), remedy)
    if wrong:
        remedy = "use another storage: checkpoints in this one could be lost"
        return Check("storage", "fail", f"{shown} {', '.join(wrong)}", remedy)
    found = f"{shown} is readable and writable"
    if settings := storage.settings():
        found += f"; {', '.join(settings)}"
    if any("conditional writes" in each for each in settings):
        remedy = "never start one job twice at once on this storage: both could write a checkpoint"
        return Check("storage", "warn", found, remedy)
    return Check("storage", "ok", found)


@contextlib.contextmanager
def remove_new_folders(storage: Storage) -> Iterator[None]:
    """Remove the folders that the block creates for ``storage``, unless they have content."""
    created = []
    if isinstance(storage, FolderStorage):
        root = Path(storage.uri)
        created = [folder for folder in (root, *root.parents) if not os.path.exists(folder)]
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for folder in created:
                folder.rmdir()


def check_disk(storage: str) -> Check:
    """Check the free space for data and checkpoints, here or in the storage's folder."""
    place = Path.cwd()
    with contextlib.suppress(OrchestratorError):  # which `check_storage` reports
        if isinstance(opened := open_storage(storage), FolderStorage):
            place = Path(opened.uri)
    free = shutil.disk_usage(nearest_existing_folder(place)).free
    found = f"{free / 1e9:.1f} GB free"
    if free < MIN_FREE_BYTES:
        return Check("disk", "warn", found, "free up 10 GB, or move `storage` to a larger disk")
    return Check("disk", "ok", found)


def nearest_existing_folder(folder: Path) -> Path:
    """Find the nearest folder that exists and is visible: ``folder`` or one of its parents."""
    # Unlike Path.exists, this raises nothing for a folder that this user may not look into.
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder
