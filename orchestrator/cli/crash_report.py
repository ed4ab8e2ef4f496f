"""Turn an error that no code foresaw into one line, an exit code, and a file with its traceback."""

import errno
import os
import re
import tempfile
import traceback
from pathlib import Path

from orchestrator.errors import EnvironmentProblem
from orchestrator.redaction import mask

EXIT_BUG = 70
"""EX_SOFTWARE of sysexits.h: a bug of this program, not a mistake of its user."""
ADVICE = {
    errno.ENOSPC: "free up space",
    errno.EDQUOT: "free up space or raise the quota",
    errno.EROFS: "choose a folder that is not read-only",
    errno.EACCES: "grant this user access",
    errno.EPERM: "grant this user access",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ELOOP: "remove the circular link",
    errno.EMFILE: "raise the limit on open files: ulimit -n",
    errno.ENFILE: "close programs that hold many files open",
    errno.EIO: "check the disk or the network file system",
    errno.ESTALE: "mount the network file system again",
    errno.ENOTDIR: "remove the file that stands where a folder is needed",
    errno.EISDIR: "give a file instead of a folder",
}
"""Errors of the operating system that a user can act on, with what to do."""

_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def environment_problem(error: BaseException) -> EnvironmentProblem | None:
    """Explain an error of the machine, such as a full disk; None if ``error`` is something else."""
    if isinstance(error, MemoryError):
        return EnvironmentProblem("out of memory; close other programs, or use a larger machine")
    if found := _OS_ERROR.search(str(error)):  # of a library in Rust
        number = int(found[1])
        error = OSError(number, os.strerror(number))
    if not isinstance(error, OSError):
        return None
    if error.errno == errno.ENOENT and not _current_folder_exists():
        return EnvironmentProblem("the current folder was deleted; change to one that exists")
    if "No usable temporary directory" in str(error):
        return EnvironmentProblem(
            "no temporary folder is writable; set TMPDIR to a folder that exists, is writable and "
            "has free space"
        )
    if error.errno not in ADVICE:
        return None
    place = f"{error.filename}: " if error.filename is not None else ""
    return EnvironmentProblem(f"{place}{error.strerror}; {ADVICE[error.errno]}")


def report_bug(error: BaseException) -> str:
    """Write the traceback of ``error`` to a file, credentials masked; return the line to print."""
    summary = mask(" ".join(traceback.format_exception_only(error)[-1].split()))[:300]
    text = mask("".join(traceback.format_exception(error)))
    try:
        number, name = tempfile.mkstemp(prefix="orchestrator-traceback-", suffix=".txt", text=True)
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        where = f"its traceback is in {name}"
    except OSError:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"raised at {Path(last.filename).name}:{last.lineno}"
    return f"this is a bug in orchestrator: {summary}; {where}; please report it"


def _current_folder_exists() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True
