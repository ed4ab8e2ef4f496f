"""An S3 server and an MLflow server of this machine, each behind a proxy that injects faults."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.distribution import install_command
from orchestrator.errors import EnvironmentProblem
from orchestrator.faults.http_proxy import HOST, Disturbance, Head, HttpProxy
from orchestrator.local_stack.control import start_services, stop_services
from orchestrator.local_stack.folder import StackFolder
from orchestrator.local_stack.mlflow_server import MlflowServer
from orchestrator.local_stack.ray_head import job_environment
from orchestrator.local_stack.s3_server import S3Server

Matches = Callable[[Head], bool]
POLL_S = 0.05


class DisturbedServer:
    """One server behind its proxy."""

    def __init__(self, target: int, *, rewrite_host: bool = False) -> None:
        self.proxy = HttpProxy(target, self._choose, self._count, rewrite_host=rewrite_host)
        self.num_disturbed = 0
        self._lock = threading.Lock()
        self._armed: tuple[Disturbance, Matches, int] | None = None

    @property
    def address(self) -> str:
        """Address of the proxy."""
        return f"http://{HOST}:{self.proxy.port}"

    def disturb(
        self, disturbance: Disturbance, matches: Matches, count: int, timeout_s: float
    ) -> int:
        """Disturb the next ``count`` requests that match; wait for them, at most ``timeout_s``.

        Returns how many exchanges were disturbed.
        """
        before, deadline = self.num_disturbed, time.monotonic() + timeout_s
        with self._lock:
            self._armed = disturbance, matches, count
        while self._armed is not None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        with self._lock:
            self._armed = None
        return self.num_disturbed - before

    def _choose(self, request: Head) -> Disturbance | None:
        with self._lock:
            if self._armed is None or not self._armed[1](request):
                return None
            disturbance, matches, count = self._armed
            self._armed = (disturbance, matches, count - 1) if count > 1 else None
            return disturbance

    def _count(self, _: Disturbance) -> None:
        self.num_disturbed += 1


class Servers:
    """Both servers, with all their data in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = StackFolder(folder)
        self._s3, self._mlflow = S3Server(self._folder), MlflowServer(self._folder)
        self.s3: DisturbedServer
        self.mlflow: DisturbedServer

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the servers and their proxies until the block ends.

        Raises:
            EnvironmentProblem: a package is missing, or a server does not start.
        """
        started = (self._s3, self._mlflow)
        missing = [name for service in started if (name := service.missing_package())]
        if missing:
            raise EnvironmentProblem(
                f"{' and '.join(missing)} not installed, which faults of the storage and of MLflow "
                f"need: {install_command('stack')}"
            )
        self._folder.create()
        start_services(self._folder, started)
        try:
            self.s3 = DisturbedServer(self._s3.port())
            self.mlflow = DisturbedServer(self._mlflow.port(), rewrite_host=True)
            with self.s3.proxy.running(), self.mlflow.proxy.running():
                yield
        finally:
            stop_services(started)

    def restart_mlflow(self) -> None:
        """Kill the MLflow server and start it again."""
        stop_services([self._mlflow], timeout_s=0)
        start_services(self._folder, [self._mlflow])
        # Another process may have taken the port meanwhile.
        self.mlflow.proxy.target = self._mlflow.port()

    def environ(self, *, direct: bool = False) -> dict[str, str]:
        """Environment variables with the credentials and the proxies' addresses.

        ``direct`` gives the servers' own addresses, for who must see through the faults.
        """
        values = {
            name: value
            for name, value in job_environment(self._folder).items()
            if not name.startswith(("RAY_", "ORCHESTRATOR_"))
        }
        if direct:
            return values
        return values | {
            "MLFLOW_TRACKING_URI": self.mlflow.address,
            "AWS_ENDPOINT_URL_S3": self.s3.address,
        }
