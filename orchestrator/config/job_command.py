"""Whether a job file can be run as a command, as `ray job submit` does."""

import os
import re
import shlex
from pathlib import Path

FIRST_LINE = "#!/usr/bin/env -S orchestrator run"
_RUNS_JOB = re.compile(
    rb"#!\s*(\S*/env\s+(-S|--split-string)\s+(\S.*)?(?<=[\s/])orchestrator\s+run\s*"
    rb"|\S*/orchestrator[ \t]+run[ \t]*\n?)"
)
"""With env, a line may end as on Windows; the kernel alone would pass on the carriage return."""
_MARK = b"\xef\xbb\xbf"


def command_note(path: Path) -> str | None:
    """Say why the job file at ``path`` cannot be run as a command, and how to; None if it can."""
    if not path.is_file():
        return None  # a pipe, whose content has been read
    try:
        with path.open("rb") as file:
            first = file.readline(1000)
    except OSError:
        return None
    problems, repairs = [], []
    if first.startswith(_MARK):
        problems.append("a byte-order mark before the first line")
        repairs.append("save it as UTF-8 without a byte-order mark")
    if not _RUNS_JOB.fullmatch(first.removeprefix(_MARK)):
        problems.append(f"no first line `{FIRST_LINE}`")
        repairs.append("add that line")
    name = shlex.quote(str(path))
    if not os.access(path, os.X_OK):
        problems.append("not executable")
        repairs.append(f"run `chmod +x {name}`")
    if not problems:
        return None
    command = name if "/" in str(path) else shlex.quote(f"./{path}")
    return (
        f"{path} cannot be run as a command: {', '.join(problems)}. For `ray job submit -- "
        f"{command}` {' and '.join(repairs)}, or use `orchestrator submit {name}`"
    )
