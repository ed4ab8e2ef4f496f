"""A job on a running cluster through Ray's Jobs API: submit, follow to the end, the true exit code.

`ray job submit` ends with 0 when the job was stopped or when its log stream was lost; this ends
with the driver's own exit code.
"""

import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence

import aiohttp
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from orchestrator.console import say
from orchestrator.errors import EnvironmentProblem, TryAgain

RECONNECT_S = 2.0
SILENCE_S = 120.0
"""A stream silent for so long may be lost without a word: the status is asked for, and it again."""
PATIENCE_S = 300.0
"""How long an unreachable cluster is waited for before following is given up."""


def submit(
    job_file: str,
    options: Sequence[str] = (),
    *,
    address: str | None = None,
    working_dir: str | None = None,
    wait: bool = True,
) -> int:
    """Submit a job file and, if asked to ``wait``, follow it; the exit code for this process.

    Args:
        job_file: as the cluster sees it: from the folder in which Ray was started, or from
            ``working_dir``.
        options: of `orchestrator run`, such as --no-resume.
        address: http://host:8265; by default RAY_ADDRESS, or this machine.
        working_dir: folder to upload, less what its .rayignore names.

    Raises:
        EnvironmentProblem: no cluster answers at the address.
        TryAgain: the cluster has stopped answering while the job ran.
    """
    client = _client(address)
    command = ["python", "-m", "orchestrator", "run", job_file, *options]
    job_id = client.submit_job(
        entrypoint=shlex.join(command),
        runtime_env={"working_dir": working_dir} if working_dir else None,
    )
    target = f" --address {address}" if address else ""
    say(f"submitted {job_id}; next:")
    say(f"  ray job logs {job_id} --follow{target}")
    say(f"  ray job stop {job_id}{target}")
    return follow(client, job_id) if wait else 0


def follow(client: JobSubmissionClient, job_id: str) -> int:
    """Print a job's log to its end, through lost connections; the driver's exit code.

    A stopped job gives 130, a failed one without an exit code 5.
    """
    logging.getLogger("ray.dashboard").setLevel(logging.WARNING)
    log = _Log(client, job_id)
    answered = time.monotonic()
    while True:
        try:
            details = client.get_job_info(job_id)
            asyncio.run(log.print_rest())
            answered = time.monotonic()
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            # A log that was followed for hours is lost now, not since it began.
            if time.monotonic() - max(answered, log.heard) > PATIENCE_S:
                raise TryAgain(
                    f"no answer from the cluster for {PATIENCE_S:.0f} s: {error}; the job may "
                    f"still be running: ray job status {job_id}"
                ) from error
        else:
            if details.status.is_terminal():
                return _exit_code(details)
        time.sleep(RECONNECT_S)


class _Log:
    """A job's log, of which each character is printed once."""

    def __init__(self, client: JobSubmissionClient, job_id: str) -> None:
        self.client, self.job_id = client, job_id
        self.printed = 0
        self.heard = -float("inf")
        """When a stream has last told something new."""

    async def print_rest(self) -> None:
        """Print what is new until the stream ends; a new stream begins with the first line."""
        seen, stream = 0, self.client.tail_job_logs(self.job_id)
        while True:
            try:
                text = await asyncio.wait_for(anext(stream), SILENCE_S)
            except (StopAsyncIteration, TimeoutError):
                return
            new = text[max(0, self.printed - seen) :]
            if new:
                self.heard = time.monotonic()
            seen += len(text)
            self.printed = max(self.printed, seen)
            sys.stdout.write(new)
            sys.stdout.flush()


def _exit_code(details: JobDetails) -> int:
    if details.status == JobStatus.SUCCEEDED:
        return 0
    if details.status == JobStatus.STOPPED:
        say(f"job {details.submission_id} was stopped")
        return 130
    say(f"job {details.submission_id} failed: {(details.message or '').partition(', last')[0]}")
    return details.driver_exit_code or 5


def _client(address: str | None) -> JobSubmissionClient:
    if address:
        # Ray prefers its variables to an address that it is given.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EnvironmentProblem(
            f"no Ray cluster answers at {address or 'RAY_ADDRESS or http://127.0.0.1:8265'}: "
            f"{error}; start one with `ray start --head`, or train here: orchestrator run JOB"
        ) from error
