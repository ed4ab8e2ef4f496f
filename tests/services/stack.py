"""The services of deploy/compose.yaml as plain processes: their commands, environments and secrets.

Nothing here says what a service is started with; compose.yaml does. Host names become loopback
ports, /run/secrets a folder with the files that compose.yaml lists for the service, and no more.
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
from .postgres import binaries
from .s3 import PORTS

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
POSTGRES = binaries()
"""Where PostgreSQL's programs are, or None."""


@dataclass
class Stack:
    """Running services of compose.yaml."""

    folder: Path
    services: dict[str, Any]
    ports: dict[str, int]
    """Of a service by its name, of the dashboard, and of the agents of Ray's nodes."""
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    more: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def secrets(self) -> Path:
        """All secrets, as compose-secrets.sh has made them."""
        return self.folder / "secrets"

    def url(self, name: str) -> str:
        """Where a service answers."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def _here(self, text: str, name: str) -> str:
        """``text`` of the service ``name`` with the addresses of this machine."""
        places = {
            "postgres:5432": "postgres", "mlflow:5000": "mlflow", "127.0.0.1:5000": "mlflow",
            "head:6379": "head", "127.0.0.1:8265": "dashboard", "127.0.0.1:52365": f"{name}-agent",
            "seaweedfs:8333": "seaweedfs", "127.0.0.1:8333": "seaweedfs",
        }  # fmt: skip
        for place, of in places.items():
            if place in text:
                text = text.replace(place, f"127.0.0.1:{self.ports[of]}")
        return text

    def environment(self, name: str) -> dict[str, str]:
        """What the service finds in its environment, and nothing else of this machine's."""
        home, secrets = self.folder / name, self.folder / f"{name}-secrets"
        if not home.exists():
            home.mkdir()
            secrets.mkdir()
            for secret in self.services[name]["secrets"]:
                (secrets / secret).symlink_to(self.secrets / secret)
        own = {
            key: self._here(str(value), name).replace("/run/secrets", str(secrets))
            for key, value in self.services[name].get("environment", {}).items()
        }
        system = f"{BIN}:{os.environ['PATH']}"
        ours = {"PATH": system, "HOME": str(home), "SECRETS": str(secrets), "BIND": "127.0.0.1"}
        ray = {"RAY_HEAD": self._here("head:6379", name), "PYTHONUNBUFFERED": "1"}
        return own | ours | ray

    def start(self, name: str, *more: str) -> None:
        """Start a service of our image by its command, and with ``more`` for this machine."""
        self.more[name] = more
        script, *command = self.services[name]["command"]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [_script(script), *command, *more],
                cwd=self.folder,
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_postgres(self) -> None:
        """Start PostgreSQL as its image does: the user, the database and the password's file."""
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
        # The image creates POSTGRES_DB; --single needs no server and no password.
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

    def wait(self, name: str, seconds: float = 240) -> None:
        """Wait until the service's own health check in compose.yaml succeeds."""
        _, script, *check = self.services[name]["healthcheck"]["test"]
        command = [_script(script), *(self._here(word, name) for word in check)]
        deadline, restarts = time.monotonic() + seconds, 0
        while subprocess.run(
            command, env=self.environment(name), capture_output=True, check=False
        ).returncode:
            ended = [one for one, process in self.processes.items() if process.poll()]
            # As the engine does it: Ray gives up when a busy machine takes 30 s for its raylet.
            if ended == [name] and self.services[name]["restart"] == "unless-stopped":
                restarts += 1
                assert restarts <= 3, self.log(name)
                _kill(self.processes[name])
                self.start(name, *self.more[name])
                continue
            assert not ended, "\n".join(self.log(one) for one in ended)
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(0.5)

    def log(self, name: str) -> str:
        """The end of what a service has printed."""
        return f"{name}:\n" + (self.folder / f"{name}.log").read_text()[-3000:]

    def stop(self) -> None:
        """SIGTERM to each process as the engine sends it, and the end of what is left."""
        for process in reversed(self.processes.values()):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + 10
        for name, process in self.processes.items():
            # SeaweedFS waits for its own connections; the engine ends it after stop_grace_period.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()) if name != "seaweedfs" else 0.1)
            _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a process and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _script(place: str) -> str:
    """Where the repository has a script of the image."""
    return str(DEPLOY / place.removeprefix("/app/"))


@contextlib.contextmanager
def running_stack(folder: Path) -> Iterator[Stack]:
    """The services of compose.yaml, healthy, in a ``folder`` with a short name."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    names = ("postgres", "mlflow", "head", "dashboard", "head-agent", "worker-agent")
    first = free_ports(PORTS + len(names))
    ports = {name: first + PORTS + n for n, name in enumerate(names)} | {"seaweedfs": first}
    stack = Stack(folder, services, ports)
    made = [str(DEPLOY / "compose-secrets.sh"), str(stack.secrets)]
    subprocess.run(made, check=True, capture_output=True)
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
