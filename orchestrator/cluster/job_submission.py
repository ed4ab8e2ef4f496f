"""Submit a job to a running cluster through Ray's Jobs API and follow it to its end.

`ray job submit` exits with 0 when the job was stopped or when its log stream was lost; this returns
the driver's own exit code.
"""

import asyncio
import contextlib
import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from orchestrator.cluster.job_refusals import explained_refusals, require_folder
from orchestrator.cluster.ray_compat import BoundedJobClient
from orchestrator.console import log_info
from orchestrator.errors import TryAgain, UsageError
from orchestrator.redaction import mask

RECONNECT_S = 2.0
STREAM_TIMEOUT_S = 120.0
"""A stream without output for this long may be lost without an error: it is opened again."""
FOLLOW_TIMEOUT_S = 300.0
"""Time limit for a cluster that does not answer."""
JOB_FOLDER = "job-folder"
"""Uploaded working directory within the upload; the hyphen keeps it from being a package."""


def submit(
    job_file: str,
    options: Sequence[str] = (),
    *,
    address: str | None = None,
    working_dir: str | None = None,
    wait: bool = True,
) -> int:
    """Submit a job file and, if asked to ``wait``, follow it; return this process's exit code.

    Args:
        job_file: path as the cluster sees it: from the folder in which Ray was started, or from
            ``working_dir``.
        options: of `orchestrator run`, such as --no-resume.
        address: http://host:8265; by default RAY_ADDRESS, or this machine.
        working_dir: folder to upload, without what its .rayignore names.

    Raises:
        UsageError: ``working_dir`` is not a folder, or is too large to upload; or an option
            contains a password.
        EnvironmentProblem: no cluster answers at the address, or it refuses the job.
        TryAgain: the cluster has stopped answering while the job ran.
    """
    _refuse_passwords((job_file, *options))
    folder = None if working_dir is None else require_folder(working_dir)
    command = shlex.join(["python", "-m", "orchestrator", "run", job_file, *options])
    with explained_refusals(address, folder):
        client = _connect(address)
        if folder is None:
            job_id = client.submit_job(entrypoint=command)
        else:
            with _upload_tree(folder) as tree:
                job_id = client.submit_job(
                    entrypoint=f"cd {JOB_FOLDER} && {command}",
                    runtime_env={"working_dir": str(tree), "excludes": ["**/__pycache__/"]},
                )
    target = f" --address {shlex.quote(address)}" if address else ""
    log_info(f"submitted {job_id}; next:")
    log_info(f"  ray job logs {job_id} --follow{target}")
    log_info(f"  ray job stop {job_id}{target}")
    return follow(client, job_id) if wait else 0


def _refuse_passwords(arguments: Sequence[str]) -> None:
    """Raise UsageError if the command line of the driver would contain a password."""
    for argument in arguments:
        if (shown := mask(argument)) != argument:
            raise UsageError(
                f"{shown}: contains a password in plain text, and the cluster shows the command "
                "lines of its jobs; write ${env:NAME}, and set the variable where the cluster is "
                "started"
            )


@contextlib.contextmanager
def _upload_tree(folder: Path) -> Iterator[Path]:
    """Make a folder to upload that holds ``folder`` as a subfolder.

    Ray puts the uploaded folder first on the PYTHONPATH of its own processes too, which a user's
    ``random.py`` in it would break. A checkout of this package is linked at the top, to be found.
    """
    with tempfile.TemporaryDirectory(prefix="orchestrator-upload-") as tree:
        Path(tree, JOB_FOLDER).symlink_to(folder)
        if (folder / "orchestrator/__main__.py").is_file():
            Path(tree, "orchestrator").symlink_to(folder / "orchestrator")
        yield Path(tree)


def follow(client: JobSubmissionClient, job_id: str) -> int:
    """Print a job's log to its end, through lost connections; return the driver's exit code.

    It is 130 for a stopped job, and 5 for a failed one whose driver has no exit code.
    """
    logging.getLogger("ray.dashboard").setLevel(logging.WARNING)
    log = JobLog(client, job_id)
    answered = time.monotonic()
    while True:
        try:
            details = client.get_job_info(job_id)
            asyncio.run(log.print_rest())
            answered = time.monotonic()
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            # A stream that was open for hours was lost just now, not when it was opened.
            if time.monotonic() - max(answered, log.last_output) > FOLLOW_TIMEOUT_S:
                raise TryAgain(
                    f"no answer from the cluster for {FOLLOW_TIMEOUT_S:.0f} s: {error}; the job "
                    f"may still be running: ray job status {job_id}"
                ) from error
        else:
            if details.status.is_terminal():
                return _exit_code(details)
        time.sleep(RECONNECT_S)


class JobLog:
    """Log of a job, printed without repetition through several streams."""

    def __init__(self, client: JobSubmissionClient, job_id: str) -> None:
        self.client, self.job_id = client, job_id
        self.printed = 0
        self.last_output = -float("inf")
        """Time of the last new output."""

    async def print_rest(self) -> None:
        """Print new output until the stream ends; each stream starts with the first line."""
        seen, stream = 0, self.client.tail_job_logs(self.job_id)
        while True:
            try:
                text = await asyncio.wait_for(anext(stream), STREAM_TIMEOUT_S)
            except (StopAsyncIteration, TimeoutError):
                return
            new = text[max(0, self.printed - seen) :]
            if new:
                self.last_output = time.monotonic()
            seen += len(text)
            self.printed = max(self.printed, seen)
            sys.stdout.write(new)
            sys.stdout.flush()


def _exit_code(details: JobDetails) -> int:
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        log_info(f"job {details.submission_id} was stopped")
        return 130
    message = (details.message or "").partition(", last")[0]
    log_info(f"job {details.submission_id} failed: {message}")
    return details.driver_exit_code or 5


def _connect(address: str | None) -> BoundedJobClient:
    if address:
        # Ray prefers its environment variables to its argument.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
    return BoundedJobClient(address)
