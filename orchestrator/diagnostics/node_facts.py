"""Collect facts about a node: versions, resources, and the services it reaches."""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orchestrator
from orchestrator import models
from orchestrator.diagnostics.doctor import (
    Check,
    check_mlflow,
    nearest_existing_folder,
    remove_new_folders,
)
from orchestrator.distribution import installed_version
from orchestrator.errors import OrchestratorError
from orchestrator.storage.base import NotFound
from orchestrator.storage.open import open_storage

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class NodeFacts:
    """A node as a process on it sees it."""

    host: str
    versions: Mapping[str, str]
    """Versions of Python and of packages; ``source`` is a digest of this project's files."""
    cpus: int
    """Cores of the machine."""
    disks: Mapping[str, int]
    """Free bytes by folder."""
    shared_memory: int | None
    """Free bytes in /dev/shm; None if it does not exist."""
    auth_mode: str
    """Value of RAY_AUTH_MODE."""
    gpus: tuple[str, ...] = ()
    """Names of the GPUs."""
    gpu_versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the driver, and of the CUDA and NCCL that torch was built with."""
    gpu_problem: str = ""
    """Why torch cannot use the GPUs that Ray counts."""


@dataclass(frozen=True)
class StorageFacts:
    """Result of writing, reading and deleting one object."""

    problem: str = ""
    shared: bool = True
    """Whether the driver's object was found; otherwise the URI names another storage here."""
    num_bytes: int = 0
    put_s: float = 0.0
    get_s: float = 0.0


@dataclass(frozen=True)
class ServiceFacts:
    """Services that a node reaches."""

    mlflow: Check
    storage: StorageFacts


@dataclass(frozen=True)
class ServiceAddresses:
    """URIs of services, and how to print them."""

    tracking_uri: str = field(repr=False)
    storage: str = field(repr=False)
    shown_tracking_uri: str
    shown_storage: str
    marker: str
    """Key of an object that the driver has written."""
    marker_data: bytes


def collect_node_facts(folders: Sequence[str], ray_gpus: int) -> NodeFacts:
    """Collect facts about this machine, on which Ray counts ``ray_gpus`` GPUs."""
    gpus, gpu_versions, problem = _collect_gpus(ray_gpus)
    return NodeFacts(
        host=socket.gethostname(),
        versions=collect_versions(),
        cpus=os.cpu_count() or 1,
        disks={f: shutil.disk_usage(nearest_existing_folder(Path(f))).free for f in folders},
        shared_memory=shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None,
        auth_mode=os.environ.get("RAY_AUTH_MODE", ""),
        gpus=gpus,
        gpu_versions=gpu_versions,
        gpu_problem=problem,
    )


def collect_versions() -> dict[str, str]:
    """Versions of Python, of packages that must be the same everywhere, and of this source."""
    found = {"python": platform.python_version()}
    for package in ("ray", "torch", "mlflow"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "-"
    return {**found, "orchestrator": installed_version() or "-", "source": source_digest()}


def source_digest() -> str:
    """Hash the Python files of this project to 12 hex digits."""
    digest = hashlib.sha256()
    for package in (models, orchestrator):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
            relative = path.relative_to(root)
            if package is orchestrator and relative.parts[0] == "models":
                continue  # a link in a checkout, a folder in an installed package; hashed as models
            content = path.read_bytes()
            name = f"{package.__name__}/{relative.as_posix()}"
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def _collect_gpus(ray_gpus: int) -> tuple[tuple[str, ...], dict[str, str], str]:
    """Names, versions and problem of the GPUs; imports torch only if there may be some."""
    if not ray_gpus and shutil.which("nvidia-smi") is None:
        return (), {}, ""
    import torch
    import torch.distributed as dist

    versions = {"driver": _driver_version(), "cuda": str(torch.version.cuda)}
    if not torch.cuda.is_available():
        problem = f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU"
        return (), versions, problem if ray_gpus else ""
    names = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    if not dist.is_nccl_available():
        return names, versions, f"torch {torch.__version__} is built without NCCL"
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return names, {**versions, "nccl": nccl}, ""


def _driver_version() -> str:
    """Version of the NVIDIA driver; "-" if unknown."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        printed = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "-"
    return next(iter(printed.split()), "-")


def probe_services(addresses: ServiceAddresses, key: str, num_bytes: int) -> ServiceFacts:
    """Probe MLflow, and the storage with a temporary object of ``num_bytes`` at ``key``."""
    mlflow = check_mlflow(addresses.tracking_uri, addresses.shown_tracking_uri)
    try:
        return ServiceFacts(mlflow, _probe_storage(addresses, key, os.urandom(num_bytes)))
    except OrchestratorError as error:
        problem = str(error).replace(addresses.storage, addresses.shown_storage)
        return ServiceFacts(mlflow, StorageFacts(problem))


def _probe_storage(addresses: ServiceAddresses, key: str, data: bytes) -> StorageFacts:
    storage = open_storage(addresses.storage)
    with remove_new_folders(storage):
        try:
            shared = storage.get(addresses.marker) == addresses.marker_data
        except NotFound:
            shared = False
        storage.delete(key)  # opens the connection, which is not timed
        try:
            start = time.perf_counter()
            storage.put(key, data)
            put_s = time.perf_counter() - start
            start = time.perf_counter()
            same = storage.get(key) == data
            get_s = time.perf_counter() - start
        finally:
            storage.delete(key)
    if not same:
        return StorageFacts(f"{addresses.shown_storage} returned other bytes than were written")
    return StorageFacts("", shared, len(data), put_s, get_s)
