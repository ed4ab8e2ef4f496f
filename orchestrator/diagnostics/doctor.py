"""Whether this machine can do the work: one check a line, each with what to do when it fails."""

import contextlib
import importlib.metadata
import os
import shutil
import socket
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from orchestrator.diagnostics.open_cluster_check import exposure
from orchestrator.errors import EnvironmentProblem, OrchestratorError
from orchestrator.redaction import mask
from orchestrator.storage.base import Storage
from orchestrator.storage.local import FolderStorage
from orchestrator.storage.open import open_storage

Status = Literal["ok", "warn", "fail"]

MIN_PYTHON = (3, 11)
MIN_RAY = (2, 56)
"""Older ones let anyone who reaches them run code: CVE-2025-62593, CVE-2026-57516 and others."""
MIN_FREE_BYTES = 10_000_000_000
TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    status: Status
    found: str
    remedy: str = ""
    """What to do; empty when all is well."""


@dataclass(frozen=True)
class Needs:
    """What a job asks of the machine; the defaults are those of a job that says nothing."""

    tracking_uri: str = "sqlite:///mlflow.db"
    storage: str = "runs"
    gpus_per_worker: int = 0
    shown_tracking_uri: str | None = None
    """What to print for it, where it is not to be printed itself."""
    shown_storage: str | None = None


def diagnose(needs: Needs, environ: Mapping[str, str] | None = None) -> list[Check]:
    """All checks, in order. Takes some seconds when a server does not answer."""
    environ = os.environ if environ is None else environ
    return [
        check_python(sys.version_info[:3]),
        check_torch(needs.gpus_per_worker, on_cluster="RAY_ADDRESS" in environ),
        check_ray(importlib.metadata.version("ray")),
        check_ray_authentication(environ),
        check_ray_cluster(environ),
        check_mlflow(needs.tracking_uri, needs.shown_tracking_uri or mask(needs.tracking_uri)),
        check_storage(needs.storage, needs.shown_storage or mask(needs.storage)),
        check_disk(needs.storage),
    ]


def check_python(version: tuple[int, ...]) -> Check:
    """Python is new enough."""
    found = ".".join(map(str, version))
    if version < MIN_PYTHON:
        return Check("python", "fail", found, "install Python 3.11 or newer")
    return Check("python", "ok", found)


def check_torch(gpus_per_worker: int, *, on_cluster: bool) -> Check:
    """The version of torch, and the GPUs that it can use."""
    import torch

    version = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("torch", "ok", f"{version}, {len(names)} GPUs: {', '.join(names)}")
    if not gpus_per_worker:
        return Check("torch", "ok", f"{version}, no GPU")
    status: Status = "warn" if on_cluster else "fail"
    remedy = "run on a cluster with GPUs, check the driver with `nvidia-smi`, or train on the CPU "
    return Check(
        "torch",
        status,
        f"{version}, no GPU here, but cluster.gpus_per_worker is {gpus_per_worker}",
        remedy + "with --set cluster.gpus_per_worker=0",
    )


def check_ray(version: str) -> Check:
    """Ray is newer than its known holes."""
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < MIN_RAY:
        remedy = "install ray>=2.60: before 2.56 anyone who reaches the dashboard can run code"
        return Check("ray", "fail", version, remedy)
    return Check("ray", "ok", version)


def check_ray_authentication(environ: Mapping[str, str]) -> Check:
    """Whether the cluster asks who is there.

    One that does not, and that others than this machine can reach, runs the code of anyone.
    """
    return _check_open_cluster(environ) or _check_mode(environ)


