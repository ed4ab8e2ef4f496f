"""Stop the jobs of a cluster before the cluster is stopped."""

import json
import time
import urllib.request
from typing import Any

from orchestrator.console import log_info
from orchestrator.local_stack.services import open_without_proxy

STOP_TIMEOUT_S = 40.0
"""A job has 30 s between SIGTERM and SIGKILL to write its checkpoint; see ray_head.py."""


def stop_jobs(address: str, token: str) -> None:
    """Stop all running jobs of the cluster at ``address``, and wait until they have ended.

    Errors are only logged, so that an unhealthy cluster can still be stopped.
    """
    api = _JobsApi(address, token)
    try:
        running = api.running()
        for job in running:
            log_info(f"stopping job {job}")
            api.request("POST", f"{job}/stop")
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while running and api.running() and time.monotonic() < deadline:
            time.sleep(0.5)
    except (OSError, ValueError) as error:
        log_info(f"could not stop the jobs of the cluster: {error}")


class _JobsApi:
    def __init__(self, address: str, token: str) -> None:
        self._url = f"{address}/api/jobs/"
        self._token = token

    def running(self) -> list[str]:
        """Submitted jobs that have not ended."""
        return [
            job["submission_id"]
            for job in self.request("GET", "")
            if job.get("submission_id") and job["status"] in ("PENDING", "RUNNING")
        ]

    def request(self, method: str, path: str) -> Any:
        """Send a request to the Jobs API and return its answer."""
        headers = {"Authorization": f"Bearer {self._token}"}
        request = urllib.request.Request(self._url + path, headers=headers, method=method)
        with open_without_proxy(request, timeout_s=10) as answer:
            return json.load(answer)
