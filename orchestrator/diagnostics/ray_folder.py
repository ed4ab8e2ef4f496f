"""Choose the folder for the sockets and logs of a Ray cluster that is started here."""

import os
from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import EnvironmentProblem
from orchestrator.private_folder import MAX_RAY_FOLDER_LENGTH, private_folder

MIN_FREE_BYTES = 100_000_000
"""Ray's logs take some MB, and it fails in many ways when they have no room."""
FALLBACK = Path("/tmp")
REMEDY = "set RAY_TMPDIR to a writable folder with a short path and 100 MB free, such as /tmp"


def choose_ray_folder(environ: Mapping[str, str], fallback: Path = FALLBACK) -> Path | None:
    """Return the folder for Ray, as `ray.init(_temp_dir=)` takes it.

    Returns:
        None if Ray's own choice is good: `ray` in RAY_TMPDIR or TMPDIR or /tmp. A private folder
        with a short path in ``fallback`` if TMPDIR is not.

    Raises:
        EnvironmentProblem: RAY_TMPDIR, or both TMPDIR and ``fallback``, cannot be used.
    """
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if name not in environ:
            continue
        problem = find_folder_problem(environ[name])
        if not problem:
            return None
        if name == "RAY_TMPDIR":
            raise _unusable(f"RAY_TMPDIR={environ[name]}", problem)
        if not find_folder_problem(str(fallback)):
            return private_folder("ray", fallback) / "ray"  # Ray lets everyone read this one
        raise _unusable(f"TMPDIR={environ[name]}", problem)
    if problem := find_folder_problem(str(fallback)):
        raise _unusable(str(fallback), problem)
    return None


def _unusable(what: str, problem: str) -> EnvironmentProblem:
    return EnvironmentProblem(f"Ray cannot use {what}: {problem}; {REMEDY}")


def find_folder_problem(folder: str) -> str:
    """Say why Ray cannot use `ray` in ``folder``; "" if it can. Creates nothing."""
    path, room = Path(folder), MAX_RAY_FOLDER_LENGTH - len("/ray")
    if not path.is_absolute():
        return "it is not an absolute path"
    if (length := len(os.fsencode(path))) > room:
        return f"its path has {length} bytes, and Ray's sockets leave room for {room}"
    try:
        while not path.exists():
            path = path.parent  # Ray creates what is missing
        found = os.statvfs(path)
    except OSError as error:
        return str(error.strerror)
    free = found.f_bavail * found.f_frsize
    checks = {
        f"{path} is not a folder": not path.is_dir(),
        f"{path} is on a read-only disk": bool(found.f_flag & os.ST_RDONLY),
        f"{path} is not writable": not os.access(path, os.W_OK | os.X_OK),
        f"{path} has {free / 1e6:.1f} MB free": free < MIN_FREE_BYTES,
    }
    return next((problem for problem, is_so in checks.items() if is_so), "")