def _check_mode(environ: Mapping[str, str]) -> Check:
    """Whether commands have what a cluster with tokens asks for."""
    mode, name = environ.get("RAY_AUTH_MODE", ""), "ray authentication"
    remote = "RAY_ADDRESS" in environ
    token_file = Path(environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if mode == "token":
        if environ.get("RAY_AUTH_TOKEN") or token_file.is_file():
            return Check(name, "ok", "token")
        remedy = (
            "run `ray get-auth-token --generate`, or copy the cluster's token to RAY_AUTH_TOKEN"
        )
        return Check(name, "fail", "token, but there is no token", remedy)
    remedy = (
        "set RAY_AUTH_MODE=token here and on every node, with TLS where others share the network"
    )
    if mode == "disabled":
        found = "disabled: whoever reaches the cluster can run code on it"
        return Check(name, "warn", found, remedy)
    if mode:
        return Check(name, "fail", f"RAY_AUTH_MODE={mode} is unknown", remedy)
    if remote:
        return Check(name, "warn", "RAY_AUTH_MODE is not set, so Ray's version decides", remedy)
    return Check(name, "ok", "not set; a local cluster makes its own token")


def _check_open_cluster(environ: Mapping[str, str]) -> Check | None:
    """What is wrong with a cluster that answers without a token, or None if none does."""
    addresses = {environ.get(key, "") for key in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")}
    opened = list(filter(None, map(exposure, addresses - {"", "auto", "local"})))
    if not opened:
        return None
    worst = max(opened, key=lambda one: (bool(one.to), one.address))
    status: Status = "fail" if worst.to else "warn"
    found = (
        f"{worst.address} asks for no token and others reach it at {worst.to}: whoever does can "
        "run code on it"
        if worst.to
        else f"{worst.address} asks for no token; this machine alone reaches it"
    )
    remedy = (
        "start it again with RAY_AUTH_MODE=token and the same token on every node (`ray "
        "get-auth-token --generate`); on one machine `orchestrator up` does all that"
    )
    return Check("ray authentication", status, found, remedy)


def check_ray_cluster(environ: Mapping[str, str]) -> Check:
    """The cluster that RAY_ADDRESS names accepts connections; none is started."""
    address, name = environ.get("RAY_ADDRESS", ""), "ray cluster"
    if address in ("", "auto", "local"):
        return Check(name, "ok", "RAY_ADDRESS names none: a job starts a cluster of its own here")
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    shown = mask(address)
    try:
        port = parts.port or {"http": 80, "https": 443, "ray": 10001}.get(parts.scheme, 6379)
        socket.create_connection((parts.hostname or "", port), TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        remedy = "start the cluster (`ray start --head`), or correct or unset RAY_ADDRESS"
        return Check(name, "fail", f"{shown} does not answer: {error}", remedy)
    if parts.scheme in ("http", "https"):  # ray.init, and so `run`, refuses these
        remedy = "this RAY_ADDRESS is for `orchestrator submit`; unset it to run here"
        return Check(name, "warn", f"{shown} answers", remedy)
    return Check(name, "ok", f"{shown} answers")


def require_ray_cluster(environ: Mapping[str, str]) -> None:
    """Raise EnvironmentProblem if nothing answers at RAY_ADDRESS: Ray itself tries for minutes."""
    check = check_ray_cluster(environ)
    if check.status == "fail":
        raise EnvironmentProblem(f"the Ray cluster at {check.found}; {check.remedy}")


def check_mlflow(uri: str, shown: str) -> Check:
    """The tracking server answers, or the folder of the local database can be written."""
    version = importlib.metadata.version("mlflow")
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        return _check_mlflow_server(uri, f"mlflow {version}, {shown}")
    if scheme.startswith("sqlite") or scheme in ("", "file"):
        place = Path(uri.removeprefix("sqlite:///").removeprefix("file://")).expanduser()
        folder = existing(place.absolute().parent)
        if os.access(folder, os.W_OK):
            return Check("mlflow", "ok", f"mlflow {version}, {shown}")
        remedy = "make the folder writable, or set tracking.uri to another place"
        return Check("mlflow", "fail", f"{folder} cannot be written, for {shown}", remedy)
    remedy = "use http(s)://server or sqlite:///file unless you know that it works"
    return Check("mlflow", "warn", f"mlflow {version}, {shown} is not checked", remedy)


def _check_mlflow_server(uri: str, shown: str) -> Check:
    parts = urlsplit(uri)
    server = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    try:
        with urllib.request.urlopen(server.rstrip("/") + "/health", timeout=TIMEOUT_S):
            return Check("mlflow", "ok", f"{shown} answers")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for it"
            return Check("mlflow", "warn", f"{shown} asks for credentials", remedy)
        remedy = "check that tracking.uri is the address of an MLflow server"
        return Check("mlflow", "fail", f"{shown} answers /health with {error.code}", remedy)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        remedy = "start it (`mlflow server`), or correct tracking.uri or MLFLOW_TRACKING_URI"
        return Check("mlflow", "fail", f"{shown} does not answer: {reason}", remedy)


def check_storage(uri: str, shown: str) -> Check:
    """A small object can be written, read back and deleted; it leaves nothing behind."""
    key, data = f"doctor-{uuid.uuid4().hex}", b"written by orchestrator doctor"
    try:
        storage = open_storage(uri)
        with no_new_folders(storage):
            storage.put(key, data)
            try:
                same = storage.get(key) == data
            finally:
                storage.delete(key)
    except OrchestratorError as error:
        remedy = "make it readable and writable (AWS_* variables for s3://), or change `storage`"
        return Check("storage", "fail", str(error).replace(uri, shown), remedy)
    if not same:
        remedy = "something between here and there changes data: use another storage"
        return Check("storage", "fail", f"{shown} gave back other bytes than it got", remedy)
    return Check("storage", "ok", f"{shown} can be written and read")


@contextlib.contextmanager
def no_new_folders(storage: Storage) -> Iterator[None]:
    """Remove the folders that are made inside for ``storage``, unless something is in them."""
    made = []
    if isinstance(storage, FolderStorage):
        root = Path(storage.uri)
        made = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


def check_disk(storage: str) -> Check:
    """There is room for data and checkpoints, here or in the storage's folder."""
    place = Path.cwd() if "://" in storage else Path(storage).expanduser().absolute()
    free = shutil.disk_usage(existing(place)).free
    found = f"{free / 1e9:.1f} GB free"
    if free < MIN_FREE_BYTES:
        return Check("disk", "warn", found, "free 10 GB, or move `storage` to a larger disk")
    return Check("disk", "ok", found)


def existing(folder: Path) -> Path:
    """``folder``, or the nearest folder above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
