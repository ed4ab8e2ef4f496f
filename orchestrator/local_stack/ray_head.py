"""A Ray cluster of one node: its dashboard, its Jobs API, and workers that have the environment."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from orchestrator.local_stack.folder import StackFolder
from orchestrator.local_stack.mlflow_server import USER, MlflowServer
from orchestrator.local_stack.s3_server import REGION, S3Server
from orchestrator.local_stack.services import BIN, HOST, Service, ask

LOOPBACK = "lo" if sys.platform == "linux" else "lo0"


class RayHead(Service):
    """The head: its process watches over the others of Ray and ends with them."""

    name = "ray"
    ports: ClassVar[Mapping[str, int]] = {
        "ray": 8265, "ray gcs": 0, "ray client": 0, "ray agent": 0, "ray agent grpc": 0,
        "ray metrics": 0, "ray environments": 0, "ray node": 0, "ray objects": 0,
    }  # fmt: skip
    login = "token in {}"
    # Ray waits 15 s, and no longer, for its agent, which a busy machine takes that long to import.
    passing = "timed out during startup"

    @property
    def address(self) -> str:
        """The dashboard, and the Jobs API."""
        return f"http://{HOST}:{self.port()}"

    @property
    def secret_file(self) -> Path:
        """The token of the cluster."""
        return self.folder.secret_file("ray-token")

    @property
    def where(self) -> Path:
        """Jobs start here: the project's folder, so that they find jobs/x.yaml."""
        return Path(self.folder.state.project)

    def command(self) -> list[str]:
        """Everything on loopback; see `prepare` for what else that takes."""
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
            "--min-worker-port=0", "--max-worker-port=0",  # any free ones, not a range with ours
            f"--temp-dir={self.folder.ray_folder()}", "--disable-usage-stats",
            "--log-style=record", "--log-color=false",
        ]  # fmt: skip
        if self.folder.state.num_cpus is not None:
            command.append(f"--num-cpus={self.folder.state.num_cpus}")
        return command

    def prepare(self) -> dict[str, str]:
        """What the jobs get too: Ray's processes hand their environment on to them."""
        self.folder.secret("ray-token")
        exported = for_jobs(self.folder)
        return {
            **{name: exported[name] for name in exported if not name.endswith("_ADDRESS")},
            "OMP_WAIT_POLICY": "PASSIVE",
            # Workers exchange gradients on the loopback interface alone.
            "GLOO_SOCKET_IFNAME": LOOPBACK,
            "NCCL_SOCKET_IFNAME": LOOPBACK,
            # Time to write a checkpoint between `ray job stop` and the end.
            "RAY_JOB_STOP_WAIT_TIME_S": "30",
        }

    def problem(self) -> str | None:
        """The dashboard takes the token, and the node can run jobs."""
        token = self.folder.secret("ray-token")
        headers = {"Authorization": f"Bearer {token}"}
        return ask(f"{self.address}/api/version", headers) or ask(
            f"http://{HOST}:{self.port('ray agent')}/api/local_raylet_healthz", headers
        )


def for_jobs(folder: StackFolder) -> dict[str, str]:
    """The environment in which commands and jobs find the stack; it holds secrets."""
    s3, mlflow, ray = S3Server(folder), MlflowServer(folder), RayHead(folder)
    return {
        "RAY_API_SERVER_ADDRESS": ray.address,
        "RAY_ADDRESS": f"{HOST}:{ray.port('ray gcs')}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(ray.secret_file),
        # Else Ray turns 127.0.0.1 into the machine's address and listens on all of them. It is
        # meant for macOS, where Ray does this by default.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "MLFLOW_TRACKING_URI": mlflow.address,
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": folder.secret("mlflow-password"),
        "AWS_ENDPOINT_URL_S3": s3.address,
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": folder.secret("s3-secret-key"),
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "ORCHESTRATOR_DATA": "s3://data",
        "ORCHESTRATOR_STORAGE": "s3://runs",
    }
