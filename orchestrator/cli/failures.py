"""End a command: whatever went wrong becomes one line on stderr and a documented exit code."""

import contextlib
import errno
import os
import platform
import re
import select
import shlex
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from orchestrator.console import log_info
from orchestrator.errors import EnvironmentProblem, JobFileError, OrchestratorError
from orchestrator.garbage import leave_to_the_system
from orchestrator.redaction import mask_secrets

EXIT_BUG = 70
"""EX_SOFTWARE of sysexits.h: a bug of this program, not a mistake of its user."""
USAGE = 2
DATA = 4
TRY_AGAIN = 75
INTERRUPTED = 130
OUTPUT_CLOSED = 141
"""The reader of stdout has gone, as with `| head`: 128 + SIGPIPE."""
MAX_SHOWN = 300
"""Characters of an unforeseen error that are printed."""
FOLDER_DELETED = "the current folder was deleted; change to one that exists"

ADVICE = {
    errno.ENOSPC: "free up space",
    errno.EDQUOT: "free up space or raise the quota",
    errno.EROFS: "choose a folder that is not read-only",
    errno.EACCES: "grant this user access",
    errno.EPERM: "grant this user access",
    errno.EEXIST: "remove it or choose another path",
    errno.ENOTDIR: "remove the file that stands where a folder is needed",
    errno.EISDIR: "give a file instead of a folder",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ELOOP: "remove the circular link",
    errno.EMFILE: "raise the limit on open files: ulimit -n",
    errno.ENFILE: "close programs that hold many files open",
    errno.ENOMEM: "close other programs, or use a larger machine",
    errno.EAGAIN: "raise the limit on processes (ulimit -u), or end some",
    errno.EIO: "check the disk or the network file system",
    errno.ESTALE: "mount the network file system again",
}
"""Errors of the operating system that a user can act on, with what to do."""
RECOGNIZED: tuple[tuple[type[Exception], str, str, int], ...] = (
    # class, words in its message, line to print, exit code
    (
        MemoryError,
        "",
        "out of memory; close other programs, or use a larger machine",
        EnvironmentProblem.exit_code,
    ),
    (
        FileNotFoundError,
        "No usable temporary directory",
        "no temporary folder is writable; set TMPDIR to a folder that exists, is writable and "
        "has free space",
        EnvironmentProblem.exit_code,
    ),
    (
        RuntimeError,
        "home directory",  # raised by pathlib
        "a path begins with ~NAME, and there is no such user; write it in full",
        USAGE,
    ),
    (
        RecursionError,
        "JSON",
        "a JSON file is nested too deeply; it is corrupt, or not a file of orchestrator",
        DATA,
    ),
)
"""Errors of Python and its libraries that are not bugs."""

_OS_ERROR = re.compile(r"\(os error (\d+)\)")


class Commands(TyperGroup):
    """Commands whose messages about wrong arguments repeat no credentials."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Parse the arguments; see ``TyperGroup``."""
        with _masked_usage_errors():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run the command of the arguments; see ``TyperGroup``."""
        with _masked_usage_errors():
            return super().invoke(ctx)


@contextlib.contextmanager
def _masked_usage_errors() -> Iterator[None]:
    try:
        yield
    except TyperException as error:
        error.message = mask_secrets(error.message, os.environ)
        raise


def run_command(command: Callable[[], object]) -> None:
    """Run ``command`` and exit; what it raises becomes a line on stderr and an exit code."""
    _open_streams()
    code: int | str | None = 0
    try:
        if not _current_folder_exists():  # MKL would end the process, blaming its own files
            raise EnvironmentProblem(FOLDER_DELETED)
        command()
    except SystemExit as end:
        code = _exit_code(end)
    except BaseException as error:
        code = report(error)
    finally:
        code = _flush(code)
        leave_to_the_system()
    sys.exit(code)


def report(error: BaseException) -> int:
    """Print what ended a command, on one line unless it is a list of mistakes; return the code."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError) and _is_stdout_closed():
        return OUTPUT_CLOSED
    if isinstance(error, OrchestratorError):
        mistakes = str(error).count("\n") + 1 if isinstance(error, JobFileError) else 1
        text = mask_secrets(str(error), os.environ)
        log_info(f"error: {text}" if mistakes == 1 else f"error: {mistakes} mistakes\n{text}")
        return error.exit_code
    line, code = _explain(error)
    log_info(f"error: {line}")
    return code


def _exit_code(end: SystemExit) -> int | str | None:
    """Exit code of a command that exited by itself; typer's and rich's 1 is not documented."""
    cause = end.__context__
    if isinstance(cause, typer.Abort):  # the user answered no
        return INTERRUPTED
    if isinstance(cause, BrokenPipeError):
        by_rich = traceback.extract_tb(end.__traceback__)[-1].name == "on_broken_pipe"
        return OUTPUT_CLOSED if by_rich else report(cause)
    return end.code


def _explain(error: BaseException) -> tuple[str, int]:
    """Line and exit code of an error that no command expects."""
    for kind, words, line, code in RECOGNIZED:
        if isinstance(error, kind) and words in str(error):
            return line, code
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return f"the network or a server failed: {_summary(error)}; try again", TRY_AGAIN
    if found := _OS_ERROR.search(str(error)):  # of a library in Rust
        error = OSError(int(found[1]), os.strerror(int(found[1]))).with_traceback(
            error.__traceback__
        )
    if isinstance(error, OSError):
        if error.errno == errno.ENOENT and not _current_folder_exists():
            return FOLDER_DELETED, EnvironmentProblem.exit_code
        if error.errno in ADVICE:
            place = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            line = f"{place}{error.strerror}; {ADVICE[error.errno]}"
            return mask_secrets(line, os.environ), EnvironmentProblem.exit_code
    return f"this is a bug in orchestrator: {_summary(error)}; {_save(error)}", EXIT_BUG


def _summary(error: BaseException) -> str:
    """Class and message of an error on one line, without secrets."""
    lines = traceback.format_exception_only(error)
    return mask_secrets(" ".join(lines[-1].split()), os.environ)[:MAX_SHOWN]


def _save(error: BaseException) -> str:
    """Write the traceback to a file, without secrets; say where it is."""
    system = f"Python {platform.python_version()}, {platform.platform()}"
    lines = "".join(traceback.format_exception(error))
    text = mask_secrets(f"{shlex.join(sys.argv)}\n{system}\n\n{lines}", os.environ)
    try:
        number, name = tempfile.mkstemp(prefix="orchestrator-traceback-", suffix=".txt", text=True)
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"raised at {Path(last.filename).name}:{last.lineno}; please report it"
    return f"its traceback is in {name}; please report it"


def _current_folder_exists() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _open_streams() -> None:
    """Make stdout and stderr accept any text, on an ASCII terminal and where they are closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller, as with >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the process ends
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flush(code: int | str | None) -> int | str | None:
    """Write buffered output; return the exit code, or the one of the failure to write it."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):  # else Python flushes again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or report(error)
    return code


def _is_stdout_closed() -> bool:
    """Return whether stdout is a pipe or a socket whose reader has gone."""
    try:
        poll = select.poll()
        poll.register(sys.__stdout__.fileno(), 0)  # type: ignore[union-attr]
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):
        return False
