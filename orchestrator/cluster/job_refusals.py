"""Explain why Ray's Jobs API did not accept a job: what refused it, and what to do."""

import contextlib
import heapq
import os
import re
from collections.abc import Iterator
from pathlib import Path

import requests
from ray.exceptions import AuthenticationError, RayError

from orchestrator.addresses import split_address
from orchestrator.errors import EnvironmentProblem, OrchestratorError, TryAgain, UsageError
from orchestrator.proxies import describe_proxy
from orchestrator.redaction import mask

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
NUM_LISTED = 5
"""Entries of a folder to list that is too large."""
_STATUS = re.compile(r"status code (\d+): ?(.*)", re.DOTALL)
_TOO_LARGE = ("Entity Too Large", "exceeds the maximum size", "status code 413")
_TRANSIENT = (429, 502, 503, 504)


def require_folder(working_dir: str) -> Path:
    """Return ``working_dir`` as an absolute path. Raises UsageError if it is not a folder."""
    folder = Path(working_dir).absolute()
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist"
        raise UsageError(f"--working-dir {working_dir} {state}; give the folder of the job file")
    return folder


@contextlib.contextmanager
def explained_refusals(address: str | None, folder: Path | None) -> Iterator[None]:
    """Translate what Ray's client raises in the block.

    Args:
        address: of the cluster, as the user gave it.
        folder: the folder that the block uploads, if any.

    Raises:
        UsageError: the address is not valid, or the folder cannot be uploaded.
        EnvironmentProblem: the cluster is out of reach or refuses the job.
        TryAgain: the cluster is busy or restarting.
    """
    given = address or _default_address()
    try:
        split_address(given, "ray")
    except ValueError as error:
        raise UsageError(
            f"{mask(given)} is not a valid address of a cluster: {error}; use http://HOST:8265"
        ) from error
    try:
        yield
    except (OSError, RuntimeError, TypeError, ValueError, RayError) as error:
        raise _explain(error, mask(given), folder) from error


def _explain(error: Exception, address: str, folder: Path | None) -> OrchestratorError:
    text = " ".join(str(error).split())
    status = _STATUS.search(text)
    if folder is not None and any(sign in text for sign in _TOO_LARGE):
        return _too_large(folder)
    if isinstance(error, AuthenticationError):
        return EnvironmentProblem(
            f"{address} requires another token; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to "
            "that of the cluster"
        )
    if isinstance(error, requests.Timeout):
        return TryAgain(f"{address} did not answer in time; try again, or look at the head's logs")
    if status is not None:
        number, words = int(status[1]), _last_words(status[2])
        kind = TryAgain if number in _TRANSIENT else EnvironmentProblem
        return kind(f"{address} refused the job with status {number}: {words}")
    if unreadable := _unreadable_file(error):
        return UsageError(f"--working-dir: {unreadable}")
    if isinstance(error, requests.exceptions.JSONDecodeError):
        text = "its answer is not that of Ray's Jobs API"
    remedy = describe_proxy(address) or "start one with `ray start --head`"
    return EnvironmentProblem(
        f"no Ray cluster answers at {address}: {text}; {remedy}, or train here: orchestrator run "
        "JOB"
    )


def _unreadable_file(error: Exception) -> str:
    """Describe a file that cannot be uploaded; "" if ``error`` is something else."""
    if any(isinstance(each, UnicodeError) for each in (error, error.__cause__, error.__context__)):
        return "the name of a file is not UTF-8; rename it"
    if not isinstance(error, OSError) or isinstance(error, requests.RequestException):
        return ""
    if error.filename is None:
        return ""
    return f"{error.filename} cannot be read: {error.strerror}; repair it, or list it in .rayignore"


def _too_large(folder: Path) -> UsageError:
    entries = [(_size_of(entry), entry) for entry in folder.iterdir()]
    largest = heapq.nlargest(NUM_LISTED, entries)
    total = sum(size for size, _ in entries)
    listed = ", ".join(
        f"{entry.name}{'/' if entry.is_dir() else ''} {_megabytes(size)}" for size, entry in largest
    )
    return UsageError(
        f"--working-dir: {folder} is too large to upload, {_megabytes(total)}: {listed}; list what "
        f"the job does not need in {folder / '.rayignore'}, or keep data in a storage"
    )


def _size_of(path: Path) -> int:
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    found = (Path(parent, name) for parent, _, names in os.walk(path) for name in names)
    return sum(each.lstat().st_size for each in found)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _last_words(text: str) -> str:
    """Return the error line of a traceback, or else the beginning of ``text``."""
    found = re.findall(r"((?:\w+\.)*\w+(?:Error|Exception)\b.*)", text)
    return mask(found[-1] if found else text).strip(" .")[:300] or "it gave no reason"


def _default_address() -> str:
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    return next(filter(None, map(os.environ.get, names)), DEFAULT_ADDRESS)
