"""What a machine of the cluster tells of itself, and what it reaches from where it is."""

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
from orchestrator.diagnostics.doctor import Check, check_mlflow, existing, no_new_folders
from orchestrator.errors import OrchestratorError
from orchestrator.storage.base import NotFound
from orchestrator.storage.open import open_storage

PACKAGES = ("ray", "torch", "mlflow", "orchestrator")
SHARED_MEMORY = Path("/dev/shm")
NVIDIA_TIMEOUT_S = 20


@dataclass(frozen=True)
class NodeFacts:
    """A machine as one process on it sees it."""

    host: str
    versions: Mapping[str, str]
    """Of Python and of the packages; ``source`` is a digest of this project's files."""
    cpus: int
    """Cores of the machine."""
    disks: Mapping[str, int]
    """Free bytes where these folders are."""
    shared_memory: int | None
    """Free bytes in /dev/shm; None where there is none."""
    auth_mode: str
    """RAY_AUTH_MODE as the node has it."""
    gpus: tuple[str, ...] = ()
    """Their names."""
    gpu_versions: Mapping[str, str] = field(default_factory=dict)
    """Of the driver, and of the CUDA and NCCL that torch was built with."""
    gpu_problem: str = ""
    """Why the GPUs that Ray counts cannot be used."""


@dataclass(frozen=True)
class StorageFacts:
    """What came of writing, reading and deleting one object."""

    problem: str = ""
    shared: bool = True
    """Whether the object of the driver was seen: else it is another storage by the same name."""
    num_bytes: int = 0
    put_s: float = 0.0
    get_s: float = 0.0


@dataclass(frozen=True)
class Services:
    """What a machine reaches."""

    mlflow: Check
    storage: StorageFacts


@dataclass(frozen=True)
class Places:
    """What is to be reached, and how to print it."""

    tracking_uri: str = field(repr=False)
    storage: str = field(repr=False)
    shown_tracking_uri: str
    shown_storage: str
    marker: str
    """Key of the driver's object in the storage."""
    marker_data: bytes


def node_facts(folders: Sequence[str], ray_gpus: int) -> NodeFacts:
    """What this machine is.

    Args:
        folders: whose disks are looked at.
        ray_gpus: as many as Ray counts here.
    """
    names, versions, problem = _gpus(ray_gpus)
    memory = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None
    return NodeFacts(
        host=socket.gethostname(),
        versions=all_versions(),
        cpus=os.cpu_count() or 1,
        disks={folder: shutil.disk_usage(existing(Path(folder))).free for folder in folders},
        shared_memory=memory,
        auth_mode=os.environ.get("RAY_AUTH_MODE", ""),
        gpus=names,
        gpu_versions=versions,
        gpu_problem=problem,
    )


def all_versions() -> dict[str, str]:
    """Of Python, of the packages that must be the same everywhere, and of this source."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
            found[package] = "-"
    return {**found, "source": source_digest()}


def source_digest() -> str:
    """12 hex digits that name the Python files of this project as they are here."""
    digest = hashlib.sha256()
    for package in (models, orchestrator):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
            relative = path.relative_to(root)
            if package is orchestrator and relative.parts[0] == "models":
                continue  # a link in a checkout, a folder in an installed package
            content = path.read_bytes()
            name = f"{package.__name__}/{relative.as_posix()}"
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def _gpus(ray_gpus: int) -> tuple[tuple[str, ...], dict[str, str], str]:
    """Names, versions, and why they cannot be used; imports torch only if there may be some."""
    if not ray_gpus and shutil.which("nvidia-smi") is None:
        return (), {}, ""
    import torch
    import torch.distributed as dist

    versions = {"driver": _driver(), "cuda": str(torch.version.cuda)}
    if not torch.cuda.is_available():
        problem = f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds none"
        return (), versions, problem if ray_gpus else ""
    names = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    if not dist.is_nccl_available():
        return names, versions, f"torch {torch.__version__} is built without NCCL"
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return names, {**versions, "nccl": nccl}, ""


def _driver() -> str:
    """The version of the NVIDIA driver; "-" where it does not say."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=NVIDIA_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return "-"
    return next(iter(done.stdout.split()), "-")


def services(places: Places, key: str, num_bytes: int) -> Services:
    """What this machine reaches; an object of ``num_bytes`` is under ``key`` meanwhile."""
    mlflow = check_mlflow(places.tracking_uri, places.shown_tracking_uri)
    try:
        return Services(mlflow, _try_storage(places, key, os.urandom(num_bytes)))
    except OrchestratorError as error:
        problem = str(error).replace(places.storage, places.shown_storage)
        return Services(mlflow, StorageFacts(problem))


def _try_storage(places: Places, key: str, data: bytes) -> StorageFacts:
    storage = open_storage(places.storage)
    with no_new_folders(storage):
        try:
            shared = storage.get(places.marker) == places.marker_data
        except NotFound:
            shared = False
        storage.delete(key)  # connects, which is not to be timed
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
        return StorageFacts(f"{places.shown_storage} gave back other bytes than it got")
    return StorageFacts("", shared, len(data), put_s, get_s)
