"""End a command: one line for whatever ended it, and a documented exit code; no traceback."""

import contextlib
import errno
import os
import platform
import select
import shlex
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable

import typer

from orchestrator.console import log_info
from orchestrator.errors import JobFileError, OrchestratorError
from orchestrator.redaction import mask_secrets

BUG = 70
"""Exit code of an error that nobody foresaw: EX_SOFTWARE."""
USAGE = 2
ENVIRONMENT = 3
DATA = 4
TRY_AGAIN = 75
STOPPED = 130
OUTPUT_CLOSED = 141
"""Exit code when the reader of stdout has gone, as `| head` does: 128 + SIGPIPE."""
DEBUG_VARIABLE = "ORCHESTRATOR_DEBUG"
"""Environment variable; if it is set, the traceback of a bug is printed too."""
MAX_SHOWN = 300
"""Characters of an unforeseen error that are shown."""

ADVICE = {
    # errno: what to do. The state of the machine, whatever we were doing.
    errno.ENOSPC: "free up space on that disk, or use another one",
    errno.EDQUOT: "your quota is used up: delete files, or use another disk",
    errno.EROFS: "write to another folder",
    errno.EACCES: "change its permissions, or use another one",
    errno.EPERM: "change its permissions, or use another one",
    errno.EEXIST: "it is in the way: use another path",
    errno.ENOTDIR: "a file is where a folder is needed: use another path",
    errno.EISDIR: "a folder is where a file is needed: use another path",
    errno.EMFILE: "raise the limit of open files: ulimit -n 8192",
    errno.ENFILE: "this machine has too many open files: end other processes",
    errno.ENOMEM: "end other processes, or use a machine with more memory",
    errno.EIO: "check that disk",
    errno.ESTALE: "the file system was remounted: change to the folder again",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ELOOP: "remove the symbolic links that lead to each other",
    errno.EAGAIN: "raise the limit of processes (ulimit -u), or end other ones",
}
KNOWN: tuple[tuple[type[Exception], str, str, int], ...] = (
    # class of an error, words in it, its line, its exit code
    (
        MemoryError,
        "",
        "out of memory; use a machine with more memory, or less data at a time",
        ENVIRONMENT,
    ),
    (
        RuntimeError,
        "home directory",  # pathlib's
        "a path begins with ~NAME, and there is no such user; write it in full",
        USAGE,
    ),
    (
        RecursionError,
        "JSON",
        "a JSON file is nested too deeply: it is none of ours, or corrupt",
        DATA,
    ),
)


def run_command(command: Callable[[], object]) -> None:
    """Run a command and exit; what it raises becomes a line on stderr and an exit code."""
    _open_streams()
    code: int | str | None = 0
    try:
        command()
    except SystemExit as end:
        code = _code_of(end)
    except BaseException as error:
        code = explain(error)
    finally:
        code = _flush(code)
    sys.exit(code)


def _code_of(end: SystemExit) -> int | str | None:
    """Exit code of a command that has exited itself; typer's and rich's 1 is not one of ours."""
    cause = end.__context__
    if isinstance(cause, typer.Abort):  # the user answered no
        return STOPPED
    if isinstance(cause, BrokenPipeError):
        by_rich = traceback.extract_tb(end.__traceback__)[-1].name == "on_broken_pipe"
        return OUTPUT_CLOSED if by_rich else explain(cause)
    return end.code


def explain(error: BaseException) -> int:
    """Print what ended a command, on one line if it is not a list of mistakes.

    Returns:
        The exit code.
    """
    if isinstance(error, KeyboardInterrupt):
        return STOPPED
    if isinstance(error, BrokenPipeError) and _is_output_closed():
        return OUTPUT_CLOSED
    if isinstance(error, OrchestratorError):
        mistakes = str(error).count("\n") + 1 if isinstance(error, JobFileError) else 1
        log_info(f"error: {error}" if mistakes == 1 else f"error: {mistakes} mistakes\n{error}")
        return error.exit_code
    line, code = _unforeseen(error)
    log_info(f"error: {line}")
    return code


def _unforeseen(error: BaseException) -> tuple[str, int]:
    """Line and exit code of an error that no command expects."""
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return f"the network or a server failed: {_describe(error)}; try again", TRY_AGAIN
    if isinstance(error, OSError) and error.errno in ADVICE:
        place = error.filename or "the output"
        place = os.fsdecode(place) if isinstance(place, str | bytes) else str(place)
        return f"{place}: {error.strerror}; {ADVICE[error.errno]}", ENVIRONMENT
    for kind, words, line, code in KNOWN:
        if isinstance(error, kind) and words in str(error):
            return line, code
    if isinstance(error, FileNotFoundError) and _is_current_folder_gone():
        return "the current folder was deleted; change to another one", ENVIRONMENT
    return f"a bug in orchestrator: {_describe(error)}; {_report(error)}", BUG


def _is_current_folder_gone() -> bool:
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def _describe(error: BaseException) -> str:
    """Name and first line of an error, without secrets."""
    text = mask_secrets(str(error), os.environ).strip().partition("\n")[0][:MAX_SHOWN]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _report(error: BaseException) -> str:
    """Write the traceback to a file, without secrets; return where it is and what to do."""
    lines = "".join(traceback.format_exception(error))
    system = f"Python {platform.python_version()}, {platform.platform()}"
    text = mask_secrets(f"{shlex.join(sys.argv)}\n{system}\n\n{lines}", os.environ)
    if os.environ.get(DEBUG_VARIABLE):
        log_info(text)
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="orchestrator-bug-", suffix=".txt", delete=False,
            encoding="utf-8", errors="backslashreplace",
        ) as file:  # fmt: skip
            file.write(text)
    except OSError:
        return f"no file could be written; set {DEBUG_VARIABLE}=1 to print the traceback"
    return f"the traceback is in {file.name}; please report it"


def _open_streams() -> None:
    """Make stdout and stderr accept any text: names that are not UTF-8, streams that are closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller, as with >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flush(code: int | str | None) -> int | str | None:
    """Write what is left of the output; return the exit code, another one if that fails."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):  # Python would flush again, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or explain(error)
    return code


def _is_output_closed() -> bool:
    """Whether stdout is a pipe or a socket that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(sys.__stdout__.fileno(), 0)  # type: ignore[union-attr]
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):
        return False
