"""Submit a job to a running cluster through Ray's Jobs API and follow it to its end.

`ray job submit` exits with 0 when the job was stopped or when its log stream was lost; this returns
the driver's own exit code.
"""

import asyncio
import contextlib
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence

import aiohttp
import requests
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from orchestrator.cluster.job_upload import EXCLUDES, JOB_FOLDER, WorkingFolder
from orchestrator.cluster.ray_compat import BoundedJobClient
from orchestrator.cluster.ray_refusals import MAX_SHOWN, describe_refusal, find_proxy
from orchestrator.console import log_info
from orchestrator.errors import EnvironmentProblem, TryAgain
from orchestrator.redaction import mask, mask_secrets

RECONNECT_S = 2.0
STREAM_TIMEOUT_S = 120.0
"""A stream without output for this long may be lost without an error: it is opened again."""
FOLLOW_TIMEOUT_S = 300.0
"""Time limit for a cluster that does not answer."""


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
        UsageError: ``working_dir`` cannot be uploaded.
        EnvironmentProblem: no cluster answers at the address, or it refuses the job.
        TryAgain: the cluster does not answer in time, or has stopped answering while the job ran.
    """
    folder = None if working_dir is None else WorkingFolder(working_dir, job_file)
    client = _connect(address)
    command = shlex.join(["python", "-m", "orchestrator", "run", job_file, *options])
    with _explaining(client.get_address(), folder):
        if folder is None:
            job_id = client.submit_job(entrypoint=command)
        else:
            with folder.upload_tree() as tree:
                job_id = client.submit_job(
                    entrypoint=f"cd {JOB_FOLDER} && {command}",
                    runtime_env={"working_dir": str(tree), "excludes": EXCLUDES},
                )
    target = f" --address {address}" if address else ""
    log_info(f"submitted {job_id}; next:")
    log_info(f"  ray job logs {job_id} --follow{target}")
    log_info(f"  ray job stop {job_id}{target}")
    return follow(client, job_id) if wait else 0


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
        except (RuntimeError, OSError, ValueError, TypeError, aiohttp.ClientError) as error:
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


def _connect(address: str | None) -> JobSubmissionClient:
    if address:
        # Ray prefers its environment variables to its argument.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
    with _explaining(address or "RAY_ADDRESS or http://127.0.0.1:8265", None):
        return BoundedJobClient(address)


@contextlib.contextmanager
def _explaining(address: str, folder: WorkingFolder | None) -> Iterator[None]:
    """Turn what the head, its Jobs API or the network answers into one line with what to do."""
    try:
        yield
    except requests.Timeout as error:
        raise TryAgain(
            f"the cluster at {mask(address)} gave no answer in time: try again"
        ) from error
    except (ConnectionError, requests.ConnectionError) as error:
        proxy = find_proxy(address, os.environ)
        hint = f"; requests go through {proxy}: set NO_PROXY to the host" if proxy else ""
        raise EnvironmentProblem(
            f"no Ray cluster answers at {mask(address)}: {describe_refusal(error)[0]}{hint}; start "
            "one with `ray start --head`, or train here: orchestrator run JOB"
        ) from error
    except Exception as error:  # Ray's own, a wrong token, HTML in place of JSON
        if folder is not None and re.search(r"too large|exceeds|status code 413", str(error), re.I):
            raise folder.too_large("the head refuses that") from error
        raise EnvironmentProblem(
            f"the cluster at {mask(address)} refuses the job: {_words_of_head(error)}"
        ) from error


def _words_of_head(error: Exception) -> str:
    """Return what the head says: the last line of a traceback, and what to do."""
    status, _, body = str(error).partition(": ")
    if not status.startswith("Request failed with status code"):
        line, advice = describe_refusal(error)
        if isinstance(error, ValueError | KeyError | TypeError | AttributeError):
            line = f"its answer is not that of a Jobs API ({type(error).__name__})"
            advice = "check --address: the port of Ray's dashboard, 8265 by default"
        return f"{line}; {advice or 'check --address and the logs of the head'}"
    code = status.rpartition(" ")[2]
    if re.match(r"\s*<", body):
        return f"status {code} with a web page; check --address: is another server there?"
    lines = [line.strip() for line in body.strip().rstrip(".").splitlines() if line.strip()]
    said = mask_secrets(lines[-1] if lines else "no reason", os.environ)[:MAX_SHOWN]
    return f"status {code}: {said}; check the logs of the head"
