"""A Ray cluster of one node, and the environment of its jobs."""

import http.client
import json
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from orchestrator.console import log_info
from orchestrator.local_stack.folder import StackFolder
from orchestrator.local_stack.mlflow_server import JOBS_SECRET, JOBS_USER, MlflowServer
from orchestrator.local_stack.s3_server import REGION, S3Server
from orchestrator.local_stack.services import (
    BIN,
    HOST,
    Service,
    http_problem,
    open_without_proxy,
)

LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
STOP_JOBS_TIMEOUT_S = 40.0
"""A job has 30 s between SIGTERM and SIGKILL to write its checkpoint: see ``configure``."""


class RayHead(Service):
    """Ray head; its process supervises Ray's other processes and ends with them."""

    name = "ray"
    ports: ClassVar[Mapping[str, int]] = {
        "ray": 8265, "ray gcs": 0, "ray client": 0, "ray agent": 0, "ray agent grpc": 0,
        "ray metrics": 0, "ray environments": 0, "ray node": 0, "ray objects": 0,
    }  # fmt: skip
    login = "token in {}"
    credentials = "secrets/ray-token"
    # Ray waits only 15 s for its agent, whose imports take that long on a busy machine.
    transient_error = "timed out during startup"

    @property
    def working_dir(self) -> Path:
        """Working directory of jobs: the project's folder, so that they find jobs/x.yaml."""
        return Path(self.folder.state.project)

    def command(self) -> list[str]:
        """Command line; all ports listen on loopback. See also ``configure``."""
        command = [
            str(BIN / "ray"), "start", "--head", "--block", f"--node-ip-address={HOST}",
            f"--port={self.port('ray gcs')}",
            f"--dashboard-host={HOST}", f"--dashboard-port={self.port()}",
            f"--dashboard-agent-listen-port={self.port('ray agent')}",
            f"--dashboard-agent-grpc-port={self.port('ray agent grpc')}",
            f"--metrics-export-port={self.port('ray metrics')}",
            f"--runtime-env-agent-port={self.port('ray environments')}",
            f"--node-manager-port={self.port('ray node')}",
            f"--object-manager-port={self.port('ray objects')}",
            f"--ray-client-server-port={self.port('ray client')}",
            # Any free ports: the default range may contain the ports above.
            "--min-worker-port=0", "--max-worker-port=0",
            f"--temp-dir={self.folder.ray_folder()}", "--disable-usage-stats",
            "--log-style=record", "--log-color=false",
        ]  # fmt: skip
        if self.folder.state.num_cpus is not None:
            command.append(f"--num-cpus={self.folder.state.num_cpus}")
        return command

    def configure(self) -> dict[str, str]:
        """Environment of Ray's processes, which jobs inherit."""
        self.folder.secret("ray-token")
        exported = job_environment(self.folder)
        return {
            **{name: exported[name] for name in exported if not name.endswith("_ADDRESS")},
            "OMP_WAIT_POLICY": "PASSIVE",
            # Workers exchange gradients over the loopback interface only.
            "GLOO_SOCKET_IFNAME": LOOPBACK,
            "NCCL_SOCKET_IFNAME": LOOPBACK,
            # Time to write a checkpoint after `ray job stop`.
            "RAY_JOB_STOP_WAIT_TIME_S": "30",
            # Set by our command line. A job's script is to find the modules beside it; Ray's client
            # server, which starts in the same folder, is not to import them in place of Python's.
            "PYTHONSAFEPATH": "1" if _shadows_libraries(self.working_dir) else "",
        }

    def health_problem(self) -> str | None:
        """Check that the dashboard accepts the token and the node can run jobs."""
        agent, headers = f"http://{HOST}:{self.port('ray agent')}", self._headers()
        return http_problem(f"{self.address}/api/version", headers) or http_problem(
            f"{agent}/api/local_raylet_healthz", headers
        )

    def stop_jobs(self) -> None:
        """Stop all running jobs, and wait until they have ended.

        Errors are only logged, so that an unhealthy cluster can still be stopped.
        """
        try:
            running = self._running_jobs()
            for job in running:
                log_info(f"stopping job {job}")
                self._request_jobs("POST", f"{job}/stop")
            deadline = time.monotonic() + STOP_JOBS_TIMEOUT_S
            while running and self._running_jobs() and time.monotonic() < deadline:
                time.sleep(0.5)
        except (OSError, ValueError, http.client.HTTPException) as error:
            log_info(f"could not stop the jobs of the cluster: {error}")

    def _running_jobs(self) -> list[str]:
        """Submitted jobs that have not ended."""
        return [
            job["submission_id"]
            for job in self._request_jobs("GET", "")
            if job.get("submission_id") and job["status"] in ("PENDING", "RUNNING")
        ]

    def _request_jobs(self, method: str, path: str) -> Any:
        """Send a request to the Jobs API and return its answer."""
        url = f"{self.address}/api/jobs/{path}"
        request = urllib.request.Request(url, headers=self._headers(), method=method)
        with open_without_proxy(request, timeout_s=10) as answer:
            return json.load(answer)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.folder.secret('ray-token')}"}


def _shadows_libraries(folder: Path) -> bool:
    """Whether a module in ``folder`` has the name of one of Python's, or of PyYAML."""
    found = {path.stem for path in folder.glob("*.py")}
    found |= {path.parent.name for path in folder.glob("*/__init__.py")}
    return not found.isdisjoint({*sys.stdlib_module_names, "yaml"})


def job_environment(folder: StackFolder) -> dict[str, str]:
    """Environment variables, with secrets, for commands and jobs that use the stack."""
    s3, mlflow, ray = S3Server(folder), MlflowServer(folder), RayHead(folder)
    return {
        "RAY_API_SERVER_ADDRESS": ray.address,
        "RAY_ADDRESS": f"{HOST}:{ray.port('ray gcs')}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(ray.secret_file),
        # Keeps Ray from replacing 127.0.0.1 by the machine's address and listening on all
        # interfaces. Ray's name for it is misleading: this is its default on macOS.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "MLFLOW_TRACKING_URI": mlflow.address,
        "MLFLOW_TRACKING_USERNAME": JOBS_USER,
        "MLFLOW_TRACKING_PASSWORD": folder.secret(JOBS_SECRET),
        "AWS_ENDPOINT_URL_S3": s3.address,
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": folder.secret("s3-secret-key"),
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "ORCHESTRATOR_DATA": "s3://data",
        "ORCHESTRATOR_STORAGE": "s3://runs",
    }
