"""The services of deploy/compose.yaml as plain processes, with its commands and environments.

Host names are replaced by loopback ports, and /run/secrets by a folder with exactly the secrets
that compose.yaml lists for the service.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .ports import free_ports
from .postgres import find_binaries
from .s3 import PORTS

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
POSTGRES = find_binaries()
"""Folder of PostgreSQL's programs, or None."""


@dataclass
class Stack:
    """Running services of compose.yaml."""

    folder: Path
    services: dict[str, Any]
    ports: dict[str, int]
    """Ports of services, of the dashboard, and of the agents of Ray's nodes."""
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    options: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def secrets(self) -> Path:
        """Folder with all secrets of compose-secrets.sh."""
        return self.folder / "secrets"

    def url(self, name: str) -> str:
        """Address of a service."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def _localize(self, text: str, name: str) -> str:
        """Replace the addresses in ``text`` of the service ``name`` by those on this machine."""
        ports = {
            "postgres:5432": "postgres", "mlflow:5000": "mlflow", "127.0.0.1:5000": "mlflow",
            "head:6379": "head", "127.0.0.1:8265": "dashboard", "127.0.0.1:52365": f"{name}-agent",
            "seaweedfs:8333": "seaweedfs", "127.0.0.1:8333": "seaweedfs",
        }  # fmt: skip
        for address, port in ports.items():
            if address in text:
                text = text.replace(address, f"127.0.0.1:{self.ports[port]}")
        return text

    def environment(self, name: str) -> dict[str, str]:
        """Environment of the service, without the variables of this machine."""
        home, secrets = self.folder / name, self.folder / f"{name}-secrets"
        if not home.exists():
            home.mkdir()
            secrets.mkdir()
            for secret in self.services[name]["secrets"]:
                (secrets / secret).symlink_to(self.secrets / secret)
        own = {
            key: self._localize(str(value), name).replace("/run/secrets", str(secrets))
            for key, value in self.services[name].get("environment", {}).items()
        }
        system = f"{BIN}:{os.environ['PATH']}"
        ours = {"PATH": system, "HOME": str(home), "SECRETS": str(secrets), "BIND": "127.0.0.1"}
        ray = {"RAY_HEAD": self._localize("head:6379", name), "PYTHONUNBUFFERED": "1"}
        return own | ours | ray

    def start(self, name: str, *options: str) -> None:
        """Start a service of our image by its command, with more ``options`` for this machine."""
        self.options[name] = options
        script, *command = self.services[name]["command"]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [_script(script), *command, *options],
                cwd=self.folder,
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_postgres(self) -> None:
        """Start PostgreSQL as its image does, with the user, the database and the password file."""
        own = self.services["postgres"]["environment"]
        data, log = self.folder / "postgres", self.folder / "postgres.log"
        password = self.folder / "postgres-password"
        shutil.copy(self.secrets / "postgres_password", password)
        data.mkdir()
        prefix: list[str] = []
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
            shutil.chown(data, "postgres", "postgres")
            shutil.chown(password, "postgres", "postgres")
        assert POSTGRES is not None
        postgres, initdb = POSTGRES / "postgres", POSTGRES / "initdb"
        environ = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        command = [*prefix, str(initdb), f"--pgdata={data}", f"--username={own['POSTGRES_USER']}"]
        command += [
            f"--pwfile={password}",
            f"--auth={own['POSTGRES_HOST_AUTH_METHOD']}",
            "--no-sync",
        ]
        command += own["POSTGRES_INITDB_ARGS"].split()
        subprocess.run(command, check=True, capture_output=True, env=environ, cwd="/")
        # Create POSTGRES_DB as the image does; --single needs no server or password.
        subprocess.run(
            [*prefix, str(postgres), "--single", "-D", str(data), "template1"],
            input=f"CREATE DATABASE {own['POSTGRES_DB']};\n".encode(),
            check=True, capture_output=True, env=environ, cwd="/",
        )  # fmt: skip
        with log.open("wb") as output:
            self.processes["postgres"] = subprocess.Popen(
                [*prefix, str(postgres), "-D", str(data), "-h", "127.0.0.1", "-k", "",
                 "-p", str(self.ports["postgres"])],
                cwd="/", env=environ, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def wait(self, name: str, timeout_s: float = 240) -> None:
        """Wait until the health check of the service in compose.yaml succeeds."""
        _, script, *check = self.services[name]["healthcheck"]["test"]
        command = [_script(script), *(self._localize(word, name) for word in check)]
        deadline, restarts = time.monotonic() + timeout_s, 0
        while subprocess.run(
            command, env=self.environment(name), capture_output=True, check=False
        ).returncode:
            ended = [other for other, process in self.processes.items() if process.poll()]
            # Restart it as the engine does: Ray fails if a busy machine takes 30 s for its raylet.
            if ended == [name] and self.services[name]["restart"] == "unless-stopped":
                restarts += 1
                assert restarts <= 3, self.log(name)
                _kill(self.processes[name])
                self.start(name, *self.options[name])
                continue
            assert not ended, "\n".join(self.log(other) for other in ended)
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(0.5)

    def log(self, name: str) -> str:
        """End of the output of a service."""
        return f"{name}:\n" + (self.folder / f"{name}.log").read_text()[-3000:]

    def stop(self) -> None:
        """Send SIGTERM to each process as the engine does, then kill what is left."""
        for process in reversed(self.processes.values()):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + 10
        for name, process in self.processes.items():
            # SeaweedFS waits for its own connections; the engine kills it after stop_grace_period.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()) if name != "seaweedfs" else 0.1)
            _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _script(path: str) -> str:
    """Path in the repository of a script in the image."""
    return str(DEPLOY / path.removeprefix("/app/"))


@contextlib.contextmanager
def running_stack(folder: Path) -> Iterator[Stack]:
    """Run the services of compose.yaml in a ``folder`` with a short path; yields when healthy."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    names = ("postgres", "mlflow", "head", "dashboard", "head-agent", "worker-agent")
    first = free_ports(PORTS + len(names))
    ports = {name: first + PORTS + n for n, name in enumerate(names)} | {"seaweedfs": first}
    stack = Stack(folder, services, ports)
    create_secrets = [str(DEPLOY / "compose-secrets.sh"), str(stack.secrets)]
    subprocess.run(create_secrets, check=True, capture_output=True)
    weed = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc"]
    weed += ["filer.port", "filer.port.grpc", "s3.port.grpc"]
    assert len(weed) == PORTS - 1
    flags = [f"-{name}={first + 1 + n}" for n, name in enumerate(weed)]
    (folder / "data").mkdir()
    ray = ["--node-ip-address=127.0.0.1"]
    try:
        stack.start("seaweedfs", *flags, f"-s3.port={first}", f"-dir={folder / 'data'}",
                    f"-filer.localSocket={folder / 'filer.sock'}", "-master.electionTimeout=1s",
                    "-master.heartbeatInterval=100ms")  # fmt: skip
        stack.start_postgres()
        stack.start("mlflow", "--port", str(ports["mlflow"]), "--workers", "1")
        stack.wait("seaweedfs")
        stack.wait("mlflow")
        stack.start("head", *ray, f"--port={ports['head']}", f"--temp-dir={folder / 'r'}",
                    f"--dashboard-port={ports['dashboard']}",
                    f"--dashboard-agent-listen-port={ports['head-agent']}")  # fmt: skip
        stack.start("setup")
        assert stack.processes["setup"].wait(120) == 0, stack.log("setup")
        stack.wait("head")
        stack.start("worker", *ray, "--num-cpus=1",
                    f"--dashboard-agent-listen-port={ports['worker-agent']}")  # fmt: skip
        stack.wait("worker")
        yield stack
    finally:
        stack.stop()
