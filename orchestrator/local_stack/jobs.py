"""The jobs of a cluster that is about to be stopped."""

import json
import time
import urllib.error
import urllib.request
from typing import Any

from orchestrator.console import log_info

LONGEST_STOP_S = 40.0
"""A job gets 30 s between SIGTERM and SIGKILL to write its checkpoint, see ray_head.py."""


def stop_jobs(address: str, token: str) -> None:
    """Stop all jobs that run on the cluster at ``address``, and wait until they have ended.

    Does its best: a cluster that does not answer is stopped all the same.
    """
    jobs = _Jobs(address, token)
    try:
        running = jobs.running()
        for job in running:
            log_info(f"stopping job {job}")
            jobs.ask("POST", f"{job}/stop")
        deadline = time.monotonic() + LONGEST_STOP_S
        while running and jobs.running() and time.monotonic() < deadline:
            time.sleep(0.5)
    except (OSError, ValueError) as error:
        log_info(f"the cluster does not tell of its jobs: {error}")


class _Jobs:
    def __init__(self, address: str, token: str) -> None:
        self._url = f"{address}/api/jobs/"
        self._token = token

    def running(self) -> list[str]:
        """The jobs that were submitted and have not ended."""
        return [
            job["submission_id"]
            for job in self.ask("GET", "")
            if job.get("submission_id") and job["status"] in ("PENDING", "RUNNING")
        ]

    def ask(self, method: str, path: str) -> Any:
        """What the Jobs API answers."""
        headers = {"Authorization": f"Bearer {self._token}"}
        request = urllib.request.Request(self._url + path, headers=headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as answer:
            return json.load(answer)
